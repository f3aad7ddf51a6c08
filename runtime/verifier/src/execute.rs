//! Each instruction: what it requires, then what it does.

use crate::code::jump_target;
use crate::context::Field;
use crate::effect::memory::{loaded, loaded_constant};
use crate::explore::{Explorer, Next};
use crate::facts::Through;
use crate::liveness;
use crate::refusal::{Checked, refuse};
use crate::require::memory::{Access, Target};
use crate::state::{Kind, MapRef, RegState};
use beeline_abi::map::MapFlags;
use beeline_isa::opcode::HOST_CALL;
use beeline_isa::{AtomicOp, Call, Op, Operand, Reg, Size, Width};

impl Explorer<'_> {
    /// Executes the operation at the current instruction.
    pub(crate) fn execute(&mut self, op: Op) -> Checked<Next> {
        if liveness::effect(op).1 & 1 << Reg::R10.0 != 0 {
            refuse!("frame pointer is read only");
        }
        match op {
            Op::Alu { width, op, dst, src } => self.alu(width, op, dst, src)?,
            Op::Mov { width, dst, src } => self.mov(width, dst, src)?,
            Op::MovSx { width, dst, src, bits } => self.mov_sign_extended(width, dst, src, bits)?,
            Op::Neg { width, dst } => self.negate(width, dst)?,
            Op::Endian { kind, dst, bits } => self.convert_bytes(kind, dst, bits)?,
            Op::LoadImm64 { dst, value } => self.load_immediate(dst, value)?,
            Op::Load { size, signed, dst, base, off } => {
                let value = self.load(base, off, size, signed)?;
                self.state.set(dst, value);
            }
            Op::ProbeLoad { .. } => refuse!("unknown opcode {:02x}", self.program.insns[self.pc].code),
            Op::LoadPacket { size, index, .. } => self.load_packet(size, index)?,
            Op::Store { size, base, off, src } => self.store(base, off, size, src)?,
            Op::Atomic { size, op, fetch, base, off, src } => self.atomic(size, op, fetch, base, off, src)?,
            Op::Ja { target } => return Ok(Next::Goto(jump_target(self.pc, target.into()))),
            Op::Jump { width, op, dst, src, target } => return self.jump(width, op, dst, src, target),
            Op::MayGoto { target } => return self.may_goto(target),
            Op::Call(call) => return self.call(call),
            Op::Exit => return self.exit(),
        }
        Ok(Next::Goto(self.code.next(self.pc)))
    }

    fn call(&mut self, call: Call) -> Checked<Next> {
        match call {
            Call::Helper(id) => {
                self.may_call_locked(u32::try_from(id).ok())?;
                let proto = self.helper(id)?;
                let arguments = self.arguments(proto)?;
                self.call_helper(proto, &arguments)
            }
            Call::Local(imm) => self.call_local(imm),
            Call::Kfunc { btf_id, btf_fd_idx: HOST_CALL } => self.call_host(btf_id),
            Call::Kfunc { btf_id, btf_fd_idx } => {
                let proto = self.kfunc(btf_id, btf_fd_idx)?;
                self.may_call_locked(Some(proto.id))?;
                let arguments = self.arguments(proto)?;
                self.facts.kfuncs.insert(self.pc, proto.id);
                self.call_helper(proto, &arguments)
            }
            Call::Register(_) => refuse!("unknown opcode 8d"),
        }
    }

    /// Whether an instruction accesses the context, a kernel object, a map's fields or other memory is the same on every
    /// path: they are executed differently.
    fn same_kind(&mut self, kind: Kind) -> Checked {
        let through = match kind {
            Kind::Ctx => Through::Context,
            Kind::Btf { .. } => Through::Object,
            Kind::MapPtr { .. } => Through::Map,
            _ => Through::Memory,
        };
        if *self.facts.through.entry(self.pc).or_insert(through) != through {
            refuse!("same insn cannot be used with different pointers");
        }
        Ok(())
    }

    fn load(&mut self, base: Reg, off: i16, size: Size, signed: bool) -> Checked<RegState> {
        let pointer = self.readable(base)?;
        let size = size.bytes();
        let target = Target { reg: base, pointer: &pointer, off: off.into(), size };
        self.aligned(&target)?;
        let value = match pointer.kind {
            Kind::Stack { frame } => {
                let span = self.on_stack(&target, Access::Read)?;
                self.load_stack(frame, span, size, signed)?
            }
            Kind::MapValue { map, nullable: false } => {
                self.map_value(&target, map, Access::Read)?;
                match self.frozen_value(&target, map) {
                    Some(raw) => loaded_constant(raw, size, signed),
                    None => loaded(size, signed),
                }
            }
            Kind::Ctx => self.load_context(&target, signed)?,
            Kind::MapPtr { map, nullable: false } => self.load_map_field(&target, map, signed)?,
            Kind::Btf { type_id, trust, nullable: false } => {
                self.load_object(&target, type_id, trust, signed)?
            }
            _ => {
                self.plain_memory(&target, Access::Read)?;
                loaded(size, signed)
            }
        };
        self.same_kind(pointer.kind)?;
        Ok(value)
    }

    fn load_context(&mut self, target: &Target, signed: bool) -> Checked<RegState> {
        let field = self.context(target, Access::Read)?;
        self.facts.context_len = self.facts.context_len.max((target.off as u32).saturating_add(target.size));
        if crate::context::is_made_for_reads(self.program.prog_type) {
            self.facts.context =
                self.facts.context.union(crate::context::words(target.off as u32, target.size));
        }
        Ok(match field {
            _ if signed && field != Field::Number => {
                refuse!("invalid bpf_context access off={} size={}", target.off, target.size)
            }
            Field::Number => loaded(target.size, signed),
            Field::Packet => RegState::pointer(Kind::Packet),
            Field::PacketMeta => RegState::pointer(Kind::PacketMeta),
            Field::PacketEnd => RegState::pointer(Kind::PacketEnd),
        })
    }

    /// A load of a constant: the bytes of a frozen map at a known place.
    fn frozen_value(&self, target: &Target, map: MapRef) -> Option<u64> {
        let info = self.map(map).ok()?;
        let contents = info.frozen_contents.as_ref().filter(|_| !map.inner)?;
        if info.shape.map_flags & MapFlags::RDONLY_PROG == 0 {
            return None;
        }
        let at = usize::try_from(target.pointer.const_offset()? + i64::from(target.off)).ok()?;
        let bytes = contents.get(at..at + target.size as usize)?;
        Some(bytes.iter().rev().fold(0, |value, byte| value << 8 | u64::from(*byte)))
    }

    /// An access to memory that has no rules of its own beyond its bounds.
    fn plain_memory(&mut self, target: &Target, access: Access) -> Checked {
        match target.pointer.kind {
            Kind::MapValue { map, nullable: false } => self.map_value(target, map, access),
            Kind::MapKey { map } => self.map_key(target, map, access),
            Kind::Mem { size, nullable: false, memory } => {
                self.writable(target.reg, memory, access)?;
                self.sized_memory(target, size)
            }
            Kind::Packet | Kind::PacketMeta => self.packet(target, access),
            Kind::MapPtr { map, nullable: false } => self.map_field(target, map, access).map(|_| ()),
            Kind::Btf { type_id, nullable: false, .. } => {
                self.object_field(target, type_id, access).map(|_| ())
            }
            kind => refuse!("R{} invalid mem access '{}'", target.reg.0, kind.name()),
        }
    }

    fn store(&mut self, base: Reg, off: i16, size: Size, src: Operand) -> Checked {
        let mut value = self.operand(src, Width::W64)?;
        let pointer = self.readable(base)?;
        let size = size.bytes();
        let target = Target { reg: base, pointer: &pointer, off: off.into(), size };
        self.aligned(&target)?;
        if let (Kind::Stack { frame }, Operand::Reg(from)) = (pointer.kind, src) {
            self.spillable(frame, size, &value)?;
            let fits = value.value.umax <= u64::MAX >> (64 - 8 * size);
            if value.kind == Kind::Scalar && value.id == 0 && fits && value.as_const().is_none() {
                value = self.with_id(value);
                self.state.set(from, value);
            }
        }
        self.store_value(&target, &value)?;
        self.same_kind(pointer.kind)
    }

    /// A pointer is spilled whole, and an address of this stack only to this stack.
    fn spillable(&self, frame: u8, size: u32, value: &RegState) -> Checked {
        if !value.kind.is_pointer() {
            return Ok(());
        }
        if size != 8 {
            refuse!("invalid size of register spill");
        }
        let current = self.state.frames.len() - 1;
        if usize::from(frame) != current && matches!(value.kind, Kind::Stack { .. }) {
            refuse!("cannot spill pointers to stack into stack frame of the caller");
        }
        Ok(())
    }

    fn store_value(&mut self, target: &Target, value: &RegState) -> Checked {
        match target.pointer.kind {
            Kind::Stack { frame } => {
                let span = self.on_stack(target, Access::Write)?;
                return self.store_stack(frame, span, target.size, value);
            }
            Kind::Ctx => {
                self.context(target, Access::Write)?;
            }
            _ => self.plain_memory(target, Access::Write)?,
        }
        self.pointer_read_as_number(value);
        Ok(())
    }

    fn atomic(&mut self, size: Size, op: AtomicOp, fetch: bool, base: Reg, off: i16, src: Reg) -> Checked {
        if op == AtomicOp::LoadAcquire {
            self.atomic_target(base)?;
            self.atomic_place(base, off, size)?;
            let value = self.load(base, off, size, false)?;
            self.state.set(src, value);
            return Ok(());
        }
        let operand = self.readable(src)?;
        if op == AtomicOp::Cmpxchg {
            let expected = self.readable(Reg::R0)?;
            self.pointer_read_as_number(&expected);
        }
        self.pointer_read_as_number(&operand);
        self.atomic_target(base)?;
        if op == AtomicOp::StoreRelease {
            self.atomic_place(base, off, size)?;
            return self.store(base, off, size, Operand::Reg(src));
        }
        let old = self.load(base, off, size, false)?;
        let pointer = self.readable(base)?;
        let target = Target { reg: base, pointer: &pointer, off: off.into(), size: size.bytes() };
        self.naturally_aligned(&target)?;
        // The sum or whatever it is: any number.
        match pointer.kind {
            Kind::Stack { frame } if pointer.const_offset().is_some() => {
                let span = self.on_stack(&target, Access::Write)?;
                self.helper_writes_stack(frame, span)?;
            }
            _ => self.store_value(&target, &loaded(size.bytes(), false))?,
        }
        if fetch {
            let into = if op == AtomicOp::Cmpxchg { Reg::R0 } else { src };
            self.state.set(into, old);
        }
        Ok(())
    }

    /// Loads and stores with an order are naturally aligned, too.
    fn atomic_place(&mut self, base: Reg, off: i16, size: Size) -> Checked {
        let pointer = self.readable(base)?;
        let target = Target { reg: base, pointer: &pointer, off: off.into(), size: size.bytes() };
        self.naturally_aligned(&target)
    }

    /// Atomic operations work on memory proper.
    fn atomic_target(&self, base: Reg) -> Checked {
        let kind = self.readable(base)?.kind;
        if matches!(
            kind,
            Kind::Ctx | Kind::Packet | Kind::PacketMeta | Kind::Btf { .. } | Kind::MapPtr { .. }
        ) {
            refuse!("BPF_ATOMIC stores into R{} {} is not allowed", base.0, kind.name());
        }
        Ok(())
    }

    /// Legacy loads from the packet: past its end the program ends.
    fn load_packet(&mut self, size: Size, index: Option<Reg>) -> Checked {
        if !crate::context::has_packet_loads(self.program.prog_type) {
            refuse!("BPF_LD_[ABS|IND] instructions not allowed for this program type");
        }
        if self.state.frames.len() > 1 {
            refuse!("BPF_LD_[ABS|IND] in a subprogram is not supported");
        }
        let context = self.readable(Reg::R6)?;
        self.unlocked("BPF_LD_[ABS|IND]")?;
        self.nothing_held()
            .map_err(|held| format!("{held}\nBPF_LD_[ABS|IND] would lead to reference leak"))?;
        if context.kind != Kind::Ctx || context.off != 0 || context.value.as_const() != Some(0) {
            refuse!("at the time of BPF_LD_ABS|IND R6 != pointer to skb");
        }
        if let Some(index) = index {
            self.readable(index)?;
        }
        self.state.clobber_caller_saved();
        self.state.set(Reg::R0, loaded(size.bytes(), false));
        Ok(())
    }
}
