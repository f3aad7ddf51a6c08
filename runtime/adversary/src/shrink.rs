//! Makes a program smaller as long as something stays true of it.

use beeline_isa::{Insn, opcode as o};
use beeline_verifier::Program;

/// Most candidates that are looked at.
const ATTEMPTS_MAX: u32 = 5_000;

/// The smallest program that was found for which `holds`.
pub fn shrink(program: &Program, holds: impl Fn(&Program) -> bool) -> Program {
    let mut best = program.clone();
    let mut left = ATTEMPTS_MAX;
    let mut attempt = |best: &mut Program, candidate: Program| {
        left = left.saturating_sub(1);
        let better = left > 0 && holds(&candidate);
        if better {
            *best = candidate;
        }
        better
    };
    loop {
        let mut progress = false;
        for len in [32, 8, 4, 2, 1] {
            let mut at = 0;
            while at < best.insns.len() {
                let cut = without(&best, at, len);
                if !cut.is_some_and(|candidate| attempt(&mut best, candidate)) {
                    at += 1;
                } else {
                    progress = true;
                }
            }
        }
        for at in 0..best.insns.len() {
            for candidate in simpler(&best, at) {
                if attempt(&mut best, candidate) {
                    progress = true;
                    break;
                }
            }
        }
        if !progress {
            return best;
        }
    }
}

/// The program with one instruction made simpler.
fn simpler(program: &Program, at: usize) -> Vec<Program> {
    let insn = program.insns[at];
    let changed = |insn: Insn| {
        let mut candidate = program.clone();
        candidate.insns[at] = insn;
        candidate
    };
    let mut all = Vec::new();
    let is_second_half = at > 0 && program.insns[at - 1].is_wide();
    if !is_second_half && insn.code & 7 != o::JMP && insn.imm != 0 && insn.src() == 0 && !insn.is_wide() {
        let mut imm = insn.imm;
        while imm != 0 {
            imm /= 2;
            all.push(changed(Insn { imm, ..insn }));
        }
        all.reverse();
    }
    all
}

/// True for instructions whose target is in `off`.
fn jumps_by_off(insn: Insn) -> bool {
    let (class, op) = (insn.code & 7, insn.code & o::OP_MASK);
    matches!(class, o::JMP | o::JMP32) && !matches!(op, o::CALL | o::EXIT) && insn.code != o::JMP32 | o::JA
}

/// True for instructions whose target is in `imm`.
fn jumps_by_imm(insn: Insn) -> bool {
    insn.code == o::JMP | o::CALL && insn.src() == o::PSEUDO_CALL
        || insn.code == o::LD_IMM64 && insn.src() == o::PSEUDO_FUNC
        || insn.code == o::JMP32 | o::JA
}

/// The program without `len` instructions from `at` on, all jumps aimed anew. None when that cannot be.
fn without(program: &Program, at: usize, len: usize) -> Option<Program> {
    let end = at + len;
    if end > program.insns.len() || len >= program.insns.len() {
        return None;
    }
    let wide = |slot: usize| slot > 0 && program.insns.get(slot - 1).is_some_and(|insn| insn.is_wide());
    if wide(at) || wide(end) {
        return None;
    }
    let moved = |slot: i64| {
        let slot = slot.max(0) as usize;
        (if slot >= end { slot - len } else { slot.min(at) }) as i64
    };
    let mut candidate = program.clone();
    for (slot, insn) in candidate.insns.iter_mut().enumerate() {
        if wide(slot) {
            continue;
        }
        let next = slot as i64 + 1;
        if jumps_by_off(*insn) {
            insn.off = (moved(next + i64::from(insn.off)) - moved(next)) as i16;
        } else if jumps_by_imm(*insn) {
            insn.imm = (moved(next + i64::from(insn.imm)) - moved(next)) as i32;
        }
    }
    candidate.insns.drain(at..end);
    for info in &mut candidate.subprograms {
        info.start = moved(info.start.into()) as u32;
    }
    Some(candidate)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_matters_stays() {
        let exit = Insn::new(o::JMP | o::EXIT, 0, 0, 0, 0);
        let mov = |imm| Insn::new(o::ALU64 | o::MOV, 0, 0, 0, imm);
        let mut insns = vec![Insn::new(o::JMP | o::JEQ, 1, 0, 6, 0)];
        insns.extend((0..6).map(mov));
        insns.extend([mov(77), exit]);
        let program = Program { insns, ..Program::default() };
        let small = shrink(&program, |candidate| {
            let jump = candidate.insns.first().copied().unwrap_or_default();
            let target = candidate.insns.get(1 + jump.off as usize).copied().unwrap_or_default();
            jump.code == o::JMP | o::JEQ && target == mov(77)
        });
        assert_eq!(small.insns.len(), 2, "{:?}", small.insns);
    }
}
