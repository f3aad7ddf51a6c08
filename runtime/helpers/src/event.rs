//! Events to user space: ring buffers and perf buffers.

use crate::{identity, process};
use beeline_abi::map::{MapHandle, MapType};
use beeline_abi::run::RunContext;
use beeline_maps::{perf_event_array, ringbuf};

/// `long bpf_perf_event_output(void *ctx, struct bpf_map *map, u64 flags, void *data, u64 size)`: to the ring of the CPU
/// that `flags` names, which must be the run's own.
///
/// Errors: those of `perf_event_array::output`.
pub(crate) unsafe extern "sysv64" fn perf_event_output(
    _: u64,
    map: u64,
    flags: u64,
    data: u64,
    size: u64,
    run: *mut RunContext,
) -> u64 {
    // SAFETY: the linker gave the program a validated handle, the verifier proved `size` readable bytes, the stub claimed
    // the CPU.
    unsafe {
        let access = identity::access(run);
        perf_event_array::output(&*(map as *const MapHandle), access, data as *const u8, size, flags) as u64
    }
}

/// `long bpf_ringbuf_output(void *ringbuf, void *data, u64 size, u64 flags)`.
///
/// Errors: `-EINVAL` for other flags, `-EAGAIN` when there is no room.
pub(crate) unsafe extern "sysv64" fn ringbuf_output(
    map: u64,
    data: u64,
    size: u64,
    flags: u64,
    _: u64,
    run: *mut RunContext,
) -> u64 {
    // SAFETY: the linker gave the program a validated handle, the verifier proved `size` readable bytes.
    unsafe {
        let access = identity::access(run);
        ringbuf::output(&*(map as *const MapHandle), access, data as *const u8, size, flags) as u64
    }
}

/// `void *bpf_ringbuf_reserve(void *ringbuf, u64 size, u64 flags)`: the address of a record, or 0.
pub(crate) unsafe extern "sysv64" fn ringbuf_reserve(
    map: u64,
    size: u64,
    flags: u64,
    _: u64,
    _: u64,
    run: *mut RunContext,
) -> u64 {
    // SAFETY: the linker gave the program a validated handle; the run is the caller's.
    unsafe {
        let access = identity::access(run);
        let record = ringbuf::reserve(&*(map as *const MapHandle), access, size, flags);
        remember(run, map);
        record as u64
    }
}

/// Puts a ring first among those that the run knows.
unsafe fn remember(run: *mut RunContext, map: u64) {
    // SAFETY: the caller's run.
    let rings = unsafe { &mut (*run).rings };
    let mut carried = map;
    for ring in rings {
        let displaced = core::mem::replace(ring, carried);
        if displaced == map {
            return;
        }
        carried = displaced;
    }
}

/// The ring that a record lies in: one of those that the run knows, else one of the process's.
unsafe fn ring_of<'a>(run: *const RunContext, record: u64) -> Option<&'a MapHandle> {
    let holds = |map: &&MapHandle| {
        map.shape.map_type == MapType::RINGBUF
            && record.wrapping_sub(map.data) < map.mapped_len.wrapping_sub(map.data.wrapping_sub(map.base))
    };
    // SAFETY: the caller's run; handles live as long as the process's map table, or the test run.
    unsafe {
        let known = (*run).rings.iter().filter_map(|&ring| (ring as *const MapHandle).as_ref()).find(holds);
        known.or_else(|| {
            let block = process(run)?;
            let maps = block.maps as *const MapHandle;
            (0..block.map_count as usize).map(|index| &*maps.add(index)).find(holds)
        })
    }
}

/// `void bpf_ringbuf_submit(void *data, u64 flags)`.
pub(crate) unsafe extern "sysv64" fn ringbuf_submit(
    record: u64,
    flags: u64,
    _: u64,
    _: u64,
    _: u64,
    run: *mut RunContext,
) -> u64 {
    // SAFETY: the verifier proved that this run reserved the record and has not committed it.
    unsafe {
        if let Some(map) = ring_of(run, record) {
            ringbuf::submit(map, identity::access(run), record as *mut u8, flags);
        }
    }
    0
}

/// `void bpf_ringbuf_discard(void *data, u64 flags)`.
pub(crate) unsafe extern "sysv64" fn ringbuf_discard(
    record: u64,
    flags: u64,
    _: u64,
    _: u64,
    _: u64,
    run: *mut RunContext,
) -> u64 {
    // SAFETY: as in `ringbuf_submit`.
    unsafe {
        if let Some(map) = ring_of(run, record) {
            ringbuf::discard(map, identity::access(run), record as *mut u8, flags);
        }
    }
    0
}

/// `u64 bpf_ringbuf_query(void *ringbuf, u64 flags)`: unread bytes, size, consumer or producer position; 0 for others.
pub(crate) unsafe extern "sysv64" fn ringbuf_query(
    map: u64,
    what: u64,
    _: u64,
    _: u64,
    _: u64,
    _: *mut RunContext,
) -> u64 {
    // SAFETY: the linker gave the program a validated handle.
    unsafe { ringbuf::query(&*(map as *const MapHandle), what) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ring(data: u64) -> MapHandle {
        let mut map =
            MapHandle { base: data - 12288, data, mapped_len: 12288 + 8192, ..MapHandle::default() };
        map.shape.map_type = MapType::RINGBUF;
        map
    }

    #[test]
    fn records_find_their_ring() {
        let rings = [0x10_0000u64, 0x20_0000, 0x30_0000, 0x40_0000, 0x50_0000].map(ring);
        let mut run = RunContext::default();
        // SAFETY: the handles outlive the run.
        unsafe {
            for ring in &rings {
                remember(&mut run, &raw const *ring as u64);
            }
            let found = |record| ring_of(&raw const run, record).map(|map: &MapHandle| map.data);
            assert_eq!(found(0x50_0008), Some(0x50_0000));
            assert_eq!(found(0x20_1fff), Some(0x20_0000));
            assert_eq!(found(0x20_2000), None);
            assert_eq!(found(0x1f_ffff), None);
            assert_eq!(found(0x10_0008), None, "forgotten, and there is no process");
            let second = &raw const rings[1] as u64;
            remember(&mut run, second);
            assert_eq!(run.rings[0], second);
            assert_eq!(run.rings.iter().filter(|&&ring| ring == second).count(), 1);
        }
    }
}
