//! Branches, loops, ways out.

use super::Generator;
use super::model::{Base, Thing};
use beeline_isa::opcode as o;

const CONDITIONS: [u8; 11] =
    [o::JEQ, o::JNE, o::JSET, o::JGT, o::JGE, o::JLT, o::JLE, o::JSGT, o::JSGE, o::JSLT, o::JSLE];

impl Generator {
    /// A comparison of numbers, to be aimed; gives its slot.
    fn condition(&mut self) -> usize {
        let reg = self.number();
        let code = self.numbers.one_of(&[o::JMP, o::JMP, o::JMP32]) | self.numbers.one_of(&CONDITIONS);
        let other = self.find(Thing::is_number);
        let at = self.insns.len();
        match other {
            Some(other) if self.numbers.percent(35) => self.emit(code | o::SRC_REG, reg, other, 0, 0),
            _ => {
                let imm = self.numbers.interesting() as i32;
                self.emit(code, reg, 0, 0, imm);
            }
        }
        at
    }

    fn aim(&mut self, at: usize) {
        self.insns[at].off = (self.insns.len() - at - 1) as i16;
    }

    fn block(&mut self, depth: u32) {
        for _ in 0..1 + self.numbers.below(3) {
            self.statement(depth);
        }
    }

    /// `if`, now and then with `else`.
    pub(super) fn branch(&mut self, depth: u32) {
        let at = self.condition();
        let before = self.model.clone();
        self.block(depth - 1);
        if self.numbers.percent(40) {
            let over = self.insns.len();
            self.emit(o::JMP | o::JA, 0, 0, 0, 0);
            self.aim(at);
            let then = std::mem::replace(&mut self.model, before);
            self.block(depth - 1);
            self.aim(over);
            self.model.meet(&then);
        } else {
            self.aim(at);
            self.model.meet(&before);
        }
    }

    /// A loop: counted, counted by something unknown, or left to the run.
    pub(super) fn repeat(&mut self, depth: u32) {
        let Some(counter) = self.saved() else { return };
        if self.loops >= 3 || self.has_locked_scratch() {
            return;
        }
        self.loops += 1;
        let outer = self.locked;
        let pointers =
            (0..10).filter(|&reg| !matches!(self.model.regs[reg], Thing::Nothing | Thing::Number(_)));
        self.locked |= pointers.fold(0, |set, reg| set | 1 << reg) & !0x3f | 1 << counter;
        self.model.clobber();
        for thing in self.model.regs.iter_mut().chain(&mut self.model.slots).filter(|thing| thing.is_number())
        {
            *thing = Thing::ANY;
        }
        if self.numbers.percent(30) {
            self.unbounded(depth);
        } else {
            self.counted(depth, counter);
        }
        self.locked = outer;
        self.loops -= 1;
    }

    fn counted(&mut self, depth: u32, counter: u8) {
        let (from, rounds) = (self.numbers.below(3) as i32, 1 + self.numbers.below(6) as i32);
        self.mov_imm(counter, from);
        self.set(counter, Thing::ANY);
        let before = self.model.clone();
        let head = self.insns.len();
        self.block(depth - 1);
        let leaves = self.numbers.percent(30).then(|| self.condition());
        self.emit(o::ALU64 | o::ADD, counter, 0, 0, 1);
        let code =
            self.numbers.one_of(&[o::JMP | o::JLT, o::JMP32 | o::JLT, o::JMP | o::JNE, o::JMP | o::JSLT]);
        let back = head as i16 - self.insns.len() as i16 - 1;
        self.emit(code, counter, 0, back, from + rounds);
        if let Some(at) = leaves {
            self.aim(at);
        }
        self.model.meet(&before);
    }

    fn unbounded(&mut self, depth: u32) {
        let before = self.model.clone();
        let head = self.insns.len();
        self.emit(o::JMP | o::JCOND, 0, 0, 0, 0);
        self.block(depth - 1);
        let back = head as i16 - self.insns.len() as i16 - 1;
        self.emit(o::JMP | o::JA, 0, 0, back, 0);
        self.aim(head);
        self.model.meet(&before);
    }

    /// A way out in the middle.
    pub(super) fn early_exit(&mut self) {
        let at = self.condition();
        let before = self.model.clone();
        self.release_all();
        self.write_exit();
        self.model = before;
        self.aim(at);
    }

    /// The pointer in `reg` is not null from here on: the program ends otherwise, or a guard jumps over what follows.
    pub(super) fn check_null(&mut self, reg: u8, base: Base) -> Option<super::arithmetic::Guard> {
        let found = match base {
            Base::Stack => Thing::InnerMap,
            base => Thing::start(base),
        };
        if self.model.held.is_empty() && self.numbers.percent(65) {
            self.emit(o::JMP | o::JNE, reg, 0, 2, 0);
            self.emit(o::ALU64 | o::MOV, 0, 0, 0, 0);
            self.emit(o::JMP | o::EXIT, 0, 0, 0, 0);
            self.set(reg, found);
            return None;
        }
        let at = self.insns.len();
        self.emit(o::JMP | o::JEQ, reg, 0, 0, 0);
        self.set(reg, Thing::Nothing);
        let guard = self.guard_at(at);
        self.set(reg, found);
        Some(guard)
    }
}
