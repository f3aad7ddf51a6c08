//! From a mapped file to the private handle that every operation trusts.

use crate::layout::{self, Layout};
use beeline_abi::ABI_VERSION;
use beeline_abi::map::{MAP_MAGIC, MapHandle, MapHeader, MapShape};
use core::fmt;
use core::ptr;
use core::sync::atomic::Ordering;

/// Why bytes are not a map that this version can use.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum HandleError {
    /// Fewer bytes than a header.
    TooShort {
        /// Bytes that are mapped.
        mapped_len: u64,
    },
    /// The first eight bytes are not a map's.
    NotAMap,
    /// Made by another version of beeline.
    Version {
        /// The version in the file.
        found: u32,
    },
    /// The shape is one that no map can have.
    Shape {
        /// What creation says to it: a negative errno.
        errno: i64,
    },
    /// The length in the header, or of the mapping, is not that of the shape's layout.
    Length {
        /// Bytes according to the header or the mapping.
        found: u64,
        /// Bytes according to the layout.
        expected: u64,
    },
}

impl fmt::Display for HandleError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            HandleError::TooShort { mapped_len } => write!(f, "map file is truncated: {mapped_len} bytes"),
            HandleError::NotAMap => f.write_str("not a map file, or one that was never finished"),
            HandleError::Version { found } => {
                write!(f, "map file has layout version {found}, this is version {ABI_VERSION}")
            }
            HandleError::Shape { errno } => {
                write!(f, "map file describes an impossible map (errno {})", -errno)
            }
            HandleError::Length { found, expected } => {
                write!(f, "map file is {found} bytes long, its shape needs {expected}")
            }
        }
    }
}

impl core::error::Error for HandleError {}

/// Validates the map whose header is at `header` and builds the handle for a process that has it at `address`.
///
/// `mapped_len` is the length of the mapping at `address`: at least the layout's
/// [`mapped_len`](crate::layout::Layout::mapped_len). For a map of the own process `address` is `header`'s; the
/// injector passes the address in the target and a local mapping of the same file.
///
/// # Errors
/// [`HandleError`] when the bytes are not a whole map of this version.
///
/// # Safety
/// `header` is aligned to 8 and points to `local_len` readable bytes (other processes may write them).
pub unsafe fn open(
    header: *const u8,
    local_len: u64,
    mapped_len: u64,
    address: u64,
) -> Result<MapHandle, HandleError> {
    if local_len < size_of::<MapHeader>() as u64 || mapped_len < size_of::<MapHeader>() as u64 {
        return Err(HandleError::TooShort { mapped_len: local_len.min(mapped_len) });
    }
    let header = header.cast::<MapHeader>();
    // SAFETY: a whole header is readable and aligned. Fields other than the magic are written before it and then fixed;
    // a hostile writer can change them under us, so each is read once, by value.
    let (magic, version, id, shape, file_len, seed) = unsafe {
        (
            (*header).magic.load(Ordering::Acquire),
            ptr::read_volatile(&raw const (*header).version),
            ptr::read_volatile(&raw const (*header).id),
            ptr::read_volatile(&raw const (*header).shape),
            ptr::read_volatile(&raw const (*header).file_len),
            ptr::read_volatile(&raw const (*header).seed),
        )
    };
    if magic != MAP_MAGIC {
        return Err(HandleError::NotAMap);
    }
    if version != ABI_VERSION {
        return Err(HandleError::Version { found: version });
    }
    let layout = layout::layout(&shape).map_err(|errno| HandleError::Shape { errno })?;
    if file_len != layout.file_len {
        return Err(HandleError::Length { found: file_len, expected: layout.file_len });
    }
    if mapped_len < layout.mapped_len {
        return Err(HandleError::Length { found: mapped_len, expected: layout.mapped_len });
    }
    Ok(at(&layout, shape, id, seed, address))
}

/// The handle of a map with this layout for a process that has it at `address`: [`open`] for a caller that has
/// validated the header by other means.
pub fn at(layout: &Layout, shape: MapShape, id: u32, seed: u32, address: u64) -> MapHandle {
    MapHandle {
        base: address,
        mapped_len: layout.mapped_len,
        data: address.wrapping_add(layout.data_offset),
        stride: layout.stride,
        cpu_stride: layout.cpu_stride,
        mask: layout.mask,
        offsets: layout.offsets,
        shape,
        id,
        seed,
        pool_len: layout.pool_len,
        owner_offset: layout.owner_offset,
        key_offset: layout.key_offset,
        value_offset: layout.value_offset,
    }
}
