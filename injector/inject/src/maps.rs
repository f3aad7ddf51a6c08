//! Files of the store, as they are mapped into a process: CPU slots, trace log, maps, links.

use crate::error::TargetRefused;
use crate::request::{MapRequest, Request};
use crate::wire::Wire;
use beeline_abi::ABI_VERSION;
use beeline_abi::link::{LINK_MAGIC, LinkShared};
use beeline_abi::map::{MAP_MAGIC, MapHandle, MapHeader, MapShape};
use beeline_abi::process::CpuSlot;
use beeline_abi::trace::{TRACE_FILE_LEN, TRACE_MAGIC};
use beeline_maps::layout::{Layout, layout};
use std::mem::offset_of;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

const PAGE: u64 = beeline_abi::PAGE_SIZE;

/// A file that a process maps shared.
#[derive(Debug)]
pub(crate) struct SharedFile<'a> {
    pub(crate) file: BorrowedFd<'a>,
    /// Where it begins in the process.
    pub(crate) address: u64,
    /// Bytes of the file.
    pub(crate) len: u64,
    /// Offset in the file from which it is mapped a second time behind its end, 0 = it is not.
    pub(crate) again_from: u64,
    pub(crate) what: &'static str,
}

impl<'a> SharedFile<'a> {
    fn new(file: &'a OwnedFd, len: u64, what: &'static str) -> SharedFile<'a> {
        let len = len.next_multiple_of(PAGE);
        SharedFile { file: file.as_fd(), address: 0, len, again_from: 0, what }
    }

    pub(crate) fn cpu_slots(request: &'a Request) -> Result<SharedFile<'a>, TargetRefused> {
        let len = u64::from(request.cpus) * size_of::<CpuSlot>() as u64;
        check_len(&request.cpu_slots, len.max(1), "the store's CPU slots")?;
        Ok(SharedFile::new(&request.cpu_slots, len.max(1), "mmap of the store's CPU slots"))
    }

    pub(crate) fn trace(request: &'a Request) -> Result<SharedFile<'a>, TargetRefused> {
        check_len(&request.trace, TRACE_FILE_LEN, "the store's trace log")?;
        let magic: u64 = read(&request.trace, 0, "the store's trace log")?;
        if magic != TRACE_MAGIC {
            return Err(bad("the store's trace log is not one".to_owned()));
        }
        Ok(SharedFile::new(&request.trace, TRACE_FILE_LEN, "mmap of the store's trace log"))
    }

    pub(crate) fn map(map: &'a MapRequest) -> Result<SharedFile<'a>, TargetRefused> {
        let layout = map_layout(map)?.0;
        let again_from = if layout.mapped_len > layout.file_len {
            layout.file_len - (layout.mapped_len - layout.file_len)
        } else {
            0
        };
        Ok(SharedFile { again_from, ..SharedFile::new(&map.file, layout.file_len, "mmap of a map") })
    }

    pub(crate) fn link(link_id: u32, shared: &'a OwnedFd) -> Result<SharedFile<'a>, TargetRefused> {
        let what = format!("the file of link {link_id}");
        check_len(shared, size_of::<LinkShared>() as u64, &what)?;
        let magic: u64 = read(shared, 0, &what)?;
        let id: u32 = read(shared, offset_of!(LinkShared, id) as u64, &what)?;
        if magic != LINK_MAGIC || id != link_id {
            return Err(bad(format!("{what} is not one")));
        }
        Ok(SharedFile::new(shared, PAGE, "mmap of a link"))
    }

    /// Bytes that it takes in the process.
    pub(crate) fn mapped_len(&self) -> u64 {
        self.len + if self.again_from == 0 { 0 } else { self.len - self.again_from }
    }
}

/// The handle of a map that a process has at `address`. What it says was checked against the map's own layout.
pub(crate) fn map_handle(map: &MapRequest, address: u64) -> Result<MapHandle, TargetRefused> {
    let (layout, shape) = map_layout(map)?;
    let what = format!("map {}", map.name);
    Ok(MapHandle {
        base: address,
        mapped_len: layout.mapped_len,
        data: address + layout.data_offset,
        stride: layout.stride,
        cpu_stride: layout.cpu_stride,
        mask: layout.mask,
        offsets: layout.offsets,
        shape,
        id: map.id,
        seed: read(&map.file, offset_of!(MapHeader, seed) as u64, &what)?,
        pool_len: layout.pool_len,
        owner_offset: layout.owner_offset,
        key_offset: layout.key_offset,
        value_offset: layout.value_offset,
    })
}

fn map_layout(map: &MapRequest) -> Result<(Layout, MapShape), TargetRefused> {
    let what = format!("map {}", map.name);
    let word = |offset: usize| read::<u32>(&map.file, offset as u64, &what);
    let magic: u64 = read(&map.file, 0, &what)?;
    let (version, id) = (word(offset_of!(MapHeader, version))?, word(offset_of!(MapHeader, id))?);
    if magic != MAP_MAGIC || version != ABI_VERSION || id != map.id {
        return Err(bad(format!("{what}: its file is not a map of this version with id {}", map.id)));
    }
    let shape: MapShape = read(&map.file, offset_of!(MapHeader, shape) as u64, &what)?;
    let layout = layout(&shape).map_err(|_| bad(format!("{what}: its file describes an impossible map")))?;
    check_len(&map.file, layout.file_len, &what)?;
    Ok((layout, shape))
}

/// A process that touches a page behind the end of a file is killed.
fn check_len(file: &OwnedFd, len: u64, what: &str) -> Result<(), TargetRefused> {
    let data = nix::sys::stat::fstat(file).map_err(|error| bad(format!("{what} cannot be read: {error}")))?;
    if (data.st_size as u64) < len {
        return Err(bad(format!("{what} is truncated: {} bytes instead of {len}", data.st_size)));
    }
    Ok(())
}

fn read<T: Wire>(file: &OwnedFd, offset: u64, what: &str) -> Result<T, TargetRefused> {
    let mut bytes = vec![0; T::LEN];
    match nix::sys::uio::pread(file, &mut bytes, offset as i64) {
        Ok(count) if count == bytes.len() => Ok(T::get(&bytes)),
        Ok(_) => Err(bad(format!("{what} is truncated"))),
        Err(error) => Err(bad(format!("{what} cannot be read: {error}"))),
    }
}

fn bad(what: String) -> TargetRefused {
    TargetRefused::BadRequest { what }
}
