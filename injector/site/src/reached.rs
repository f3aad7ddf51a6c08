//! Code that certainly runs, where neither symbols nor unwind entries show functions: what direct branches lead to from where it begins
//! for certain.

use crate::binary::Binary;
use crate::plan::ends_flow;
use crate::symbols::SymbolKind;
use iced_x86::{Decoder, DecoderOptions, FlowControl, Instruction, OpKind};
use std::collections::HashSet;

/// Addresses of the instructions that direct branches lead to, from the entry point and all functions that are known.
pub(crate) fn certain(binary: &Binary) -> HashSet<u64> {
    let functions = binary.symbols().iter().filter(|symbol| symbol.kind == SymbolKind::Function);
    let known = functions.map(|symbol| symbol.vaddr).chain(binary.unwind().functions().map(|it| it.start));
    from(binary, known.chain([binary.entry()]).collect())
}

/// The same, from everything whose address is taken, or stands in what looks like a jump table: some of it may be data.
pub(crate) fn likely(binary: &Binary) -> HashSet<u64> {
    from(binary, binary.analysis().targets().collect())
}

fn from(binary: &Binary, mut open: Vec<u64>) -> HashSet<u64> {
    let mut reached = HashSet::new();
    let mut instruction = Instruction::default();
    while let Some(start) = open.pop() {
        if reached.contains(&start) || !binary.is_executable(start) {
            continue;
        }
        let Some(bytes) = binary.bytes_from(start) else { continue };
        let mut decoder = Decoder::with_ip(64, bytes, start, DecoderOptions::NONE);
        while decoder.can_decode() {
            decoder.decode_out(&mut instruction);
            if instruction.is_invalid() || !reached.insert(instruction.ip()) {
                break;
            }
            if instruction.op_count() > 0 && instruction.op0_kind() == OpKind::NearBranch64 {
                open.push(instruction.near_branch_target());
            }
            if ends_flow(&instruction) || instruction.flow_control() == FlowControl::Interrupt {
                break;
            }
        }
    }
    reached
}
