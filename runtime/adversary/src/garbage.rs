//! Programs that nobody would write: structured ones with a few fields replaced, and noise.

use crate::numbers::Numbers;
use beeline_isa::{Insn, opcode as o};
use beeline_verifier::{MapInfo, ProgType, Program};

/// Replaces some fields of a program by others, most of them by a little.
pub fn mutate(program: &mut Program, numbers: &mut Numbers) {
    let insns = &mut program.insns;
    for _ in 0..1 + numbers.below(3) {
        let at = numbers.below(insns.len() as u64) as usize;
        let other = numbers.below(insns.len() as u64) as usize;
        let random = numbers.word();
        let insn = &mut insns[at];
        match numbers.below(12) {
            0 => insn.code = random as u8,
            1 => insn.code ^= 1 << (random % 8),
            2 => insn.regs ^= 1 << (random % 8),
            3 => insn.off = insn.off.wrapping_add(random as i16 % 9),
            4..=5 => insn.imm = insn.imm.wrapping_add(random as i32 % 9),
            6 => insn.imm = numbers.interesting() as i32,
            7 => insn.code = insn.code & 0x0f | (random as u8 & 0xf0),
            8 => insn.code ^= o::ALU ^ o::ALU64,
            9 => *insn = Insn::new(o::JMP | o::JA, 0, 0, 0, 0),
            10 => insns[at] = insns[other],
            _ => insns.swap(at, other),
        }
    }
}

/// Instructions without a plan: most of them decode.
pub fn noise(numbers: &mut Numbers, maps: &[MapInfo]) -> Program {
    const CODES: [u8; 24] = [
        0x07, 0x0f, 0x05, 0x15, 0x1d, 0x25, 0x55, 0xb7, 0xbf, 0xb4, 0x61, 0x69, 0x71, 0x79, 0x62, 0x63, 0x7a,
        0x7b, 0xdb, 0x85, 0x18, 0x95, 0xa5, 0xe5,
    ];
    let len = 1 + numbers.below(40) as usize;
    let mut insns = Vec::with_capacity(len + 1);
    for _ in 0..len {
        let random = numbers.word();
        insns.push(match numbers.below(4) {
            0 => Insn::from_bytes(random.to_le_bytes()),
            _ => {
                let code = numbers.one_of(&CODES);
                let (dst, src) = (random as u8 % 11, (random >> 8) as u8 % 11);
                let (dst, src) = if numbers.percent(50) {
                    (dst, src)
                } else {
                    (dst % 4, if code == 0x85 { 0 } else { src % 4 })
                };
                let off = if numbers.percent(50) { (random >> 16) as i16 % 8 } else { 0 };
                let imm = if numbers.percent(50) { numbers.below(16) as i32 } else { 0 };
                Insn::new(code, dst, src, off, imm)
            }
        });
    }
    if numbers.percent(80) {
        insns.push(Insn::new(o::JMP | o::EXIT, 0, 0, 0, 0));
    }
    let prog_type = numbers.one_of(&[
        ProgType::KPROBE,
        ProgType::XDP,
        ProgType::SCHED_CLS,
        ProgType::SYSCALL,
        ProgType(99),
    ]);
    Program {
        name: "noise".into(),
        prog_type,
        gpl_compatible: true,
        insns,
        maps: maps.to_vec(),
        ..Program::default()
    }
}
