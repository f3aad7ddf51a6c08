//! Loads and stores: values, stack, packets, records.

use super::arithmetic::Guard;
use super::model::{Base, Model, Thing};
use super::{Generator, maps};
use beeline_isa::opcode as o;
use beeline_verifier::ProgType;

/// Bytes of a size.
pub(super) fn bytes(size: u8) -> i32 {
    match size {
        o::B => 1,
        o::H => 2,
        o::W => 4,
        _ => 8,
    }
}

impl Generator {
    /// An offset at which so many bytes are inside, rather at the edges; none when there is no room.
    fn place(&mut self, thing: Thing, size: i32) -> Option<i16> {
        let Thing::Pointer { base, off, var, range } = thing else { return None };
        let (low, high) = Model::extent(base, range);
        let low = if base == Base::Stack { -8 * self.slots as i32 } else { low };
        let (low, high) = (low - off, high - off - var as i32 - size);
        if high < low && !self.errs() {
            return None;
        }
        let at = match self.numbers.below(10) {
            0..=3 => high,
            4..=5 => low,
            _ => self.numbers.between(low.into(), high.max(low).into()) as i32,
        };
        let at = if base == Base::Stack { at - (at + off).rem_euclid(size) } else { at };
        let at = if self.errs() { at + self.numbers.between(-8, 8) as i32 } else { at };
        i16::try_from(at).ok()
    }

    fn may_store(&self, base: Base) -> bool {
        match base {
            Base::Value(map) => !matches!(map, maps::READ_ONLY | maps::FROZEN),
            Base::Packet => matches!(self.prog_type, ProgType::XDP | ProgType::SCHED_CLS),
            _ => true,
        }
    }

    /// A load or a store through a pointer.
    pub(super) fn access(&mut self, pointer: u8) {
        let thing = self.thing(pointer);
        let Thing::Pointer { base, .. } = thing else { return };
        let size = self.size();
        let Some(off) = self.place(thing, bytes(size)) else { return };
        let stores =
            self.may_store(base) && (self.numbers.percent(50) || base == Base::Value(maps::WRITE_ONLY));
        if stores || self.errs() {
            self.store(size, pointer, off);
        } else {
            self.load(size, pointer, off);
        }
    }

    fn load(&mut self, size: u8, pointer: u8, off: i16) {
        let dst = self.free();
        let signed = size != o::DW && self.numbers.percent(20);
        self.emit(o::LDX | if signed { o::MEMSX } else { o::MEM } | size, dst, pointer, off, 0);
        let most = match size {
            o::B if !signed => Some(0xff),
            o::H if !signed => Some(0xffff),
            _ => None,
        };
        self.set(dst, Thing::Number(most));
    }

    fn store(&mut self, size: u8, pointer: u8, off: i16) {
        match self.find(Thing::is_number) {
            Some(src) if self.numbers.percent(60) => self.emit(o::STX | o::MEM | size, pointer, src, off, 0),
            _ => {
                let imm = self.numbers.interesting() as i32;
                self.emit(o::ST | o::MEM | size, pointer, 0, off, imm);
            }
        }
    }

    /// A pointer that is not to the stack, in a register; made when there is none.
    pub(super) fn pointer(&mut self) -> u8 {
        let fits =
            |thing: Thing| thing.is_pointer() && !matches!(thing, Thing::Pointer { base: Base::Stack, .. });
        if self.numbers.percent(70)
            && let Some(found) = self.find(fits)
        {
            return found;
        }
        let reg = self.free();
        let (map, size) = self.numbers.one_of(&[(maps::GLOBAL, 64), (maps::GLOBAL, 64), (maps::FROZEN, 32)]);
        let off = if self.numbers.percent(50) { 0 } else { self.numbers.below(size) as i32 };
        self.wide(reg, o::PSEUDO_MAP_VALUE, map as i32, off);
        self.set(reg, Thing::Pointer { base: Base::Value(map), off, var: 0, range: 0 });
        reg
    }

    /// An access at a constant place.
    pub(super) fn plain_access(&mut self) {
        if self.numbers.percent(35) {
            return self.stack_access();
        }
        let pointer = self.pointer();
        if self.numbers.percent(25) && self.locked & 1 << pointer == 0 && !self.is_held(pointer) {
            self.move_pointer(pointer);
        }
        for _ in 0..1 + self.numbers.below(2) {
            self.access(pointer);
        }
    }

    /// Moves a pointer by a constant.
    fn move_pointer(&mut self, reg: u8) {
        let Thing::Pointer { base, off, var, range } = self.thing(reg) else { return };
        let by = self.numbers.between(-16, 24) as i32;
        let (code, by) = if self.numbers.percent(25) { (o::SUB, -by) } else { (o::ADD, by) };
        self.emit(o::ALU64 | code, reg, 0, 0, if code == o::SUB { -by } else { by });
        self.set(reg, Thing::Pointer { base, off: off + by, var, range });
    }

    /// A load or store of some bytes of a slot.
    fn stack_access(&mut self) {
        let Some(slot) = self.free_slot() else { return };
        let size = self.size();
        let width = bytes(size);
        let within = self.numbers.below(8) as i32 / width * width;
        let within = if self.errs() { self.numbers.below(8) as i32 } else { within };
        let off = (-8 * (slot as i32 + 1) + within) as i16;
        if self.model.slots[slot] == Thing::Nothing && width == 8 || self.numbers.percent(50) {
            self.store(size, 10, off);
            self.model.slots[slot] = Thing::ANY;
        } else {
            self.load(size, 10, off);
        }
    }

    /// A register goes to a slot, or comes back.
    pub(super) fn spill_or_fill(&mut self) {
        let full =
            (0..self.slots).filter(|&slot| self.model.slots[slot] != Thing::Nothing).collect::<Vec<_>>();
        if !full.is_empty() && self.numbers.percent(50) {
            let slot = self.numbers.one_of(&full);
            let thing = self.model.slots[slot];
            let dst = self.free();
            let narrow = thing.is_number() && self.numbers.percent(30);
            let size = if narrow { self.size() } else { o::DW };
            self.emit(o::LDX | o::MEM | size, dst, 10, -8 * (slot as i16 + 1), 0);
            return self.set(dst, if narrow { Thing::ANY } else { thing });
        }
        let Some(slot) = self.free_slot() else { return };
        let can = |thing: Thing| thing != Thing::Nothing && !matches!(thing, Thing::Maybe(Base::Record(_)));
        let Some(src) = self.find(can) else { return };
        let thing = self.thing(src);
        if matches!(thing, Thing::Pointer { base: Base::Record(_), .. }) {
            return;
        }
        let narrow = thing.is_number() && self.numbers.percent(30);
        let size = if narrow { self.size() } else { o::DW };
        self.emit(o::STX | o::MEM | size, 10, src, -8 * (slot as i16 + 1), 0);
        self.model.slots[slot] = if narrow { Thing::ANY } else { thing };
    }

    /// An access at a place that depends on a number: bounded first, in one way or another.
    pub(super) fn bounded_access(&mut self) {
        if self.numbers.percent(20) {
            return self.variable_stack();
        }
        let pointer = self.pointer();
        let thing = self.thing(pointer);
        let Thing::Pointer { base, off, var, range } = thing else { return };
        let (low, high) = Model::extent(base, range);
        let room = high - off - var as i32 - 1;
        if off < low || room < 1 {
            return self.access(pointer);
        }
        let Some(index) = self.index(pointer) else { return };
        let max =
            if self.numbers.percent(60) { room as u32 } else { 1 + self.numbers.below(room as u64) as u32 };
        let guards = self.bound(index, max);
        if self.numbers.percent(25) {
            let (code, imm) =
                self.numbers.one_of(&[(o::RSH, 1), (o::AND, 0x1c), (o::AND, 6), (o::DIV, 2), (o::MOD, 5)]);
            self.emit(o::ALU64 | code, index, 0, 0, imm);
        }
        self.add_and_access(pointer, index, max);
        self.land(guards);
    }

    /// A number in a register that may change, other than `pointer`.
    fn index(&mut self, pointer: u8) -> Option<u8> {
        let from = self.number();
        if self.locked & 1 << from == 0 && from != pointer && self.numbers.percent(60) {
            return Some(from);
        }
        let index = self.free();
        if index == pointer || index == from || !self.thing(from).is_number() {
            return None;
        }
        self.mov(index, from);
        Some(index)
    }

    /// `pointer + index` is dereferenced, at the edges of what is there.
    fn add_and_access(&mut self, pointer: u8, index: u8, max: u32) {
        let Thing::Pointer { base, off, var, range } = self.thing(pointer) else { return };
        let sum = Thing::Pointer { base, off, var: var + max, range };
        let keep = self.locked & 1 << pointer != 0 || self.is_held(pointer) || self.numbers.percent(70);
        let target = if keep { self.free() } else { pointer };
        if target == index {
            // The number is the first operand.
            self.emit(o::ALU64 | o::ADD | o::SRC_REG, index, pointer, 0, 0);
            self.set(index, sum);
            return self.access(index);
        }
        if target != pointer {
            self.mov(target, pointer);
        }
        self.emit(o::ALU64 | o::ADD | o::SRC_REG, target, index, 0, 0);
        self.set(target, sum);
        if base == Base::Packet {
            // What was known of the packet is void.
            let end = self.find(|thing| thing == Thing::PacketEnd);
            self.set(target, Thing::Pointer { base, off, var: var + max, range: 0 });
            if let Some(end) = end {
                return self.check_and_access(target, end);
            }
        }
        for _ in 0..1 + self.numbers.below(2) {
            self.access(target);
        }
    }

    /// A store or load on the stack whose place is not known exactly.
    fn variable_stack(&mut self) {
        let holds_pointers = |thing: &Thing| !matches!(thing, Thing::Nothing | Thing::Number(_));
        let stores = !self.model.slots[..self.slots].iter().any(holds_pointers);
        let Some(index) = self.index(10) else { return };
        let size = self.size();
        let width = bytes(size);
        let max = (8 * self.slots as i32 - width) as u32;
        let guards = self.bound(index, max);
        if width > 1 {
            self.emit(o::ALU64 | o::AND, index, 0, 0, -width);
        }
        let target = self.free();
        if target != index {
            self.mov(target, 10);
            self.emit(o::ALU64 | o::ADD | o::SRC_REG, target, index, 0, 0);
            let low = -8 * self.slots as i16;
            self.set(target, Thing::Nothing);
            if stores && self.numbers.percent(60) {
                self.store(size, target, low);
                self.model.slots[..self.slots].fill(Thing::ANY);
            } else if stores {
                self.load(size, target, low);
            }
        }
        self.land(guards);
    }

    /// An atomic operation.
    pub(super) fn atomic(&mut self) {
        const UPDATES: [i32; 10] = [0, 1, 0x40, 0x41, 0x50, 0x51, 0xa0, 0xa1, o::XCHG, o::CMPXCHG];
        let pointer = if self.numbers.percent(40) { 10 } else { self.pointer() };
        let Thing::Pointer { base, off, var: 0, range: 0 } = self.thing(pointer) else { return };
        if !self.may_store(base) || base == Base::Value(maps::WRITE_ONLY) {
            return;
        }
        let (size, width) = self.numbers.one_of(&[(o::W, 4), (o::DW, 8)]);
        let src = self.number();
        let at = if pointer == 10 {
            let Some(slot) = self.free_slot() else { return };
            self.model.slots[slot] = Thing::ANY;
            Some(-8 * (slot as i16 + 1))
        } else {
            self.place(self.thing(pointer), width)
        };
        let Some(at) = at else { return };
        let at = at - (i32::from(at) + off).rem_euclid(width) as i16;
        if src == pointer {
            return;
        }
        match self.numbers.below(6) {
            0 => {
                let dst = self.free();
                self.emit(o::STX | o::ATOMIC | size, dst, pointer, at, o::LOAD_ACQ);
                self.set(dst, Thing::ANY);
            }
            1 => self.emit(o::STX | o::ATOMIC | size, pointer, src, at, o::STORE_REL),
            _ => self.update(size, pointer, src, at, &UPDATES),
        }
    }

    fn update(&mut self, size: u8, pointer: u8, src: u8, at: i16, updates: &[i32]) {
        let update = self.numbers.one_of(updates);
        let result = if update == o::CMPXCHG { 0 } else { src };
        let writes = update & o::FETCH != 0;
        if writes && (self.locked & 1 << result != 0 || self.is_held(result) || result == pointer) {
            return;
        }
        if update == o::CMPXCHG && !self.thing(0).is_number() {
            return;
        }
        self.emit(o::STX | o::ATOMIC | size, pointer, src, at, update);
        if writes {
            self.set(result, Thing::ANY);
        }
    }

    /// Packet pointers, a check, accesses.
    pub(super) fn packet(&mut self) {
        let (start, end) = match self.prog_type {
            ProgType::XDP => (0, 4),
            ProgType::SCHED_CLS => (76, 80),
            _ => return self.bounded_access(),
        };
        let Some(context) = self.find(|thing| thing == Thing::Context) else { return };
        let (Some(first), last) = (self.saved().or(Some(3)), 2) else { return };
        if first == context || last == context || self.locked & (1 << first | 1 << last) != 0 {
            return;
        }
        self.emit(o::LDX | o::MEM | o::W, first, context, start, 0);
        self.set(first, Thing::start(Base::Packet));
        self.emit(o::LDX | o::MEM | o::W, last, context, end, 0);
        self.set(last, Thing::PacketEnd);
        self.check_and_access(first, last);
    }

    /// Compares pointer + n with the end of the packet; where it is not beyond, there are accesses.
    fn check_and_access(&mut self, pointer: u8, end: u8) {
        let Thing::Pointer { base, off, var, .. } = self.thing(pointer) else { return };
        let probe = self.free();
        if probe == pointer || probe == end {
            return;
        }
        let len = 1 + self.numbers.below(40) as i32;
        self.mov(probe, pointer);
        self.emit(o::ALU64 | o::ADD, probe, 0, 0, len);
        let at = self.insns.len();
        let (code, dst, src) = match self.numbers.below(4) {
            0..=1 => (o::JGT, probe, end),
            2 => (o::JLT, end, probe),
            _ => (o::JGE, probe, end),
        };
        self.emit(o::JMP | code | o::SRC_REG, dst, src, 0, 0);
        let guard: Guard = self.guard_at(at);
        // The range counts from the base of all pointers with this variable part.
        let range = (off + len) as u32;
        self.set(pointer, Thing::Pointer { base, off, var: 0, range });
        for _ in 0..1 + self.numbers.below(4) {
            self.access(pointer);
        }
        if self.numbers.percent(30) {
            self.bounded_access();
        }
        self.set(pointer, Thing::Pointer { base, off, var, range: 0 });
        self.land(vec![guard]);
    }

    /// A constant of a map that never changes decides a branch; the dead side may be anything.
    pub(super) fn constant_map(&mut self) {
        let reg = self.free();
        self.wide(reg, o::PSEUDO_MAP_VALUE, maps::FROZEN as i32, 0);
        let (size, off, value) =
            self.numbers.one_of(&[(o::DW, 0, 7), (o::W, 8, -3), (o::B, 0, 7), (o::DW, 8, -3)]);
        self.emit(o::LDX | if size == o::W { o::MEMSX } else { o::MEM } | size, reg, reg, off, 0);
        self.set(reg, Thing::ANY);
        self.emit(o::JMP | o::JEQ, reg, 0, 2, value);
        self.emit(o::ALU64 | o::MOV, reg, 0, 0, 0);
        self.emit(o::LDX | o::MEM | o::DW, reg, reg, 0, 0);
    }
}
