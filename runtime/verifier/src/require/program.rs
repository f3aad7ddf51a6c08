//! What a program as a whole requires.

use crate::context;
use crate::program::{MapInfo, ProgType, Program, SpecialKind};
use crate::refusal::{Checked, refuse};
use beeline_abi::map::MapType;
use beeline_isa::{Insn, opcode};

/// The program's type is one whose context is known.
pub(crate) fn check(program: &Program) -> Checked {
    if !context::is_known(program.prog_type) {
        refuse!("program type {} is not supported in userspace", program.prog_type.0);
    }
    let used = |index: &usize| program.insns.iter().any(|insn| names_map(insn, *index));
    (0..program.maps.len()).filter(used).try_for_each(|index| suits(program, &program.maps[index]))
}

/// The instruction refers to the map with this index.
fn names_map(insn: &Insn, index: usize) -> bool {
    let names = matches!(insn.src(), opcode::PSEUDO_MAP_FD | opcode::PSEUDO_MAP_VALUE);
    insn.is_wide() && names && usize::try_from(insn.imm) == Ok(index)
}

/// Programs that run wherever the kernel is (`is_tracing_prog_type`).
const TRACING: [ProgType; 5] = [
    ProgType::KPROBE,
    ProgType::TRACEPOINT,
    ProgType::PERF_EVENT,
    ProgType::RAW_TRACEPOINT,
    ProgType::RAW_TRACEPOINT_WRITABLE,
];

/// Maps that a program may use while it can be put to sleep.
const SLEEPABLE_MAPS: [u32; 12] = [
    MapType::HASH,
    MapType::LRU_HASH,
    MapType::ARRAY,
    MapType::PERCPU_HASH,
    MapType::PERCPU_ARRAY,
    MapType::LRU_PERCPU_HASH,
    MapType::ARRAY_OF_MAPS,
    MapType::HASH_OF_MAPS,
    MapType::RINGBUF,
    MapType::USER_RINGBUF,
    MapType::QUEUE,
    MapType::STACK,
];

/// The program may use the map (`check_map_prog_compatibility`).
fn suits(program: &Program, map: &MapInfo) -> Checked {
    for field in &map.special {
        let name = field.kind.name();
        if field.kind == SpecialKind::SpinLock && program.prog_type == ProgType::SOCKET_FILTER {
            refuse!("socket filter progs cannot use {name} yet");
        }
        if TRACING.contains(&program.prog_type) {
            refuse!("tracing progs cannot use {name} yet");
        }
    }
    if program.sleepable && !SLEEPABLE_MAPS.contains(&map.shape.map_type) {
        refuse!("Sleepable programs can only use array, hash, ringbuf and local storage maps");
    }
    Ok(())
}
