//! What a helper call requires: the helper, and each of its arguments.

use crate::context;
use crate::effect::call::constant_bytes;
use crate::explore::Explorer;
use crate::facts::CallFacts;
use crate::program::ProgType;
use crate::refusal::{Checked, refuse};
use crate::require::dynptr::Place;
use crate::require::memory::{Access, Target};
use crate::require::pointer::OFFSET_MAX;
use crate::state::{Kind, Lock, MapRef, Memory, RegState, Trust};
use beeline_abi::map::MapFlags;
use beeline_helpers::format::Format;
use beeline_helpers::proto::{ArgKind, HelperProto, MemAccess, RetKind};
use beeline_helpers::{HOST_FUNCTION_BASE, Helper, KFUNC_BASE, kernel_only};
use beeline_isa::Reg;

/// What the arguments of a call were found to be.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Arguments {
    /// The map.
    pub(crate) map: Option<MapRef>,
    /// A reference that the helper takes, 0 = none.
    pub(crate) released: u32,
    /// Bytes of the record to reserve.
    pub(crate) record_size: Option<u32>,
    /// The subprogram to call back.
    pub(crate) callback: Option<usize>,
    /// Greatest value of the last size.
    pub(crate) size_max: Option<u32>,
    /// The key.
    pub(crate) constant_key: Option<u64>,
    /// A look-up of that key succeeds.
    pub(crate) key_exists: bool,
    /// The iterator: where it lies.
    pub(crate) iter: Option<Place>,
    /// The structure that a pointer is taken for.
    pub(crate) type_id: u32,
    /// The spin lock.
    pub(crate) lock: Option<Lock>,
    /// The dynptr that is looked at.
    pub(crate) dynptr: u32,
}

/// How functions of the target see memory.
const HOST_MEMORY: HelperProto =
    HelperProto::new(HOST_FUNCTION_BASE, "a host function", [ArgKind::None; 5], RetKind::Integer);

/// What memory arguments can point to, as the kernel lists it.
const MEMORY: &str = "fp, pkt, pkt_meta, map_key, map_value, mem, ringbuf_mem, buf, trusted_ptr_";

impl Explorer<'_> {
    /// The helper exists and this program may call it.
    pub(crate) fn helper(&self, id: i32) -> Checked<&'static HelperProto> {
        let known = u32::try_from(id).ok().and_then(|id| kernel_only::proto(id, self.program.prog_type.0));
        let Some(proto) = known.filter(|proto| proto.id < KFUNC_BASE) else {
            refuse!("invalid func unknown#{id}")
        };
        if !proto.programs.contains(self.program.prog_type.0) {
            refuse!("program of this type cannot use helper {}#{}", proto.name, proto.id);
        }
        const GET_FUNC_IP: u32 = 173;
        if proto.id == GET_FUNC_IP && !matches!(self.program.prog_type, ProgType::KPROBE | ProgType::TRACING)
        {
            let number = self.program.prog_type.0;
            refuse!("func {}#{} not supported for program type {number}", proto.name, proto.id);
        }
        if proto.gpl_only && !self.program.gpl_compatible {
            refuse!("cannot call GPL-restricted function from non-GPL compatible program");
        }
        if proto.might_sleep && !self.program.sleepable {
            refuse!("helper call might sleep in a non-sleepable prog");
        }
        Ok(proto)
    }

    /// The kernel function exists here and this program may call it.
    pub(crate) fn kfunc(&self, btf_id: i32, btf_fd_idx: i16) -> Checked<&'static HelperProto> {
        if !self.program.gpl_compatible {
            refuse!("cannot call kernel function from non-GPL compatible program");
        }
        let name = u32::try_from(btf_id).ok().and_then(|id| self.types()?.function(id));
        let Some(name) = name.filter(|_| btf_fd_idx == 0) else {
            refuse!("kernel btf_id {btf_id} is not a function")
        };
        let of_session = |id| beeline_helpers::table::SESSION_FUNCTIONS.contains(&id);
        let allowed = |helper: &&Helper| self.program.is_session() || !of_session(helper.proto.id);
        match beeline_helpers::kfunc(name).filter(allowed) {
            Some(helper) => Ok(&helper.proto),
            None => refuse!("calling kernel function {name} is not allowed"),
        }
    }

    /// Every argument is what the helper's prototype asks for.
    pub(crate) fn arguments(&mut self, proto: &HelperProto) -> Checked<Arguments> {
        let mut found = Arguments::default();
        for (index, kind) in proto.args.iter().enumerate() {
            if *kind == ArgKind::None {
                break;
            }
            let reg = Reg(index as u8 + 1);
            let next = proto.args.get(index + 1).copied().unwrap_or(ArgKind::None);
            self.argument(proto, reg, *kind, next, &mut found)?;
        }
        const TAIL_CALL: u32 = 12;
        if proto.id == TAIL_CALL {
            self.nothing_held().map_err(|held| format!("{held}\ntail_call would lead to reference leak"))?;
        }
        self.facts.call(
            self.pc,
            CallFacts {
                helper: proto.id as i32,
                map: found.map.filter(|map| !map.inner).map(|map| map.index),
                constant_key: found.constant_key,
                callback: found.callback,
                non_null: found.key_exists,
            },
        );
        Ok(found)
    }

    fn argument(
        &mut self,
        proto: &HelperProto,
        reg: Reg,
        kind: ArgKind,
        next: ArgKind,
        found: &mut Arguments,
    ) -> Checked {
        let state = self.readable(reg)?;
        match kind {
            ArgKind::None => {}
            ArgKind::Anything => self.pointer_read_as_number(&state),
            ArgKind::ConstMapPtr => {
                let Kind::MapPtr { map, nullable: false } = state.kind else {
                    return wrong(reg, &state, "map_ptr");
                };
                self.map_suits(proto, map)?;
                found.map = Some(map);
            }
            ArgKind::MapKey => self.key(proto, reg, &state, found)?,
            ArgKind::MapValue(access) => {
                let Some(map) = found.map else { refuse!("invalid map_ptr to access map->value") };
                let size = self.map(map)?.shape.value_size;
                self.memory(reg, &state, size, access, proto.packets)?;
            }
            ArgKind::Mem { access, nullable } => {
                self.sized(proto, reg, &state, access, nullable, next, found)?
            }
            ArgKind::FixedMem { access, size, aligned } => {
                if aligned
                    && !state
                        .value
                        .tnum
                        .add(crate::tnum::Tnum::constant(state.off as u64))
                        .is_aligned(size.into())
                {
                    refuse!("misaligned access off {}+{} size {size}", state.value.tnum, state.off);
                }
                self.memory(reg, &state, size, access, proto.packets)?;
            }
            // Proven with the memory before it.
            ArgKind::Size | ArgKind::SizeOrZero => {}
            ArgKind::Ctx { nullable } => self.context_argument(proto, reg, &state, nullable)?,
            ArgKind::RingbufMem { release } => found.released = self.record(reg, &state, release)?,
            ArgKind::AllocSize => {
                self.mark_precise(&state);
                let Some(size) = state.as_const() else { refuse!("R{} is not a known constant'", reg.0) };
                let Ok(size) = u32::try_from(size) else {
                    refuse!("R{} unbounded memory access, use 'var &= const' or 'if (var < const)'", reg.0)
                };
                found.record_size = Some(size);
            }
            ArgKind::Func => {
                let Kind::Func { subprogram } = state.kind else { return wrong(reg, &state, "func") };
                found.callback = Some(subprogram.into());
            }
            ArgKind::StackOrNull => match state.kind {
                Kind::Stack { .. } => {}
                _ if state.is_null() => self.mark_precise(&state),
                _ => return wrong(reg, &state, "fp"),
            },
            ArgKind::SpinLock { take } => {
                let lock = self.lock_argument(reg, &state)?;
                if take {
                    self.may_lock()?
                } else {
                    self.may_unlock(lock)?
                }
                found.lock = Some(lock);
            }
            ArgKind::Scalar => {
                if state.kind != Kind::Scalar {
                    refuse!("R{} is not a scalar", reg.0);
                }
            }
            ArgKind::TypeId => found.type_id = self.type_id_argument(reg, &state)?,
            ArgKind::Iter(how) => self.iter_argument(reg, &state, how, found)?,
            ArgKind::ConstStr => self.constant_string(proto, reg, &state)?,
            ArgKind::Dynptr(how) => self.dynptr_argument(reg, &state, how, found)?,
            ArgKind::Btf(name) => match state.kind {
                Kind::Btf { type_id, trust, nullable: false } if trust != Trust::Untrusted => {
                    self.object_argument(reg, &state, type_id, name)?
                }
                _ => return wrong(reg, &state, "ptr_, trusted_ptr_, rcu_ptr_"),
            },
        }
        Ok(())
    }

    fn key(&mut self, proto: &HelperProto, reg: Reg, state: &RegState, found: &mut Arguments) -> Checked {
        let Some(map) = found.map else { refuse!("invalid map_ptr to access map->key") };
        let size = self.map(map)?.shape.key_size;
        self.memory(reg, state, size, MemAccess::Read, proto.packets)?;
        let Kind::Stack { frame } = state.kind else { return Ok(()) };
        let Some(off) = state.const_offset().filter(|_| matches!(size, 1 | 2 | 4 | 8)) else { return Ok(()) };
        let place = &self.state.frames[usize::from(frame)];
        const LOOKUP: u32 = 1;
        // Only of such a look-up: a key that decides nothing is not kept precise, and may be another on a path that was pruned.
        if let Some(key) = constant_bytes(place, off as i32, size).filter(|_| proto.id == LOOKUP)
            && self.key_exists(map, key)
        {
            (found.constant_key, found.key_exists) = (Some(key), true);
            let (slot, _) = crate::state::place(off as i32);
            let spilled = place.stack.get(slot).map(|slot| slot.spilled);
            if let Some(spilled) = spilled {
                self.mark_precise(&spilled);
            }
        }
        Ok(())
    }

    /// Memory whose size is the next argument, of a function of the target.
    pub(crate) fn sized_for_host(&mut self, reg: Reg, state: &RegState, access: MemAccess) -> Checked {
        let found = &mut Arguments::default();
        self.sized(&HOST_MEMORY, reg, state, access, false, ArgKind::SizeOrZero, found)
    }

    /// A string that never changes, of a function of the target.
    pub(crate) fn constant_for_host(&mut self, reg: Reg, state: &RegState) -> Checked {
        self.constant_string(&HOST_MEMORY, reg, state)
    }

    /// Memory whose size is the next argument.
    #[expect(clippy::too_many_arguments, reason = "the parts of one argument kind")]
    fn sized(
        &mut self,
        proto: &HelperProto,
        reg: Reg,
        state: &RegState,
        access: MemAccess,
        nullable: bool,
        next: ArgKind,
        found: &mut Arguments,
    ) -> Checked {
        let pointed = if nullable { state.kind.non_null() } else { state.kind };
        let is_null = nullable && state.is_null();
        if !is_null && !is_memory(pointed) {
            return wrong(reg, state, MEMORY);
        }
        let size_reg = Reg(reg.0 + 1);
        let size = self.readable(size_reg)?;
        let zero_allowed = next == ArgKind::SizeOrZero;
        if size.kind != Kind::Scalar {
            return wrong(size_reg, &size, "scalar");
        }
        self.mark_precise(&size);
        let (number, value) = (size_reg.0, &size.value);
        if value.smin < 0 {
            refuse!("R{number} min value is negative, either use unsigned or 'var &= const'");
        }
        if value.umin == 0 && !zero_allowed {
            refuse!("R{number} invalid zero-sized read: u64=[{},{}]", value.umin, value.umax);
        }
        if value.umax >= OFFSET_MAX as u64 {
            refuse!("R{number} unbounded memory access, use 'var &= const' or 'if (var < const)'");
        }
        found.size_max = Some(value.umax as u32);
        const DYNPTR_FROM_MEM: u32 = 197;
        if proto.id == DYNPTR_FROM_MEM && !matches!(state.kind, Kind::MapValue { nullable: false, .. }) {
            refuse!("Unsupported reg type {} for bpf_dynptr_from_mem data", state.kind.name());
        }
        if state.is_null() && nullable {
            self.mark_precise(state);
            return if value.umax == 0 { Ok(()) } else { wrong(reg, state, "fp") };
        }
        // One that may be null is as good as null.
        let state = if nullable { &RegState { kind: state.kind.non_null(), ..*state } } else { state };
        // With a size that is not known, not all of the memory may be written.
        let access = match access {
            MemAccess::Write if size.as_const().is_none() => MemAccess::ReadWrite,
            access => access,
        };
        self.memory(reg, state, value.umax as u32, access, proto.packets)
    }

    /// `size` bytes that the helper accesses.
    pub(crate) fn memory(
        &mut self,
        reg: Reg,
        pointer: &RegState,
        size: u32,
        access: MemAccess,
        packets: bool,
    ) -> Checked {
        let target = Target { reg, pointer, off: 0, size };
        let (reads, writes) = (access != MemAccess::Write, access != MemAccess::Read);
        let both = [(reads, Access::Read), (writes, Access::Write)];
        let wanted = both.into_iter().filter(|(wanted, _)| *wanted).map(|(_, access)| access);
        match pointer.kind {
            Kind::Stack { frame } => {
                let direction = if writes { Access::Write } else { Access::Read };
                let span = self.on_stack(&target, direction)?;
                if access == MemAccess::Write && span.is_fixed() {
                    self.helper_writes_stack(frame, span)
                } else {
                    self.helper_reads_stack(frame, span, writes)
                }
            }
            Kind::MapValue { map, nullable: false } => {
                wanted.into_iter().try_for_each(|access| self.map_value(&target, map, access))
            }
            Kind::MapKey { map } => {
                wanted.into_iter().try_for_each(|access| self.map_key(&target, map, access))
            }
            Kind::Mem { size: region, nullable: false, memory } => {
                if writes {
                    self.writable(reg, memory, Access::Write)?;
                }
                self.sized_memory(&target, region)
            }
            Kind::Packet | Kind::PacketMeta => {
                if !packets || !context::may_write_packet(self.program.prog_type) {
                    refuse!("helper access to the packet is not allowed");
                }
                wanted.into_iter().try_for_each(|access| self.packet(&target, access))
            }
            _ => wrong(reg, pointer, MEMORY),
        }
    }

    fn context_argument(
        &mut self,
        proto: &HelperProto,
        reg: Reg,
        state: &RegState,
        nullable: bool,
    ) -> Checked {
        if nullable && state.is_null() {
            self.mark_precise(state);
            return Ok(());
        }
        if state.kind != Kind::Ctx {
            return wrong(reg, state, "ctx");
        }
        if state.off < 0 {
            refuse!("negative offset ctx ptr R{} off={} disallowed", reg.0, state.off);
        }
        if state.off != 0 {
            refuse!("dereference of modified ctx ptr R{} off={} disallowed", reg.0, state.off);
        }
        if state.value.as_const() != Some(0) {
            refuse!("variable ctx access var_off={} disallowed", state.value.tnum);
        }
        self.facts.context = self.facts.context.union(context::read_by_helper(proto.id as i32));
        Ok(())
    }

    /// A ring-buffer record from its start; gives its reference when the helper takes it.
    fn record(&mut self, reg: Reg, state: &RegState, release: bool) -> Checked<u32> {
        let Kind::Mem { memory: Memory::Ringbuf, nullable: false, .. } = state.kind else {
            return wrong(reg, state, "ringbuf_mem").map(|()| 0);
        };
        if state.const_offset() != Some(0) || state.off != 0 {
            refuse!("R{} must have zero offset when passed to release func or trusted arg to kfunc", reg.0);
        }
        if release && !self.state.references.iter().any(|held| held.0 == state.reference) {
            refuse!("release unowned reference in R{}", reg.0);
        }
        Ok(if release { state.reference } else { 0 })
    }

    /// A string that never changes and that ends.
    fn constant_string(&mut self, proto: &HelperProto, reg: Reg, state: &RegState) -> Checked {
        let Kind::MapValue { map, nullable: false } = state.kind else {
            return wrong(reg, state, "map_value");
        };
        let info = self.map(map)?;
        let contents =
            info.frozen_contents.as_ref().filter(|_| info.shape.map_flags & MapFlags::RDONLY_PROG != 0);
        let Some(contents) = contents else { refuse!("R{} does not point to a readonly map'", reg.0) };
        let Some(off) = state.const_offset() else { refuse!("R{} is not a constant address'", reg.0) };
        let text = usize::try_from(off).ok().and_then(|off| contents.get(off..)).unwrap_or(&[]);
        if !text.contains(&0) {
            refuse!("string is not zero-terminated");
        }
        const SNPRINTF: u32 = 165;
        if proto.id == SNPRINTF {
            // The kernel looks at the bits that are known of the size of the arguments.
            let len = self.state.reg(Reg::R5).value.tnum.value;
            if !len.is_multiple_of(8) {
                refuse!("bpf_snprintf takes an array of 8-byte arguments, not {len} bytes");
            }
            if !Format::is_valid(text, (len / 8) as usize) {
                refuse!("Invalid format string");
            }
        }
        Ok(())
    }
}

/// True for what [`Explorer::memory`] can look into.
fn is_memory(kind: Kind) -> bool {
    matches!(
        kind,
        Kind::Stack { .. }
            | Kind::MapValue { nullable: false, .. }
            | Kind::MapKey { .. }
            | Kind::Mem { nullable: false, .. }
            | Kind::Packet
            | Kind::PacketMeta
    )
}

/// The argument is of another kind.
fn wrong(reg: Reg, state: &RegState, expected: &str) -> Checked {
    refuse!("R{} type={} expected={expected}", reg.0, state.kind.name())
}
