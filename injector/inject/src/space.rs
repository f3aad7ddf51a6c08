//! Addresses for what we map, chosen before the process is stopped, and the memory file behind them.
//!
//! ```text
//! area:   one range of addresses, reserved as a whole by mapping our memory file without rights, then laid out by
//!         pieces that replace parts of it
//! ```
//!
//! An area's first page always shows our memory file in `/proc/PID/maps`: that is how a later injector knows the area
//! for ours, whatever happened to this one.

use crate::error::TargetRefused;
use crate::existing::MEMORY_NAME;
use beeline_abi::process::Region;
use beeline_remote::{Mappings, Process};
use nix::sys::memfd::{MFdFlags, memfd_create};
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::FileExt;

const PAGE: u64 = beeline_abi::PAGE_SIZE;

/// `MFD_EXEC`, since Linux 6.3: wanted where `vm.memfd_noexec` is set, refused by older kernels.
const EXECUTABLE: u32 = 0x10;

/// Addresses of a process, as they are given out.
#[derive(Debug)]
pub(crate) struct Space<'a> {
    process: &'a Process,
    maps: &'a Mappings,
    taken: Vec<Range<u64>>,
}

impl<'a> Space<'a> {
    pub(crate) fn new(process: &'a Process, maps: &'a Mappings) -> Space<'a> {
        Space { process, maps, taken: Vec::new() }
    }

    /// `len` bytes within `reach`; one page on each side stays free.
    pub(crate) fn take(&mut self, len: u64, reach: Range<u64>, what: &str) -> Result<Region, TargetRefused> {
        let len = len.next_multiple_of(PAGE);
        match self.process.free_range(self.maps, len, reach.clone(), &self.taken) {
            Ok(start) => {
                self.taken.push(start - PAGE..start + len + PAGE);
                Ok(Region { start, len })
            }
            Err(_) => Err(TargetRefused::NoRoom {
                pid: self.process.pid(),
                what: format!("{what}: no {len:#x} free bytes in {:#x}..{:#x}", reach.start, reach.end),
            }),
        }
    }
}

/// The file that our private mappings in a process are made of.
#[derive(Debug)]
pub(crate) struct MemoryFile {
    file: File,
    len: u64,
}

impl MemoryFile {
    pub(crate) fn new() -> Result<MemoryFile, TargetRefused> {
        let executable = MFdFlags::MFD_CLOEXEC | MFdFlags::from_bits_retain(EXECUTABLE);
        let created = memfd_create(MEMORY_NAME, executable)
            .or_else(|_| memfd_create(MEMORY_NAME, MFdFlags::MFD_CLOEXEC))
            .map_err(|error| failed("create a memory file", error.into()))?;
        Ok(MemoryFile { file: created.into(), len: 0 })
    }

    /// Adds `len` bytes, zero; their offset.
    pub(crate) fn add(&mut self, len: u64) -> Result<u64, TargetRefused> {
        let offset = self.len;
        self.len += len.next_multiple_of(PAGE);
        self.file.set_len(self.len).map_err(|error| failed("enlarge a memory file", error))?;
        Ok(offset)
    }

    pub(crate) fn write(&self, offset: u64, bytes: &[u8]) -> Result<(), TargetRefused> {
        self.file.write_all_at(bytes, offset).map_err(|error| failed("write a memory file", error))
    }

    pub(crate) fn descriptor(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

fn failed(what: &'static str, source: io::Error) -> TargetRefused {
    TargetRefused::System { what, source }
}
