//! The shared layouts as bytes of another process: written and read field by field, at the offsets that `abi` defines.

use beeline_abi::ABI_VERSION;
use beeline_abi::guard::Action;
use beeline_abi::link::LinkRuntime;
use beeline_abi::map::{MapHandle, MapShape};
use beeline_abi::process::{
    PROCESS_MAGIC, ProcessBlock, ProgramRuntime, REGIONS_MAX, Region, SiteRuntime, TaskLayout,
};
use beeline_abi::system_call::{CodeAt, List};
use beeline_abi::thread::ReturnSlot;
use beeline_abi::unwind::UnwindText;
use std::mem::offset_of;

/// Something that has a place in another process's memory.
pub(crate) trait Wire: Sized {
    /// Its bytes.
    const LEN: usize;
    /// Writes it to the start of `bytes`, which has room.
    fn put(&self, bytes: &mut [u8]);
    /// Reads it from the start of `bytes`, which has enough.
    fn get(bytes: &[u8]) -> Self;

    /// Its bytes.
    fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = vec![0; Self::LEN];
        self.put(&mut bytes);
        bytes
    }
}

macro_rules! integers {
    ($($kind:ty),*) => {$(
        impl Wire for $kind {
            const LEN: usize = size_of::<$kind>();
            fn put(&self, bytes: &mut [u8]) {
                bytes[..Self::LEN].copy_from_slice(&self.to_le_bytes());
            }
            fn get(bytes: &[u8]) -> $kind {
                <$kind>::from_le_bytes(std::array::from_fn(|index| bytes[index]))
            }
        }
    )*};
}

integers!(u8, u32, u64, i64);

impl<T: Wire, const N: usize> Wire for [T; N] {
    const LEN: usize = N * T::LEN;
    fn put(&self, bytes: &mut [u8]) {
        for (index, item) in self.iter().enumerate() {
            item.put(&mut bytes[index * T::LEN..]);
        }
    }
    fn get(bytes: &[u8]) -> [T; N] {
        std::array::from_fn(|index| T::get(&bytes[index * T::LEN..]))
    }
}

/// Every field of a structure, each once; the compiler refuses a list that leaves one out.
macro_rules! structures {
    ($($kind:ident { $($field:ident),* $(,)? })*) => {$(
        impl Wire for $kind {
            const LEN: usize = size_of::<$kind>();
            fn put(&self, bytes: &mut [u8]) {
                $(self.$field.put(&mut bytes[offset_of!($kind, $field)..]);)*
            }
            fn get(bytes: &[u8]) -> $kind {
                $kind { $($field: Wire::get(&bytes[offset_of!($kind, $field)..])),* }
            }
        }
    )*};
}

structures! {
    Action { handler, flags, restorer, mask }
    CodeAt { before, behind }
    List { first, count }
    Region { start, len }
    ReturnSlot { return_address, sp, site, trampoline, session_flags, session_cookies }
    ProgramRuntime { id, flags, entry }
    LinkRuntime { shared, cookie, func_ip, entry, link_id, prog_id, flags, pid, semaphore, hits, missed }
    SiteRuntime { address, stub, stub_len, len, original, patched, links, link_count, flags }
    UnwindText { start, end, file_offset, base, rows, row_count, build_id_len, build_id, reserved, device, inode }
    MapShape { map_type, key_size, value_size, max_entries, map_flags, cpus }
    MapHandle {
        base, mapped_len, data, stride, cpu_stride, mask, offsets, shape, id, seed, pool_len, owner_offset, key_offset,
        value_offset,
    }
    TaskLayout {
        size, pid, tgid, comm, real_parent, parent, group_leader, start_time, start_boottime, nsproxy, exit_code,
        nsproxy_mnt_ns, nsproxy_pid_ns_for_children, nsproxy_size, mnt_ns_inum, mnt_ns_size,
    }
}

/// The fields of a [`ProcessBlock`] before its regions.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "the fields are ProcessBlock's")]
pub(crate) struct BlockHead {
    pub(crate) locator: u32,
    pub(crate) store_uuid: [u64; 2],
    pub(crate) vdso_clock_gettime: u64,
    pub(crate) rseq_offset: i64,
    pub(crate) tid_offset: u32,
    pub(crate) flags: u32,
    pub(crate) cpus: u32,
    pub(crate) map_count: u32,
    pub(crate) cpu_slots: u64,
    pub(crate) threads: u64,
    pub(crate) maps: u64,
    pub(crate) programs: u64,
    pub(crate) program_count: u32,
    pub(crate) site_count: u32,
    pub(crate) sites: u64,
    pub(crate) trace: u64,
    pub(crate) texts: u64,
    pub(crate) text_count: u32,
    pub(crate) fork_page: u64,
    pub(crate) task: u64,
    pub(crate) task_len: u32,
    pub(crate) region_count: u32,
    pub(crate) task_layout: TaskLayout,
    pub(crate) pool: u64,
    pub(crate) reserve: u64,
    pub(crate) reserve_end: u64,
    pub(crate) system_calls: u64,
    pub(crate) guard: u64,
}

/// Bytes of the block before its regions. They lie in one page, so one write changes all of them or none.
pub(crate) const HEAD_LEN: usize = offset_of!(ProcessBlock, regions);
const _: () = assert!(HEAD_LEN <= 4096);

/// Where region `index` lies in the block.
pub(crate) fn region_offset(index: usize) -> u64 {
    (HEAD_LEN + index * Region::LEN) as u64
}

/// Bytes of the whole block.
pub(crate) const BLOCK_LEN: u64 = size_of::<ProcessBlock>() as u64;

macro_rules! head_fields {
    ($macro:ident!($($argument:tt)*)) => {
        $macro!($($argument)* texts, text_count, locator, store_uuid, vdso_clock_gettime, rseq_offset, tid_offset, flags, cpus, map_count,
            cpu_slots, threads, maps, programs, program_count, site_count, sites, trace, fork_page, task, task_len,
            region_count, task_layout, pool, reserve, reserve_end, system_calls, guard)
    };
}

macro_rules! put_fields {
    ($head:ident, $bytes:ident; $($field:ident),*) => {
        $($head.$field.put(&mut $bytes[offset_of!(ProcessBlock, $field)..]);)*
    };
}

macro_rules! get_fields {
    ($bytes:ident; $($field:ident),*) => {
        BlockHead { $($field: Wire::get(&$bytes[offset_of!(ProcessBlock, $field)..])),* }
    };
}

impl BlockHead {
    /// The bytes, with magic and version.
    pub(crate) fn to_bytes(&self) -> [u8; HEAD_LEN] {
        let mut bytes = [0; HEAD_LEN];
        PROCESS_MAGIC.put(&mut bytes);
        ABI_VERSION.put(&mut bytes[offset_of!(ProcessBlock, version)..]);
        head_fields!(put_fields!(self, bytes;));
        bytes
    }

    /// Reads a head; `Err` holds the version of another one.
    pub(crate) fn from_bytes(bytes: &[u8; HEAD_LEN]) -> Result<BlockHead, NoBlock> {
        if u64::get(bytes) != PROCESS_MAGIC {
            return Err(NoBlock::NotOne);
        }
        let version = u32::get(&bytes[offset_of!(ProcessBlock, version)..]);
        if version != ABI_VERSION {
            return Err(NoBlock::Version(version));
        }
        let head: BlockHead = head_fields!(get_fields!(bytes;));
        if head.region_count as usize > REGIONS_MAX {
            return Err(NoBlock::Damaged);
        }
        Ok(head)
    }
}

/// Why bytes are not a block that this version can use.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum NoBlock {
    /// Something else.
    NotOne,
    /// Made by another version.
    Version(u32),
    /// A count is out of range.
    Damaged,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn structures_survive() {
        let site = SiteRuntime {
            address: 1,
            stub: 2,
            stub_len: 3,
            len: 5,
            original: std::array::from_fn(|index| index as u8),
            patched: [0xe9; 16],
            links: 6,
            link_count: 7,
            flags: 8,
        };
        let back = SiteRuntime::get(&site.to_bytes());
        assert_eq!((back.address, back.original, back.links, back.flags), (1, site.original, 6, 8));
        let handle = MapHandle { base: 9, offsets: [1, 2, 3, 4], seed: 5, ..MapHandle::default() };
        let back = MapHandle::get(&handle.to_bytes());
        assert_eq!((back.base, back.offsets, back.seed), (9, [1, 2, 3, 4], 5));
    }

    #[test]
    fn heads_are_checked() {
        let head = BlockHead::from_bytes(&[0; HEAD_LEN]);
        assert_eq!(head, Err(NoBlock::NotOne));
        let mut bytes = [0; HEAD_LEN];
        PROCESS_MAGIC.put(&mut bytes);
        assert_eq!(BlockHead::from_bytes(&bytes), Err(NoBlock::Version(0)));
        ABI_VERSION.put(&mut bytes[8..]);
        let head = BlockHead::from_bytes(&bytes).unwrap();
        assert_eq!(BlockHead::from_bytes(&head.to_bytes()), Ok(head));
        u32::MAX.put(&mut bytes[offset_of!(ProcessBlock, region_count)..]);
        assert_eq!(BlockHead::from_bytes(&bytes), Err(NoBlock::Damaged));
    }
}
