//! What the log says of a program before it is explored: where subprograms start, which registers are live.

use crate::code::Code;
use crate::liveness::{self, Regs};
use crate::program::Program;
use beeline_helpers::kernel_only;
use beeline_helpers::proto::ArgKind;
use beeline_isa::{Call, Insn, Op, opcode};

/// Slots where subprograms start, in order; `None` when a call leads out of the program.
///
/// This is from the bare instructions: they need not make sense yet.
pub(super) fn subprogram_starts(program: &Program) -> Option<Vec<usize>> {
    let mut starts = vec![0];
    for (pc, insn) in program.insns.iter().enumerate() {
        if refers_to_subprogram(insn) {
            let to = pc as i64 + 1 + i64::from(insn.imm);
            starts.push(usize::try_from(to).ok().filter(|&to| to < program.insns.len())?);
        }
    }
    starts.sort_unstable();
    starts.dedup();
    Some(starts)
}

fn refers_to_subprogram(insn: &Insn) -> bool {
    insn.code == opcode::JMP | opcode::CALL && insn.src() == opcode::PSEUDO_CALL
        || insn.code == opcode::LD_IMM64 && insn.src() == opcode::PSEUDO_FUNC
}

/// The table of live registers: each instruction with those that something after it may still read.
pub(crate) fn table(program: &Program, code: &Code) -> String {
    let live = liveness::analyse_with(code, |op| effect(program, op));
    let mut text = String::from("Live regs before insn:\n");
    for (pc, live) in live.iter().enumerate().filter(|(pc, _)| code.op(*pc).is_some()) {
        let registers: String = (0..10u8)
            .map(|number| if live & 1 << number != 0 { char::from(b'0' + number) } else { '.' })
            .collect();
        text.push_str(&format!("    {pc:3}: {registers} {}\n", super::instruction(program, pc)));
    }
    text
}

/// As [`liveness::effect`], but a helper reads the arguments of its prototype alone.
fn effect(program: &Program, op: Op) -> (Regs, Regs) {
    let (reads, writes) = liveness::effect(op);
    let Op::Call(Call::Helper(id)) = op else { return (reads, writes) };
    let proto = u32::try_from(id).ok().and_then(|id| kernel_only::proto(id, program.prog_type.0));
    let count = proto.map(|proto| proto.args.iter().take_while(|arg| **arg != ArgKind::None).count());
    (count.map_or(reads, |count| ((1 << count) - 1) << 1), writes)
}
