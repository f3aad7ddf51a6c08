//! The memory of another process, through `/proc/PID/mem`: page permissions do not matter, null pages do.

use crate::error::RemoteError;
use beeline_ptrace::Tid;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;

/// Reads and writes another process's memory. All of it is that process's word.
#[derive(Debug)]
pub struct Memory {
    file: File,
}

impl Memory {
    /// Opens the memory of the process that `tid` belongs to. Writing read-only pages works while we trace it.
    ///
    /// # Errors
    /// `EACCES` or `EPERM` when the process may not be traced by us.
    pub fn open(tid: Tid, write: bool) -> Result<Memory, RemoteError> {
        let path = format!("/proc/{tid}/mem");
        match OpenOptions::new().read(true).write(write).open(&path) {
            Ok(file) => Ok(Memory { file }),
            Err(source) => Err(RemoteError::Proc { what: path, source }),
        }
    }

    /// Fills `bytes` from `address`.
    ///
    /// # Errors
    /// When not all of it is mapped.
    pub fn read(&self, address: u64, bytes: &mut [u8]) -> Result<(), RemoteError> {
        let len = bytes.len();
        self.file.read_exact_at(bytes, address).map_err(|source| failed("read", address, len, source))
    }

    /// `len` bytes from `address`.
    ///
    /// # Errors
    /// When not all of it is mapped.
    pub fn read_vec(&self, address: u64, len: usize) -> Result<Vec<u8>, RemoteError> {
        let mut bytes = vec![0; len];
        self.read(address, &mut bytes)?;
        Ok(bytes)
    }

    /// `N` bytes from `address`.
    ///
    /// # Errors
    /// When not all of it is mapped.
    pub fn read_array<const N: usize>(&self, address: u64) -> Result<[u8; N], RemoteError> {
        let mut bytes = [0; N];
        self.read(address, &mut bytes)?;
        Ok(bytes)
    }

    /// The 32-bit word at `address`.
    ///
    /// # Errors
    /// When not all of it is mapped.
    pub fn read_u32(&self, address: u64) -> Result<u32, RemoteError> {
        self.read_array(address).map(u32::from_le_bytes)
    }

    /// The 64-bit word at `address`.
    ///
    /// # Errors
    /// When not all of it is mapped.
    pub fn read_u64(&self, address: u64) -> Result<u64, RemoteError> {
        self.read_array(address).map(u64::from_le_bytes)
    }

    /// Writes `bytes` to `address` in one operation. Within a page it happens as a whole or not at all, whatever
    /// becomes of us meanwhile.
    ///
    /// # Errors
    /// When not all of it is mapped, or the kernel forbids writing to protected pages (`proc_mem.force_override`).
    pub fn write(&self, address: u64, bytes: &[u8]) -> Result<(), RemoteError> {
        self.file.write_all_at(bytes, address).map_err(|source| failed("write", address, bytes.len(), source))
    }

    /// Writes a 64-bit word.
    ///
    /// # Errors
    /// As [`Memory::write`].
    pub fn write_u64(&self, address: u64, value: u64) -> Result<(), RemoteError> {
        self.write(address, &value.to_le_bytes())
    }
}

fn failed(what: &'static str, address: u64, len: usize, source: io::Error) -> RemoteError {
    RemoteError::Memory { what, address, len, source }
}
