//! A map's file: made, opened, handed to the algorithms of `beeline-maps`.

use super::Mapping;
use crate::StoreError;
use crate::directory::{Directory, allocate};
use beeline_abi::map::{MapHandle, MapHeader, MapShape};
use beeline_maps::create::Identity;
use beeline_maps::layout;
use rustix::io::Errno;
use std::fs::File;
use std::mem::offset_of;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::atomic::Ordering;

/// What a new map is.
pub(crate) struct MapParameters<'a> {
    pub(crate) id: u32,
    pub(crate) name: &'a str,
    pub(crate) shape: MapShape,
    pub(crate) btf_key_type_id: u32,
    pub(crate) btf_value_type_id: u32,
}

/// An open map.
#[derive(Debug)]
pub struct MapFile {
    mapping: Mapping,
    handle: MapHandle,
    file: File,
}

impl MapFile {
    /// The map's id in its store.
    pub fn id(&self) -> u32 {
        self.handle.id
    }

    /// What the map is.
    pub fn shape(&self) -> MapShape {
        self.handle.shape
    }

    /// BTF id of the key's type, 0 for none.
    pub fn btf_key_type_id(&self) -> u32 {
        self.half(offset_of!(MapHeader, btf_key_type_id))
    }

    /// BTF id of the value's type, 0 for none.
    pub fn btf_value_type_id(&self) -> u32 {
        self.half(offset_of!(MapHeader, btf_value_type_id))
    }

    /// True when user space may not change the map any more.
    pub fn is_frozen(&self) -> bool {
        self.half(offset_of!(MapHeader, frozen)) != 0
    }

    /// Forbids user space to change the map (`BPF_MAP_FREEZE`).
    pub fn freeze(&self) {
        self.mapping.half_words()[offset_of!(MapHeader, frozen) / 4].store(1, Ordering::Release);
    }

    /// Bytes of memory that the file takes now.
    ///
    /// # Errors
    /// When the file cannot be inspected.
    pub fn memory_bytes(&self) -> Result<u64, Errno> {
        Ok(rustix::fs::fstat(&self.file)?.st_blocks as u64 * 512)
    }

    /// The validated handle, valid in this process while `self` lives.
    pub fn handle(&self) -> &MapHandle {
        &self.handle
    }

    /// A descriptor of the file, for mapping into a target.
    ///
    /// # Errors
    /// When the process has no descriptor left.
    pub fn descriptor(&self) -> std::io::Result<OwnedFd> {
        Ok(self.file.try_clone()?.into())
    }

    /// Opens and checks a map's file.
    pub(crate) fn open(directory: &Directory, file: &str) -> Result<MapFile, StoreError> {
        let path = directory.join(file);
        MapFile::from_file(directory.file(file)?, &path)
    }

    fn from_file(file: File, path: &Path) -> Result<MapFile, StoreError> {
        let header_len = size_of::<MapHeader>() as u64;
        let truncated = || StoreError::corrupt(path, "it is truncated");
        let stat = rustix::fs::fstat(&file).map_err(StoreError::io("inspect", path, 0))?;
        let file_len = u64::try_from(stat.st_size).unwrap_or(0);
        if file_len < header_len {
            return Err(truncated());
        }
        let mut head = [0u64; size_of::<MapHeader>() / 8];
        {
            let view = Mapping::new(&file, header_len).map_err(StoreError::io("map", path, header_len))?;
            head.iter_mut().zip(view.words()).for_each(|(to, from)| *to = from.load(Ordering::Acquire));
        }
        let corrupt = |error: &dyn std::fmt::Display| StoreError::corrupt(path, error.to_string());
        // SAFETY: `head` is a whole header, aligned to 8, and nobody else's. The address and length are only recorded;
        // the handle made here is used for its shape and then dropped.
        let claimed = unsafe { beeline_maps::handle::open(head.as_ptr().cast(), header_len, u64::MAX, 0) }
            .map_err(|error| corrupt(&error))?;
        let layout = layout::layout(&claimed.shape)
            .map_err(|errno| corrupt(&format!("it describes an impossible map (errno {})", -errno)))?;
        if layout.file_len != file_len {
            return Err(corrupt(&format!("it is {file_len} bytes long, its map needs {}", layout.file_len)));
        }
        let tail_from = if layout.mapped_len > layout.file_len { layout.data_offset } else { 0 };
        let mapping = Mapping::with_tail(&file, layout.file_len, tail_from).map_err(StoreError::io(
            "map",
            path,
            layout.mapped_len,
        ))?;
        if mapping.len() != layout.mapped_len {
            return Err(corrupt(&"its layout cannot be mapped"));
        }
        // SAFETY: the mapping is readable from its start for its whole length, page-aligned, and lives with the handle.
        let handle = unsafe {
            let start = mapping.start.as_ptr().cast_const().cast();
            beeline_maps::handle::open(start, mapping.len(), mapping.len(), mapping.address())
        };
        let handle = handle.map_err(|error| corrupt(&error))?;
        if handle.shape != claimed.shape {
            return Err(corrupt(&"it changes while it is being opened"));
        }
        Ok(MapFile { mapping, handle, file })
    }

    fn half(&self, offset: usize) -> u32 {
        self.mapping.half_words()[offset / 4].load(Ordering::Acquire)
    }
}

/// Makes a new map's file, with all the memory that it must have from the start.
pub(crate) fn create(
    directory: &Directory,
    file: &str,
    parameters: &MapParameters<'_>,
) -> Result<MapFile, StoreError> {
    let refused = |errno: i64| StoreError::MapCreate {
        name: parameters.name.into(),
        source: Errno::from_raw_os_error(i32::try_from(-errno).unwrap_or(22)),
    };
    let layout = layout::layout(&parameters.shape).map_err(refused)?;
    let path = directory.join(file);
    let full = || StoreError::io("allocate", &path, layout.reserved_len.max(layout.file_len));
    let new = directory.create_file(file)?;
    allocate(&new, layout.reserved_len, true).map_err(full())?;
    allocate(&new, layout.file_len, false).map_err(full())?;
    let mapping = Mapping::new(&new, layout.file_len).map_err(full())?;
    let mut seed = [0; 4];
    rustix::rand::getrandom(&mut seed, rustix::rand::GetRandomFlags::empty()).map_err(StoreError::io(
        "draw random numbers for",
        &path,
        0,
    ))?;
    let identity = Identity {
        id: parameters.id,
        name: parameters.name.as_bytes(),
        seed: u32::from_ne_bytes(seed),
        btf_key_type_id: parameters.btf_key_type_id,
        btf_value_type_id: parameters.btf_value_type_id,
    };
    // SAFETY: the mapping is page-aligned, writable and zeroed for its whole length; the file is new and in a directory
    // that nobody else looks into.
    unsafe {
        let start = mapping.start.as_ptr().cast();
        beeline_maps::create::create(start, mapping.len(), &parameters.shape, &identity)
    }
    .map_err(refused)?;
    drop(mapping);
    MapFile::from_file(new, &path)
}
