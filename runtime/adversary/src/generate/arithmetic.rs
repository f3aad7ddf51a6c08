//! Numbers: where they come from, what is done to them, how they are bounded.

use super::model::{Base, Model, Thing};
use super::{Generator, maps};
use beeline_isa::opcode as o;
use beeline_verifier::ProgType;

/// A jump whose target comes later, and what is known when it is taken.
pub(super) struct Guard {
    at: usize,
    model: Model,
}

impl Generator {
    /// A number that nobody knows, or a constant.
    pub(super) fn new_number(&mut self, reg: u8) {
        match self.numbers.below(10) {
            0..=3 if self.find(|thing| thing == Thing::Context).is_some() => self.load_context(reg),
            4 => {
                let value = self.numbers.interesting();
                self.wide(reg, 0, value as i32, (value >> 32) as i32);
                self.set(reg, Thing::Number(u32::try_from(value).ok()));
            }
            5..=6 => {
                let value = self.numbers.interesting() as i32;
                self.mov_imm(reg, value);
            }
            7 => {
                let bytes = self.numbers.below(64) as i32;
                let (size, width) = self.numbers.one_of(&[(o::B, 1), (o::H, 2), (o::W, 4), (o::DW, 8)]);
                self.wide(reg, o::PSEUDO_MAP_VALUE, maps::GLOBAL as i32, bytes.min(64 - width));
                let mode = if size != o::DW && self.numbers.percent(25) { o::MEMSX } else { o::MEM };
                self.emit(o::LDX | mode | size, reg, reg, 0, 0);
                self.set(
                    reg,
                    Thing::Number(if width < 4 && mode == o::MEM {
                        Some((1 << (8 * width)) - 1)
                    } else {
                        None
                    }),
                );
            }
            _ => self.random_number(reg),
        }
    }

    fn random_number(&mut self, reg: u8) {
        const SOURCES: [i32; 5] = [5, 7, 8, 14, 15];
        if self.has_locked_scratch() {
            return self.mov_imm(reg, 3);
        }
        let id = self.numbers.one_of(&SOURCES);
        self.emit(o::JMP | o::CALL, 0, 0, 0, id);
        self.model.clobber();
        self.set(0, Thing::ANY);
        if reg != 0 {
            self.mov(reg, 0);
        }
    }

    /// A register that a call would clobber is still needed.
    pub(super) fn has_locked_scratch(&self) -> bool {
        self.locked & 0x3f != 0 || self.model.held.iter().any(|&held| held < 6)
    }

    fn load_context(&mut self, reg: u8) {
        let Some(context) = self.find(|thing| thing == Thing::Context) else { return self.mov_imm(reg, 1) };
        let (size, off) = match self.prog_type {
            ProgType::KPROBE => (self.size(), 8 * self.numbers.below(21) as i16),
            ProgType::TRACEPOINT => (self.size(), 8 + 8 * self.numbers.below(20) as i16),
            ProgType::RAW_TRACEPOINT => (self.size(), 8 * self.numbers.below(12) as i16),
            ProgType::PERF_EVENT => (o::DW, 8 * self.numbers.below(21) as i16),
            ProgType::XDP => (o::W, self.numbers.one_of(&[12, 16])),
            ProgType::SYSCALL => (self.size(), 8 * self.numbers.below(30) as i16),
            _ => (o::W, self.numbers.one_of(&[0, 4, 8, 16, 24, 48, 52, 56])),
        };
        self.emit(o::LDX | o::MEM | size, reg, context, off, 0);
        let most = match size {
            o::B => Some(0xff),
            o::H => Some(0xffff),
            _ => None,
        };
        self.set(reg, Thing::Number(most));
    }

    pub(super) fn size(&mut self) -> u8 {
        self.numbers.one_of(&[o::B, o::H, o::W, o::DW, o::DW])
    }

    /// Some arithmetic.
    pub(super) fn compute(&mut self) {
        for _ in 0..1 + self.numbers.below(4) {
            let reg = self.number();
            if self.locked & 1 << reg == 0 {
                self.operation(reg);
            }
        }
    }

    /// An operation on a number.
    pub(super) fn operation(&mut self, dst: u8) {
        const OPERATIONS: [u8; 13] = [
            o::ADD,
            o::SUB,
            o::MUL,
            o::DIV,
            o::OR,
            o::AND,
            o::LSH,
            o::RSH,
            o::MOD,
            o::XOR,
            o::ARSH,
            o::AND,
            o::ADD,
        ];
        let class = self.numbers.one_of(&[o::ALU, o::ALU64, o::ALU64]);
        match self.numbers.below(12) {
            0 => self.emit(class | o::NEG, dst, 0, 0, 0),
            1 => {
                let bits = self.numbers.one_of(&[16, 32, 64]);
                let code =
                    self.numbers.one_of(&[o::ALU | o::END, o::ALU | o::END | o::SRC_REG, o::ALU64 | o::END]);
                self.emit(code, dst, 0, 0, bits);
            }
            2 => {
                let bits = self.numbers.one_of(&[8, 16, 32]);
                let class = if bits == 32 { o::ALU64 } else { class };
                let src = self.number();
                self.emit(class | o::MOV | o::SRC_REG, dst, src, bits, 0);
            }
            3 => {
                let src = self.number();
                self.emit(o::ALU | o::MOV | o::SRC_REG, dst, src, 0, 0);
            }
            _ => {
                let operation = self.numbers.one_of(&OPERATIONS);
                let divides = matches!(operation, o::DIV | o::MOD);
                let off = i16::from(divides && self.numbers.percent(40));
                self.operand(class, operation, dst, off);
            }
        }
        self.set(dst, Thing::ANY);
    }

    fn operand(&mut self, class: u8, operation: u8, dst: u8, off: i16) {
        let shifts = matches!(operation, o::LSH | o::RSH | o::ARSH);
        if self.numbers.percent(35)
            && let Some(src) = self.find(Thing::is_number)
        {
            return self.emit(class | operation | o::SRC_REG, dst, src, off, 0);
        }
        let width = if class == o::ALU { 32 } else { 64 };
        let imm = match operation {
            _ if shifts && !self.errs() => self.numbers.below(width) as i32,
            o::AND if self.numbers.percent(60) => self.mask(),
            _ => self.numbers.interesting() as i32,
        };
        let imm = if imm == 0 && matches!(operation, o::DIV | o::MOD) && !self.errs() { 3 } else { imm };
        self.emit(class | operation, dst, 0, off, imm);
    }

    fn mask(&mut self) -> i32 {
        let mask = self.numbers.one_of(&[1, 3, 7, 15, 31, 63, 255, 0xf0, 0x18, 0x11, -8, -2, 0x7fff_ffff]);
        if self.numbers.percent(10) { self.numbers.word() as i32 } else { mask }
    }

    /// A copy; now and then one that differs by a constant.
    pub(super) fn copy(&mut self) {
        let Some(src) =
            self.find(|thing| thing != Thing::Nothing && !matches!(thing, Thing::Maybe(Base::Record(_))))
        else {
            return;
        };
        let dst = self.free();
        if dst == src || matches!(self.thing(src), Thing::Pointer { base: Base::Record(_), .. }) {
            return;
        }
        self.mov(dst, src);
        if self.thing(dst).is_number() && self.numbers.percent(50) {
            let by = self.numbers.between(-20, 20) as i32;
            self.emit(o::ALU64 | o::ADD, dst, 0, 0, by);
            self.set(dst, Thing::ANY);
        }
    }

    /// A comparison of the register, to be aimed later.
    pub(super) fn guard(&mut self, code: u8, reg: u8, imm: i32) -> Guard {
        let guard = Guard { at: self.insns.len(), model: self.model.clone() };
        if self.numbers.percent(15) && self.locked & 0x3f == 0 {
            // The same by a register that holds the constant.
            let other =
                (0..6).find(|&other| other != reg && self.model.regs[other as usize] == Thing::Nothing);
            if let Some(other) = other {
                self.mov_imm(other, imm);
                let at = self.insns.len();
                self.emit(code | o::SRC_REG, reg, other, 0, 0);
                return Guard { at, model: self.model.clone() };
            }
        }
        self.emit(code, reg, 0, 0, imm);
        guard
    }

    /// Aims all these here.
    pub(super) fn land(&mut self, guards: Vec<Guard>) {
        for guard in guards {
            self.insns[guard.at].off = (self.insns.len() - guard.at - 1) as i16;
            self.model.meet(&guard.model);
        }
    }

    /// Aims a jump here, that was written in this state.
    pub(super) fn guard_at(&self, at: usize) -> Guard {
        Guard { at, model: self.model.clone() }
    }

    /// Bounds the number in a register to `0..=max` in one of many ways. Not for locked registers.
    pub(super) fn bound(&mut self, reg: u8, max: u32) -> Vec<Guard> {
        let imm =
            if self.errs() { max.wrapping_add(self.numbers.below(3) as u32) as i32 } else { max as i32 };
        let mut guards = Vec::new();
        match self.numbers.below(17) {
            0..=1 => {
                let mask = (u64::from(max) + 1).next_power_of_two() as i32 - 1;
                let mask = if mask as u32 > max { mask >> 1 } else { mask };
                let class = self.numbers.one_of(&[o::ALU, o::ALU64]);
                self.emit(class | o::AND, reg, 0, 0, mask);
            }
            2 => {
                self.emit(o::ALU64 | o::AND, reg, 0, 0, self.insns.len() as i32 & 1 | 0x7e);
                guards.push(self.guard(o::JMP | o::JGT, reg, imm));
            }
            3..=4 => guards.push(self.guard(o::JMP | o::JGT, reg, imm)),
            5 => guards.push(self.guard(o::JMP | o::JGE, reg, imm.wrapping_add(1))),
            6 => {
                guards.push(self.guard(o::JMP | o::JSGT, reg, imm));
                guards.push(self.guard(o::JMP | o::JSLT, reg, 0));
            }
            7 => {
                guards.push(self.guard(o::JMP | o::JSLE, reg, -1));
                guards.push(self.guard(o::JMP | o::JSGE, reg, imm.wrapping_add(1)));
            }
            8 => {
                self.emit(o::ALU | o::MOV | o::SRC_REG, reg, reg, 0, 0);
                guards.push(self.guard(o::JMP32 | o::JGT, reg, imm));
            }
            9 => {
                guards.push(self.guard(o::JMP32 | o::JGT, reg, imm));
                self.emit(o::ALU | o::MOV | o::SRC_REG, reg, reg, 0, 0);
            }
            10 => {
                self.emit(
                    o::ALU64 | o::RSH,
                    reg,
                    0,
                    0,
                    64 - (32 - (max + 1).leading_zeros() as i32 - 1).max(1),
                );
                guards.push(self.guard(o::JMP | o::JGT, reg, imm));
            }
            11 => guards.extend(self.bound_by_copy(reg, imm)),
            12 => guards.extend(self.bound_in_slot(reg, imm)),
            13 => {
                let bits = self.numbers.one_of(&[8, 16, 32]);
                self.emit(o::ALU64 | o::MOV | o::SRC_REG, reg, reg, bits, 0);
                guards.push(self.guard(o::JMP | o::JSLT, reg, 0));
                guards.push(self.guard(o::JMP | o::JSGT, reg, imm));
            }
            14 => {
                guards.push(self.guard(o::JMP32 | o::JSLT, reg, 0));
                guards.push(self.guard(o::JMP32 | o::JSGT, reg, imm));
                self.emit(o::ALU64 | o::LSH, reg, 0, 0, 32);
                let shift = self.numbers.one_of(&[o::RSH, o::ARSH]);
                self.emit(o::ALU64 | shift, reg, 0, 0, 32);
            }
            15 => {
                // Between two constants, then moved down.
                let low = self.numbers.between(-40, 40) as i32;
                guards.push(self.guard(o::JMP | o::JSLT, reg, low));
                guards.push(self.guard(o::JMP | o::JSGT, reg, low.wrapping_add(imm)));
                self.emit(o::ALU64 | o::SUB, reg, 0, 0, low);
            }
            _ => {
                guards.push(self.guard(
                    o::JMP | o::JSET,
                    reg,
                    !(((u64::from(max) + 1).next_power_of_two() - 1) as i32),
                ));
                guards.push(self.guard(o::JMP | o::JGT, reg, imm));
            }
        }
        self.set(reg, Thing::Number(Some(max)));
        guards
    }

    /// The bound is found on a copy, which may differ by a constant.
    fn bound_by_copy(&mut self, reg: u8, imm: i32) -> Vec<Guard> {
        let copy = self.free();
        if copy == reg {
            return vec![self.guard(o::JMP | o::JGT, reg, imm)];
        }
        self.mov(copy, reg);
        if self.numbers.percent(50) {
            return vec![self.guard(o::JMP | o::JGT, copy, imm)];
        }
        let by = self.numbers.between(1, 10) as i32;
        // Both are small first, so that the sum does not wrap.
        let first = self.guard(o::JMP | o::JGT, reg, 0x1000);
        self.mov(copy, reg);
        self.emit(o::ALU64 | o::ADD, copy, 0, 0, by);
        let second = self.guard(o::JMP | o::JGT, copy, imm.wrapping_add(by));
        vec![first, second]
    }

    /// The bound is found while a copy lies on the stack.
    fn bound_in_slot(&mut self, reg: u8, imm: i32) -> Vec<Guard> {
        let Some(slot) = self.free_slot() else { return vec![self.guard(o::JMP | o::JGT, reg, imm)] };
        let off = -8 * (slot as i16 + 1);
        let size = self.numbers.one_of(&[o::DW, o::DW, o::W]);
        if size == o::W {
            self.emit(o::ALU | o::MOV | o::SRC_REG, reg, reg, 0, 0);
        }
        self.emit(o::STX | o::MEM | size, 10, reg, off, 0);
        self.model.slots[slot] = Thing::ANY;
        let guard = self.guard(o::JMP | o::JGT, reg, imm);
        self.emit(o::LDX | o::MEM | size, reg, 10, off, 0);
        vec![guard]
    }

    /// A slot of stack whose contents nobody needs.
    pub(super) fn free_slot(&mut self) -> Option<usize> {
        let fits = |&slot: &usize| {
            matches!(self.model.slots[slot], Thing::Nothing | Thing::Number(_))
                && !self.is_held(16 + slot as u8)
        };
        let all = (0..self.slots).filter(fits).collect::<Vec<_>>();
        if all.is_empty() { None } else { Some(self.numbers.one_of(&all)) }
    }
}
