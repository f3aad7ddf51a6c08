//! The memory of another process, through `/proc/PID/mem`: page permissions do not matter, null pages do.

use crate::error::RemoteError;
use beeline_ptrace::Tid;
use nix::sys::uio::{RemoteIoVec, process_vm_readv};
use nix::unistd::Pid;
use std::fs::{File, OpenOptions};
use std::io;
use std::io::IoSliceMut;
use std::os::unix::fs::FileExt;

/// Reads and writes another process's memory. All of it is that process's word.
#[derive(Debug)]
pub struct Memory {
    file: File,
    tid: Tid,
}

/// Ranges that one call of the kernel reads (`UIO_MAXIOV`), and about how many bytes.
const RANGES_MAX: usize = 1024;
const BYTES_MAX: usize = 256 << 10;

impl Memory {
    /// Opens the memory of the process that `tid` belongs to. Writing read-only pages works while we trace it.
    ///
    /// # Errors
    /// `EACCES` or `EPERM` when the process may not be traced by us.
    pub fn open(tid: Tid, write: bool) -> Result<Memory, RemoteError> {
        let path = format!("/proc/{tid}/mem");
        match OpenOptions::new().read(true).write(write).open(&path) {
            Ok(file) => Ok(Memory { file, tid }),
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

    /// Reads many ranges, each an address and a number of bytes, with few calls. `seen` gets each of them in their order: its
    /// index, and its bytes unless not all of it is mapped.
    pub fn visit(&self, ranges: &[(u64, usize)], mut seen: impl FnMut(usize, Option<&[u8]>)) {
        let mut bytes = Vec::new();
        let mut next = 0;
        while next < ranges.len() {
            let mut len = 0;
            let fits = |&&(_, more): &&(u64, usize)| {
                let first = len == 0;
                len += more;
                first || len <= BYTES_MAX
            };
            let count = ranges[next..].iter().take(RANGES_MAX).take_while(fits).count();
            let batch = &ranges[next..next + count];
            bytes.resize(batch.iter().map(|(_, len)| len).sum(), 0);
            let read = self.read_batch(batch, &mut bytes);
            let mut end = 0;
            for &(address, len) in batch {
                let start = end;
                end += len;
                // The kernel ends at what it cannot read; page permissions matter to it here.
                let whole = end <= read || self.read(address, &mut bytes[start..end]).is_ok();
                seen(next, whole.then_some(&bytes[start..end]));
                next += 1;
                if end > read {
                    break;
                }
            }
        }
    }

    /// Fills `bytes` from the ranges, one after the other; tells how far it got.
    fn read_batch(&self, ranges: &[(u64, usize)], bytes: &mut [u8]) -> usize {
        let remote: Vec<RemoteIoVec> =
            ranges.iter().map(|&(base, len)| RemoteIoVec { base: base as usize, len }).collect();
        process_vm_readv(Pid::from_raw(self.tid), &mut [IoSliceMut::new(bytes)], &remote).unwrap_or(0)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_ranges_with_gaps_between_them() {
        let memory = Memory::open(std::process::id() as Tid, false).unwrap();
        let words: Vec<u64> = (0..5000).collect();
        let large = vec![7u8; BYTES_MAX + 1];
        let at = |index: usize| (&raw const words[index] as u64, 8);
        let mut ranges: Vec<(u64, usize)> = (0..words.len()).map(at).collect();
        ranges.insert(4000, (large.as_ptr() as u64, large.len()));
        ranges.insert(3, (8, 8));
        ranges.insert(0, (8, 0));
        ranges.push((u64::MAX - 7, 8));
        let mut found = Vec::new();
        memory.visit(&ranges, |index, bytes| {
            assert_eq!(index, found.len());
            found.push(bytes.map(<[u8]>::to_vec));
        });
        assert_eq!(found.len(), ranges.len());
        assert_eq!(found.pop().unwrap(), None);
        assert_eq!(found.remove(0), Some(Vec::new()));
        assert_eq!(found.remove(3), None);
        assert_eq!(found.remove(4000).unwrap(), large);
        let read =
            found.iter().map(|bytes| u64::from_le_bytes(bytes.as_deref().unwrap().try_into().unwrap()));
        assert!(read.eq(words.iter().copied()));
    }
}
