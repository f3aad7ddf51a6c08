//! Helpers that call programs: tail calls and callbacks.

use crate::{error, identity, process};
use beeline_abi::errno::{E2BIG, EINVAL};
use beeline_abi::link::LinkRuntime;
use beeline_abi::map::{MapHandle, MapType};
use beeline_abi::process::{ProcessBlock, ProgramRuntime};
use beeline_abi::run::RunContext;
use beeline_maps::{for_each, prog_array};

/// A callback of a program: compiled code with a helper's signature.
pub(crate) type Callback = unsafe extern "sysv64" fn(u64, u64, u64, u64, u64, *mut RunContext) -> u64;

/// Most iterations of `bpf_loop` (`BPF_MAX_LOOPS`).
pub(crate) const LOOPS_MAX: u32 = 8 << 20;

/// The callback at this address.
///
/// # Safety
///
/// The verifier proved that it is a subprogram of the calling program.
pub(crate) unsafe fn callback(address: u64) -> Callback {
    // SAFETY: the caller's contract.
    unsafe { core::mem::transmute::<u64, Callback>(address) }
}

/// `long bpf_tail_call(void *ctx, struct bpf_map *prog_array_map, u32 index)`: the address of the other program's
/// entry, which compiled code then calls in place of the rest of this one; 0 when there is none, and the program goes on.
///
/// A program that needs a CPU is not entered by a run that claimed none.
pub(crate) unsafe extern "sysv64" fn tail_call(
    _: u64,
    map: u64,
    index: u64,
    _: u64,
    _: u64,
    run: *mut RunContext,
) -> u64 {
    // SAFETY: the linker gave the program a validated handle; the run is the caller's.
    unsafe {
        let map = &*(map as *const MapHandle);
        if map.shape.map_type != MapType::PROG_ARRAY || (*run).tail_calls >= RunContext::TAIL_CALLS_MAX {
            return 0;
        }
        let id = prog_array::program_id(map, index);
        let Some(program) = process(run).and_then(|block| find_program(block, id)) else { return 0 };
        if program.flags & LinkRuntime::NEEDS_CPU != 0 && (*run).access.cpu == RunContext::NO_CPU {
            return 0;
        }
        (*run).tail_calls += 1;
        program.entry
    }
}

/// The program with this id in the process's table, which is in order of ids.
fn find_program(block: &ProcessBlock, id: u32) -> Option<&ProgramRuntime> {
    let (mut low, mut high) = (0u64, u64::from(block.program_count));
    while low < high {
        let middle = low + (high - low) / 2;
        // SAFETY: the injector wrote `program_count` entries.
        let program = unsafe { &*(block.programs as *const ProgramRuntime).add(middle as usize) };
        match program.id {
            found if found == id => return (program.entry != 0).then_some(program),
            found if found < id => low = middle + 1,
            _ => high = middle,
        }
    }
    None
}

/// `long bpf_loop(u32 nr_loops, void *callback_fn, void *callback_ctx, u64 flags)`: iterations made; the callback ends
/// the loop by returning non-zero.
///
/// Errors: `-EINVAL` for flags, `-E2BIG` for more than 2^23 iterations.
pub(crate) unsafe extern "sysv64" fn bpf_loop(
    count: u64,
    function: u64,
    context: u64,
    flags: u64,
    _: u64,
    run: *mut RunContext,
) -> u64 {
    let count = count as u32;
    if flags != 0 {
        return error(EINVAL);
    }
    if count > LOOPS_MAX {
        return error(E2BIG);
    }
    // SAFETY: the verifier proved the callback.
    let function = unsafe { callback(function) };
    let mut i = 0u64;
    while i < u64::from(count) {
        // SAFETY: as above.
        let stop = unsafe { function(i, context, 0, 0, 0, run) };
        i += 1;
        if stop != 0 {
            break;
        }
    }
    i
}

/// `long bpf_for_each_map_elem(struct bpf_map *map, void *callback_fn, void *callback_ctx, u64 flags)`: elements visited;
/// the callback ends it by returning non-zero.
///
/// Errors: `-EINVAL` for flags, `-EOPNOTSUPP` for a map without elements to visit.
pub(crate) unsafe extern "sysv64" fn for_each_map_elem(
    map: u64,
    function: u64,
    context: u64,
    flags: u64,
    _: u64,
    run: *mut RunContext,
) -> u64 {
    // SAFETY: the linker gave the program a validated handle, the verifier proved the callback. The access is a copy: the
    // callback may renew the run's.
    unsafe {
        let access = *identity::access(run);
        let function = callback(function);
        for_each::for_each(&*(map as *const MapHandle), &access, flags, &mut |key, value| {
            function(map, key as u64, value as u64, context, 0, run) == 0
        }) as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::boxed::Box;

    unsafe extern "sysv64" fn add_until_five(
        i: u64,
        context: u64,
        _: u64,
        _: u64,
        _: u64,
        _: *mut RunContext,
    ) -> u64 {
        // SAFETY: the test passes a word.
        unsafe { *(context as *mut u64) += i };
        u64::from(i == 5)
    }

    #[test]
    fn loops() {
        let mut run = RunContext::default();
        let mut sum = 0u64;
        let context = &raw mut sum as u64;
        let function = add_until_five as Callback as usize as u64;
        // SAFETY: the callback takes the word's address.
        let mut call =
            |count, flags| unsafe { bpf_loop(count, function, context, flags, 0, &mut run) as i64 };
        assert_eq!(call(3, 0), 3);
        assert_eq!(call(100, 0), 6);
        assert_eq!(call(0, 0), 0);
        assert_eq!(call(1 << 32, 0), 0, "the count has 32 bits");
        assert_eq!(call((8 << 20) + 1, 0), -E2BIG);
        assert_eq!(call(1, 1), -EINVAL);
        assert_eq!(sum, 3 + 15);
    }

    #[test]
    fn tail_calls() {
        let data = [0u32, 0, 7, 0, 9, 0, 8, 0];
        let programs =
            [(3, 0x300), (7, 0x700), (9, 0x900)].map(|(id, entry)| ProgramRuntime { id, flags: 0, entry });
        // SAFETY: all fields may be zero.
        let mut block = unsafe { Box::new(core::mem::zeroed::<ProcessBlock>()) };
        block.programs = programs.as_ptr() as u64;
        block.program_count = 3;
        let mut map = MapHandle {
            data: data.as_ptr() as u64,
            stride: 8,
            mapped_len: 4096 + 32,
            ..MapHandle::default()
        };
        map.shape.map_type = MapType::PROG_ARRAY;
        map.shape.max_entries = 4;
        let mut run = RunContext { process: &raw const *block as u64, ..RunContext::default() };
        // SAFETY: handle and run are valid.
        let call =
            |index, run: &mut RunContext| unsafe { tail_call(0, &raw const map as u64, index, 0, 0, run) };
        assert_eq!([0, 1, 2, 3, 4].map(|index| call(index, &mut run)), [0, 0x700, 0x900, 0, 0]);
        assert_eq!(run.tail_calls, 2);
        run.tail_calls = 32;
        assert_eq!([call(1, &mut run), call(1, &mut run)], [0x700, 0], "33 and no more");
        run = RunContext::default();
        assert_eq!(call(1, &mut run), 0, "no process, no programs");
    }
}
