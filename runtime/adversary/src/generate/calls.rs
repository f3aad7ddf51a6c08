//! Calls: look-ups, records, helpers by their prototypes, subprograms and callbacks.

use super::model::{Base, Thing, value_size};
use super::{Generator, ROLES, Role, maps};
use beeline_helpers::proto::{ArgKind, HelperProto, MemAccess, RetKind};
use beeline_isa::opcode as o;

/// Helpers that are called in a way of their own.
const SPECIAL: [u32; 6] = [12, 131, 132, 133, 164, 181];

impl Generator {
    fn call(&mut self, id: i32) {
        self.emit(o::JMP | o::CALL, 0, 0, 0, id);
        self.model.clobber();
    }

    fn map(&mut self, reg: u8, map: u32) {
        self.wide(reg, o::PSEUDO_MAP_FD, map as i32, 0);
        self.set(reg, Thing::Nothing);
    }

    /// `reg = r10 - ...`: the lowest of `slots` adjacent slots without pointers.
    fn stack_address(&mut self, reg: u8, slots: usize) -> Option<usize> {
        let fits = |&top: &usize| {
            let range = &self.model.slots[top..top + slots];
            range.iter().all(|thing| matches!(thing, Thing::Nothing | Thing::Number(_)))
        };
        let all = (0..(self.slots + 1).saturating_sub(slots)).filter(fits).collect::<Vec<_>>();
        if all.is_empty() {
            return None;
        }
        let top = self.numbers.one_of(&all);
        self.emit(o::ALU64 | o::MOV | o::SRC_REG, reg, 10, 0, 0);
        self.emit(o::ALU64 | o::ADD, reg, 0, 0, -8 * (top + slots) as i32);
        self.set(reg, Thing::Nothing);
        Some(top)
    }

    /// Writes to slots so that they are initialised.
    fn initialise(&mut self, top: usize, slots: usize) {
        for slot in top..top + slots {
            if self.model.slots[slot] == Thing::Nothing {
                let value = self.numbers.interesting() as i32;
                self.emit(o::ST | o::MEM | o::DW, 10, 0, -8 * (slot as i16 + 1), value);
                self.model.slots[slot] = Thing::ANY;
            }
        }
    }

    /// A key for `map` on the stack, its address in `reg`.
    fn key(&mut self, reg: u8, map: u32) -> bool {
        let Some(slot) = self.free_slot() else { return false };
        let off = -8 * (slot as i16 + 1);
        let size = if map == maps::HASH { o::DW } else { o::W };
        match self.find(Thing::is_number) {
            Some(from) if self.numbers.percent(50) => self.emit(o::STX | o::MEM | size, 10, from, off, 0),
            _ => {
                let key = self.numbers.below(5) as i32;
                self.emit(o::ST | o::MEM | size, 10, 0, off, key);
            }
        }
        self.model.slots[slot] = Thing::ANY;
        self.emit(o::ALU64 | o::MOV | o::SRC_REG, reg, 10, 0, 0);
        self.emit(o::ALU64 | o::ADD, reg, 0, 0, off.into());
        self.set(reg, Thing::Nothing);
        true
    }

    /// Looks a value up and uses it.
    pub(super) fn look_up(&mut self) {
        if self.has_locked_scratch() {
            return;
        }
        if self.numbers.percent(12) {
            return self.look_up_twice();
        }
        let map = self.numbers.one_of(&maps::KEYED);
        if self.key(2, map) {
            self.map(1, map);
            self.call(1);
            self.use_found(Base::Value(map));
        }
    }

    fn look_up_twice(&mut self) {
        if !self.key(2, maps::OUTER) {
            return;
        }
        self.map(1, maps::OUTER);
        self.call(1);
        self.set(0, Thing::MaybeMap);
        let guard = self.check_null(0, Base::Stack);
        self.mov(1, 0);
        if self.key(2, maps::OUTER) {
            self.call(1);
            self.use_found(Base::InnerValue);
        }
        self.land(guard.into_iter().collect());
    }

    /// r0 may be null.
    fn use_found(&mut self, base: Base) {
        self.set(0, Thing::Maybe(base));
        let copy = self.saved().filter(|_| self.numbers.percent(70));
        let early = self.numbers.percent(40);
        if let Some(copy) = copy.filter(|_| early) {
            self.mov(copy, 0);
        }
        let tested = copy.filter(|_| early && self.numbers.percent(40)).unwrap_or(0);
        let guard = if self.errs() { None } else { self.check_null(tested, base) };
        self.set(0, Thing::start(base));
        if let Some(copy) = copy {
            if early {
                self.set(copy, Thing::start(base));
            } else {
                self.mov(copy, 0);
            }
        }
        self.access(copy.unwrap_or(0));
        if self.numbers.percent(30) {
            self.bounded_access();
        }
        self.land(guard.into_iter().collect());
    }

    /// Reserves a record, does something, gives it back.
    pub(super) fn ring(&mut self, depth: u32) {
        let Some(keep) = self.saved() else { return };
        if self.has_locked_scratch() || self.model.held.len() > 1 {
            return;
        }
        let size = self.numbers.one_of(&[1, 8, 16, 24, 64, 100]);
        self.map(1, maps::RING);
        self.mov_imm(2, size);
        self.mov_imm(3, 0);
        self.call(131);
        self.set(0, Thing::Maybe(Base::Record(size as u32)));
        let guard = self.check_null(0, Base::Record(size as u32));
        self.mov(keep, 0);
        self.set(0, Thing::Nothing);
        self.model.held.push(keep);
        self.access(keep);
        for _ in 0..self.numbers.below(3) {
            self.statement(depth.saturating_sub(1));
        }
        if !self.errs() {
            self.release(keep);
        }
        self.land(guard.into_iter().collect());
    }

    fn release(&mut self, keep: u8) {
        self.emit(o::ALU64 | o::MOV | o::SRC_REG, 1, keep, 0, 0);
        let flags = self.numbers.below(3) as i32;
        self.mov_imm(2, flags);
        let id = self.numbers.one_of(&[132, 133]);
        self.call(id);
        self.set(keep, Thing::Nothing);
        self.model.held.retain(|&held| held != keep);
    }

    /// Before the function ends.
    pub(super) fn release_all(&mut self) {
        while let Some(&keep) = self.model.held.first() {
            self.release(keep);
        }
    }

    /// A helper, called as its prototype says.
    pub(super) fn helper(&mut self) {
        if self.has_locked_scratch() {
            return;
        }
        if self.numbers.percent(10) {
            return self.tail_call();
        }
        let all = beeline_helpers::HELPERS;
        let proto = all[self.numbers.below(all.len() as u64) as usize].proto;
        let allowed = proto.programs.contains(self.prog_type.0) && !proto.might_sleep;
        if SPECIAL.contains(&proto.id) || !allowed && !self.errs() {
            return;
        }
        if self.helper_arguments(&proto) {
            self.call(proto.id as i32);
            match proto.ret {
                RetKind::Integer => self.set(0, Thing::ANY),
                RetKind::MapValueOrNull => self.use_found(Base::Value(maps::PERCPU)),
                _ => {}
            }
        }
    }

    /// The map that such a helper takes.
    fn map_for(&mut self, id: u32) -> u32 {
        match id {
            25 => maps::EVENTS,
            130 | 134 => maps::RING,
            27 => maps::STACKS,
            195 => maps::PERCPU,
            _ => self.numbers.one_of(&[maps::ARRAY, maps::HASH, maps::PERCPU, maps::TINY]),
        }
    }

    /// Fills r1 to r5. False when something is missing.
    fn helper_arguments(&mut self, proto: &HelperProto) -> bool {
        let mut map = maps::ARRAY;
        let mut index = 0;
        while index < 5 {
            let (reg, kind) = (index as u8 + 1, proto.args[index]);
            let done = match kind {
                ArgKind::None => return true,
                ArgKind::ConstMapPtr => {
                    map = self.map_for(proto.id);
                    self.map(reg, map);
                    true
                }
                ArgKind::MapKey => self.key(reg, map),
                ArgKind::MapValue(access) => self.memory_argument(reg, value_size(map) as usize, access),
                ArgKind::Mem { access, nullable } => {
                    index += 1;
                    self.sized_argument(reg, access, nullable)
                }
                ArgKind::FixedMem { access, size, .. } => self.memory_argument(reg, size as usize, access),
                ArgKind::Ctx { .. } => self.context_argument(reg),
                ArgKind::Anything => {
                    self.number_argument(reg);
                    true
                }
                ArgKind::ConstStr => {
                    self.wide(reg, o::PSEUDO_MAP_VALUE, maps::FROZEN as i32, 20);
                    true
                }
                _ => false,
            };
            if !done {
                return false;
            }
            index += 1;
        }
        true
    }

    fn number_argument(&mut self, reg: u8) {
        let from = (6..10).find(|&from| self.model.regs[from as usize].is_number());
        match from {
            Some(from) if self.numbers.percent(60) => self.mov(reg, from),
            _ => {
                let value = self.numbers.interesting() as i32;
                self.mov_imm(reg, value);
            }
        }
    }

    fn context_argument(&mut self, reg: u8) -> bool {
        let context = (6..10).find(|&from| self.model.regs[from as usize] == Thing::Context);
        if let Some(context) = context {
            self.mov(reg, context);
        }
        context.is_some()
    }

    /// Memory of a known size: stack, or a value that is large enough.
    fn memory_argument(&mut self, reg: u8, size: usize, access: MemAccess) -> bool {
        let slots = size.div_ceil(8);
        let Some(top) = self.stack_address(reg, slots) else { return false };
        if access != MemAccess::Write {
            self.initialise(top, slots);
        }
        self.model.slots[top..top + slots].fill(Thing::ANY);
        true
    }

    /// Memory and its size, which may only be known at run time.
    fn sized_argument(&mut self, reg: u8, access: MemAccess, nullable: bool) -> bool {
        if nullable && self.numbers.percent(30) {
            self.mov_imm(reg, 0);
            self.mov_imm(reg + 1, 0);
            return true;
        }
        let slots = 1 + self.numbers.below(3) as usize;
        let on_value = self.numbers.percent(40);
        let room = if on_value { 48 } else { 8 * slots as u32 };
        if on_value {
            self.wide(reg, o::PSEUDO_MAP_VALUE, maps::GLOBAL as i32, 16);
            self.set(reg, Thing::Nothing);
        } else {
            let Some(top) = self.stack_address(reg, slots) else { return false };
            let first = access == MemAccess::Write && self.numbers.percent(50);
            self.initialise(top, if first { 0 } else { slots });
            self.model.slots[top..top + slots].fill(Thing::ANY);
        }
        let from = (6..10).find(|&from| self.model.regs[from as usize].is_number());
        match from {
            Some(from) if self.numbers.percent(50) => self.size_argument(reg + 1, from, room),
            _ => {
                let size =
                    if self.errs() { room as i32 + 1 } else { 1 + self.numbers.below(room.into()) as i32 };
                self.mov_imm(reg + 1, size);
            }
        }
        true
    }

    /// A number from `from`, bounded so that it is a size of at most `room`.
    fn size_argument(&mut self, reg: u8, from: u8, room: u32) {
        self.mov(reg, from);
        match self.numbers.below(3) {
            0 => {
                self.emit(o::ALU64 | o::AND, reg, 0, 0, room.next_power_of_two() as i32 / 2 - 1);
                self.emit(o::ALU64 | o::ADD, reg, 0, 0, 1);
            }
            1 => {
                self.emit(o::ALU64 | o::AND, reg, 0, 0, 0xff);
                self.emit(o::JMP | o::JLE, reg, 0, 1, room as i32);
                self.emit(o::ALU64 | o::MOV, reg, 0, 0, room as i32);
                self.emit(o::JMP | o::JNE, reg, 0, 1, 0);
                self.emit(o::ALU64 | o::MOV, reg, 0, 0, 1);
            }
            _ => {
                self.emit(o::ALU | o::RSH, reg, 0, 0, 32 - (31 - room.leading_zeros() as i32));
                self.emit(o::ALU64 | o::OR, reg, 0, 0, 1);
            }
        }
        self.set(reg, Thing::ANY);
    }

    fn tail_call(&mut self) {
        if self.model.held.is_empty() && self.context_argument(1) {
            self.map(2, maps::PROGRAMS);
            self.number_argument(3);
            self.call(12);
        }
    }

    /// A later function, directly or through a helper that calls back.
    pub(super) fn call_function(&mut self) {
        let later = (self.function + 1..ROLES.len()).collect::<Vec<_>>();
        if later.is_empty() || self.has_locked_scratch() {
            return;
        }
        let callee = self.numbers.one_of(&later);
        match ROLES[callee] {
            Role::Turn => self.call_back(callee, 181),
            Role::Element => self.call_back(callee, 164),
            _ => self.call_subprogram(callee),
        }
    }

    fn call_subprogram(&mut self, callee: usize) {
        let Some(top) = self.stack_address(2, 2) else { return };
        self.initialise(top, 2);
        if !self.context_argument(3) {
            return;
        }
        self.number_argument(1);
        self.number_argument(4);
        self.model.slots[top..top + 2].fill(Thing::ANY);
        self.refer(callee);
        self.emit(o::JMP | o::CALL, 0, o::PSEUDO_CALL, 0, 0);
        self.model.clobber();
        self.set(0, Thing::ANY);
    }

    fn refer(&mut self, function: usize) {
        self.wanted[function] = true;
        self.pending.push((self.insns.len(), function));
    }

    fn call_back(&mut self, callee: usize, helper: i32) {
        let Some(top) = self.stack_address(3, 2) else { return };
        self.initialise(top, 2);
        self.model.slots[top..top + 2].fill(Thing::ANY);
        if helper == 181 {
            match self.numbers.below(4) {
                0 => self.number_argument(1),
                _ => {
                    let rounds = self.numbers.below(6) as i32;
                    self.mov_imm(1, rounds);
                }
            }
        } else {
            self.map(1, maps::ARRAY);
        }
        self.refer(callee);
        self.wide(2, o::PSEUDO_FUNC, 0, 0);
        self.mov_imm(4, 0);
        self.call(helper);
        self.set(0, Thing::ANY);
    }
}
