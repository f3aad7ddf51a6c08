//! Writing a new map's file.

use crate::layout::{self, Layout};
use crate::types;
use beeline_abi::ABI_VERSION;
use beeline_abi::errno::EINVAL;
use beeline_abi::map::{MAP_MAGIC, MapFlags, MapHeader, MapShape};
use core::ptr;
use core::sync::atomic::{AtomicU64, Ordering};

/// What a new map is called and knows.
#[derive(Clone, Copy, Debug)]
pub struct Identity<'a> {
    /// The map's id in its store.
    pub id: u32,
    /// Its name; at most 64 bytes are kept in the header.
    pub name: &'a [u8],
    /// Random seed of the hash function. `BPF_F_ZERO_SEED` makes it 0.
    pub seed: u32,
    /// `btf_key_type_id`, 0 when none.
    pub btf_key_type_id: u32,
    /// `btf_value_type_id`, 0 when none.
    pub btf_value_type_id: u32,
}

/// Makes `file_len` zeroed bytes a map. The magic is written last: a reader sees a complete map or none.
///
/// The caller has given the file its length and memory to its first [`Layout::reserved_len`] bytes.
///
/// # Errors
/// As [`layout::layout`]; `-EINVAL` also when `len` is less than the layout's `file_len`.
///
/// # Safety
/// `base` is page-aligned and the start of `len` writable, zeroed bytes that nobody else writes.
pub unsafe fn create(
    base: *mut u8,
    len: u64,
    shape: &MapShape,
    identity: &Identity<'_>,
) -> Result<Layout, i64> {
    let layout = layout::layout(shape)?;
    if len < layout.file_len {
        return Err(-EINVAL);
    }
    let header = base.cast::<MapHeader>();
    let seed = if shape.map_flags & MapFlags::ZERO_SEED != 0 { 0 } else { identity.seed };
    let name_len = identity.name.len().min(64);
    // SAFETY: the caller gives at least a page of writable memory that is ours alone; it is zeroed, which is a valid
    // `MapHeader`.
    unsafe {
        (*header).version = ABI_VERSION;
        (*header).id = identity.id;
        (*header).shape = *shape;
        (*header).btf_key_type_id = identity.btf_key_type_id;
        (*header).btf_value_type_id = identity.btf_value_type_id;
        (*header).file_len = layout.file_len;
        (*header).seed = seed;
        ptr::copy_nonoverlapping(identity.name.as_ptr(), (&raw mut (*header).name).cast::<u8>(), name_len);
        if let Some(kind) = types::find(shape.map_type) {
            (kind.initialise)(base, &layout);
        }
        let magic: &AtomicU64 = &(*header).magic;
        magic.store(MAP_MAGIC, Ordering::Release);
    }
    Ok(layout)
}
