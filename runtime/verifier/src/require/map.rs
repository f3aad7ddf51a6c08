//! Which helpers work on which maps.

use crate::explore::Explorer;
use crate::program::MapInfo;
use crate::refusal::{Checked, refuse};
use crate::state::MapRef;
use beeline_abi::map::{MapFlags, MapType};
use beeline_helpers::proto::HelperProto;

/// Helpers that read or write a map of one kind only, by id.
mod helper {
    pub(super) const LOOKUP: u32 = 1;
    pub(super) const UPDATE: u32 = 2;
    pub(super) const DELETE: u32 = 3;
    pub(super) const TAIL_CALL: u32 = 12;
    pub(super) const PERF_EVENT_READ: u32 = 22;
    pub(super) const PERF_EVENT_OUTPUT: u32 = 25;
    pub(super) const GET_STACKID: u32 = 27;
    pub(super) const SKB_UNDER_CGROUP: u32 = 33;
    pub(super) const CURRENT_TASK_UNDER_CGROUP: u32 = 37;
    pub(super) const REDIRECT_MAP: u32 = 51;
    pub(super) const PERF_EVENT_READ_VALUE: u32 = 55;
    pub(super) const PUSH: u32 = 87;
    pub(super) const POP: u32 = 88;
    pub(super) const PEEK: u32 = 89;
    pub(super) const RINGBUF_OUTPUT: u32 = 130;
    pub(super) const RINGBUF_RESERVE: u32 = 131;
    pub(super) const RINGBUF_QUERY: u32 = 134;
    pub(super) const FOR_EACH_MAP_ELEM: u32 = 164;
    pub(super) const LOOKUP_PERCPU: u32 = 195;
    pub(super) const RINGBUF_RESERVE_DYNPTR: u32 = 198;
    pub(super) const USER_RINGBUF_DRAIN: u32 = 209;
}

/// Maps of values that are looked up by key.
const KEYED: [u32; 7] = [
    MapType::HASH,
    MapType::ARRAY,
    MapType::PERCPU_HASH,
    MapType::PERCPU_ARRAY,
    MapType::LRU_HASH,
    MapType::LRU_PERCPU_HASH,
    MapType::LPM_TRIE,
];

/// Maps with a copy of every value for every CPU.
const PERCPU: [u32; 3] = [MapType::PERCPU_HASH, MapType::PERCPU_ARRAY, MapType::LRU_PERCPU_HASH];

/// `BPF_MAP_TYPE_DEVMAP`, `CPUMAP`, `XSKMAP`, `DEVMAP_HASH`.
const REDIRECT_TARGETS: [u32; 4] = [14, 16, 17, 25];

/// True when the helper works on maps of this type (`check_map_func_compatibility`).
fn compatible(id: u32, map_type: u32) -> bool {
    use self::helper as h;
    let keyed = KEYED.contains(&map_type);
    match id {
        h::LOOKUP => keyed || matches!(map_type, MapType::ARRAY_OF_MAPS | MapType::HASH_OF_MAPS),
        h::UPDATE | h::DELETE => keyed,
        h::FOR_EACH_MAP_ELEM => keyed && map_type != MapType::LPM_TRIE,
        h::LOOKUP_PERCPU => PERCPU.contains(&map_type),
        h::TAIL_CALL => map_type == MapType::PROG_ARRAY,
        h::PERF_EVENT_READ | h::PERF_EVENT_OUTPUT | h::PERF_EVENT_READ_VALUE => {
            map_type == MapType::PERF_EVENT_ARRAY
        }
        h::GET_STACKID => map_type == MapType::STACK_TRACE,
        h::CURRENT_TASK_UNDER_CGROUP | h::SKB_UNDER_CGROUP => map_type == MapType::CGROUP_ARRAY,
        h::REDIRECT_MAP => REDIRECT_TARGETS.contains(&map_type),
        h::PUSH | h::PEEK => matches!(map_type, MapType::QUEUE | MapType::STACK | MapType::BLOOM_FILTER),
        h::POP => matches!(map_type, MapType::QUEUE | MapType::STACK),
        h::RINGBUF_OUTPUT | h::RINGBUF_RESERVE | h::RINGBUF_RESERVE_DYNPTR | h::RINGBUF_QUERY => {
            map_type == MapType::RINGBUF
        }
        h::USER_RINGBUF_DRAIN => map_type == MapType::USER_RINGBUF,
        // A helper that is not known here takes no map.
        _ => false,
    }
}

impl Explorer<'_> {
    /// The map that a pointer refers to.
    pub(crate) fn map(&self, map: MapRef) -> Checked<&MapInfo> {
        let Some(info) = self.program.maps.get(map.index as usize) else {
            refuse!("fd {} is not pointing to valid bpf_map", map.index);
        };
        match (&info.inner, map.inner) {
            (_, false) => Ok(info),
            (Some(inner), true) => Ok(inner),
            (None, true) => refuse!("the members of map {} are not known", info.name),
        }
    }

    /// The helper may be called with this map.
    pub(crate) fn map_suits(&mut self, proto: &HelperProto, map: MapRef) -> Checked {
        let shape = self.map(map)?.shape;
        if !compatible(proto.id, shape.map_type) {
            refuse!("cannot pass map_type {} into func {}#{}", shape.map_type, proto.name, proto.id);
        }
        let writes = [helper::UPDATE, helper::DELETE, helper::PUSH, helper::POP].contains(&proto.id);
        if writes && shape.map_flags & MapFlags::RDONLY_PROG != 0 {
            refuse!("write into map forbidden");
        }
        if PERCPU.contains(&shape.map_type) {
            self.facts.cpu = true;
        }
        Ok(())
    }

    /// True when a look-up of `key` in this map always succeeds.
    pub(crate) fn key_exists(&self, map: MapRef, key: u64) -> bool {
        self.map(map).is_ok_and(|info| {
            let shape = info.shape;
            let is_array = matches!(shape.map_type, MapType::ARRAY | MapType::PERCPU_ARRAY);
            // The member of a map of maps may have fewer entries than the one it was made after.
            is_array && !map.inner && shape.key_size == 4 && key < u64::from(shape.max_entries)
        })
    }
}
