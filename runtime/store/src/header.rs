//! The store's own files: the header, the CPU slots, the trace log.
//!
//! ```text
//! store, 4096 bytes:
//!   0   magic     u64
//!   8   version   u32   beeline_abi::ABI_VERSION
//!   12  cpus      u32   possible CPUs when the store was made
//!   16  uuid      [u64; 2]
//!   32  next id   u64   atomic; ids of objects, maps, programs and links come from here, from 1
//! ```

use crate::StoreError;
use crate::directory::Directory;
use crate::mapping::Mapping;
use beeline_abi::process::CpuSlot;
use beeline_abi::trace::{TRACE_FILE_LEN, TRACE_MAGIC};
use beeline_abi::{ABI_VERSION, PAGE_SIZE};
use rustix::io::Errno;
use std::sync::atomic::Ordering;

/// The header's file name.
pub(crate) const HEADER: &str = "store";
/// The CPU slots' file name.
pub(crate) const CPUS: &str = "cpus";
/// The log's file name.
pub(crate) const TRACE: &str = "trace";

const MAGIC: u64 = u64::from_le_bytes(*b"beestore");
const CPUS_OFFSET: usize = 12;
const NEXT_ID_OFFSET: usize = 32;

/// The mapped header of an open store.
#[derive(Debug)]
pub(crate) struct Header {
    mapping: Mapping,
    /// Possible CPUs of the machine, as recorded and checked.
    pub(crate) cpus: u32,
    /// Random identity of the store.
    pub(crate) uuid: [u64; 2],
}

impl Header {
    /// Writes the three files of a new store.
    pub(crate) fn create(directory: &Directory) -> Result<(), StoreError> {
        let cpus = possible_cpus()?;
        let mut uuid = [0u8; 16];
        rustix::rand::getrandom(&mut uuid, rustix::rand::GetRandomFlags::empty()).map_err(StoreError::io(
            "draw random numbers for",
            directory.path(),
            0,
        ))?;
        let mut page = vec![0; PAGE_SIZE as usize];
        page[0..8].copy_from_slice(&MAGIC.to_le_bytes());
        page[8..12].copy_from_slice(&ABI_VERSION.to_le_bytes());
        page[CPUS_OFFSET..16].copy_from_slice(&cpus.to_le_bytes());
        page[16..32].copy_from_slice(&uuid);
        page[NEXT_ID_OFFSET..40].copy_from_slice(&1u64.to_le_bytes());
        directory.write(HEADER, &page)?;
        directory.create_allocated(CPUS, cpu_slots_len(cpus))?;
        let trace = directory.create_allocated(TRACE, TRACE_FILE_LEN)?;
        let fail = || StoreError::io("write", directory.join(TRACE), 16);
        let mut head = [0; 16];
        head[..8].copy_from_slice(&TRACE_MAGIC.to_le_bytes());
        head[8..12].copy_from_slice(&ABI_VERSION.to_le_bytes());
        rustix::io::pwrite(&trace, &head, 0).map_err(fail())?;
        Ok(())
    }

    /// Opens and checks the header.
    pub(crate) fn open(directory: &Directory) -> Result<Header, StoreError> {
        let path = directory.join(HEADER);
        let Some(file) = directory.try_file(HEADER)? else {
            return Err(StoreError::corrupt(directory.path(), "it has no header: it is not a store"));
        };
        let mapping = Mapping::new(&file, PAGE_SIZE).map_err(|errno| match errno {
            Errno::INVAL => StoreError::corrupt(&path, "it is truncated"),
            errno => StoreError::io("map", &path, PAGE_SIZE)(errno),
        })?;
        let word = |at: usize| mapping.words()[at / 8].load(Ordering::Relaxed);
        if word(0) != MAGIC {
            return Err(StoreError::corrupt(&path, "it is not the header of a store"));
        }
        let (version, cpus) = (word(8) as u32, (word(8) >> 32) as u32);
        if version != ABI_VERSION {
            return Err(StoreError::Version { path, found: version, expected: ABI_VERSION });
        }
        let expected = possible_cpus()?;
        if cpus != expected {
            return Err(StoreError::CpuCount { path: directory.path().into(), found: cpus, expected });
        }
        let uuid = [word(16), word(24)];
        Ok(Header { mapping, cpus, uuid })
    }

    /// Takes `count` ids that nobody else has or ever will have in this store; returns the first.
    pub(crate) fn take_ids(&self, count: u32, directory: &Directory) -> Result<u32, StoreError> {
        let next = &self.mapping.words()[NEXT_ID_OFFSET / 8];
        let advance = |id: u64| {
            let end = id.checked_add(u64::from(count))?;
            (id > 0 && end <= u64::from(u32::MAX)).then_some(end)
        };
        match next.fetch_update(Ordering::Relaxed, Ordering::Relaxed, advance) {
            Ok(first) => Ok(first as u32),
            Err(_) => Err(StoreError::IdsExhausted { path: directory.path().into() }),
        }
    }
}

/// Length of the file of CPU slots.
pub(crate) fn cpu_slots_len(cpus: u32) -> u64 {
    (u64::from(cpus) * size_of::<CpuSlot>() as u64).next_multiple_of(PAGE_SIZE)
}

/// Number of possible CPUs of this machine: one more than the highest in `/sys/devices/system/cpu/possible`.
///
/// # Errors
/// When the file cannot be read or understood.
pub fn possible_cpus() -> Result<u32, StoreError> {
    const PATH: &str = "/sys/devices/system/cpu/possible";
    let text = std::fs::read_to_string(PATH).map_err(|error| {
        StoreError::io("read", PATH, 0)(Errno::from_io_error(&error).unwrap_or(Errno::IO))
    })?;
    let highest = text.trim().rsplit([',', '-']).next().and_then(|last| last.parse::<u32>().ok());
    match highest {
        Some(highest) if highest < 1 << 16 => Ok(highest + 1),
        _ => Err(StoreError::corrupt(PATH, format!("cannot make sense of {text:?}"))),
    }
}
