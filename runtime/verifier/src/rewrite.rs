//! The instructions as they are executed, where that is not as they are written. Each keeps its slot.

use crate::facts::{Facts, MapField, Through};
use crate::program::Program;
use beeline_isa::{Insn, opcode};

/// The program's instructions with loads from kernel objects as probes, and loads from the fields of maps as loads from
/// where these fields lie here, calls of kernel functions as calls of the functions that stand for them.
pub(crate) fn executable(program: &Program, facts: &Facts) -> Vec<Insn> {
    let mut insns = program.insns.clone();
    for (&pc, &through) in &facts.through {
        let Some(insn) = insns.get_mut(pc) else { continue };
        if through == Through::Object && insn.code & opcode::CLASS_MASK == opcode::LDX {
            *insn = probe(*insn);
        }
    }
    for (&pc, &field) in &facts.map_fields {
        let Some(insn) = insns.get_mut(pc) else { continue };
        *insn = match field {
            MapField::Handle(off) => Insn { off, ..*insn },
            MapField::Zero => {
                Insn { code: opcode::ALU64 | opcode::MOV, regs: insn.regs & 0xf, off: 0, imm: 0 }
            }
        };
    }
    for (&pc, &id) in &facts.kfuncs {
        if let Some(insn) = insns.get_mut(pc) {
            *insn = Insn { code: opcode::JMP | opcode::CALL, regs: 0, off: 0, imm: id as i32 };
        }
    }
    insns
}

/// The load, of an address that may be bad.
fn probe(insn: Insn) -> Insn {
    let signed = insn.code & opcode::MODE_MASK == opcode::MEMSX;
    let mode = if signed { opcode::PROBE_MEMSX } else { opcode::PROBE_MEM };
    Insn { code: insn.code & !opcode::MODE_MASK | mode, ..insn }
}
