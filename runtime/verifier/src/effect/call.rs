//! What calls and returns do.

use crate::bounds::Scalar;
use crate::code::jump_target;
use crate::effect::iter::ITER_NEXT;
use crate::effect::{dynptr, packet, pointer};
use crate::explore::{Explorer, Next};
use crate::program::{FRAMES_MAX, GlobalArg};
use crate::refusal::{Checked, refuse};
use crate::require::arguments::Arguments;
use crate::state::{Byte, Callback, Frame, Kind, MapRef, Memory, RegState, State, Trust};
use beeline_abi::code::HostValue;
use beeline_abi::map::MapType;
use beeline_helpers::HOST_FUNCTION_BASE;
use beeline_helpers::proto::{HelperProto, RetKind};
use beeline_isa::Reg;

/// Most turns of `bpf_loop` (`BPF_MAX_LOOPS`); more is an error at run time.
const LOOP: u32 = 181;
const FOR_EACH_MAP_ELEM: u32 = 164;
const USER_RINGBUF_DRAIN: u32 = 209;
const TAIL_CALL: u32 = 12;
const SPIN_LOCK: u32 = 93;
const SPIN_UNLOCK: u32 = 94;

impl Explorer<'_> {
    /// A call of a subprogram.
    pub(crate) fn call_local(&mut self, imm: i32) -> Checked<Next> {
        let target = jump_target(self.pc, imm.into());
        let Some(callee) = self.code.subprogram_starting(target) else {
            refuse!("call to invalid destination")
        };
        if let Some(signature) = self.global_signature(callee) {
            if self.state.lock.is_some() {
                refuse!(
                    "global function calls are not allowed while holding a lock, use static function instead"
                );
            }
            self.global_arguments(&signature)?;
            self.facts.global_called_busy |= self.in_the_way_of_hosts().is_some();
            self.call_global(callee);
            self.state.clobber_caller_saved();
            if !signature.returns_void {
                self.state.set(Reg::R0, RegState::unknown());
            }
            return Ok(Next::Goto(self.pc + 1));
        }
        let mut frame = self.new_frame(callee)?;
        frame.regs[1..6].copy_from_slice(&self.state.frame().regs[1..6]);
        self.state.clobber_caller_saved();
        self.state.frames.push(frame);
        Ok(Next::Goto(target))
    }

    fn new_frame(&self, callee: usize) -> Checked<Frame> {
        let depth = self.state.frames.len();
        if depth >= FRAMES_MAX {
            refuse!("the call stack of {} frames is too deep", depth + 1);
        }
        Ok(Frame::new(depth as u8, callee as u16, self.pc as u32))
    }

    /// The frame in which a global subprogram is verified by itself: anything of the declared types.
    pub(crate) fn global_frame(&mut self, subprogram: u16) -> Frame {
        let mut frame = Frame::new(0, subprogram, 0);
        let signature = self.global_signature(subprogram.into()).unwrap_or_default();
        for (reg, arg) in frame.regs[1..6].iter_mut().zip(signature.args) {
            *reg = match arg {
                GlobalArg::Scalar => RegState::unknown(),
                GlobalArg::Ctx => RegState::pointer(Kind::Ctx),
                GlobalArg::Mem { size, nonnull } => {
                    let kind = Kind::Mem { size, memory: Memory::Argument, nullable: !nonnull };
                    RegState { id: if nonnull { 0 } else { self.fresh_id() }, ..RegState::pointer(kind) }
                }
            };
        }
        frame
    }

    /// `exit`.
    pub(crate) fn exit(&mut self) -> Checked<Next> {
        if self.state.frames.len() == 1 {
            self.may_exit()?;
            return Ok(Next::End);
        }
        match self.state.frame().callback {
            Some(callback) => self.return_to_helper(callback),
            None => {
                self.may_return()?;
                let returned = *self.state.reg(Reg::R0);
                let callsite = self.state.frame().callsite as usize;
                self.state.frames.pop();
                self.state.set(Reg::R0, returned);
                Ok(Next::Goto(callsite + 1))
            }
        }
    }

    /// A callback returns: the helper may call it again, or return itself.
    fn return_to_helper(&mut self, callback: Callback) -> Checked<Next> {
        self.may_return_to_helper(callback)?;
        let callsite = self.state.frame().callsite as usize;
        self.state.frames.pop();
        self.widen(callsite, 0);
        Ok(Next::Goto(callsite))
    }

    /// A bounded loop comes back to its head at `pc`: numbers that changed since the last time, and decided nothing, may be
    /// anything from now on, so that the loop comes to an end here too.
    pub(crate) fn widen(&mut self, pc: usize, newer: usize) {
        let Some(before) = self.kept_above(pc, newer) else { return };
        let mut changed: Vec<(usize, bool, usize)> = Vec::new();
        for (index, (old, new)) in before.frames.iter().zip(&self.state.frames).enumerate() {
            let differs = |old: &RegState, new: &RegState| {
                old.kind == Kind::Scalar
                    && new.kind == Kind::Scalar
                    && old.value != new.value
                    && !self.precision.is_marked(old.node)
            };
            changed
                .extend((0..10).filter(|&r| differs(&old.regs[r], &new.regs[r])).map(|r| (index, false, r)));
            let slots = old.stack.len().min(new.stack.len());
            changed.extend(
                (0..slots)
                    .filter(|&s| {
                        let (old, new) = (&old.stack[s], &new.stack[s]);
                        old.spill_size() > 0
                            && old.spill_size() == new.spill_size()
                            && differs(&old.spilled, &new.spilled)
                    })
                    .map(|s| (index, true, s)),
            );
        }
        for (frame, on_stack, index) in changed {
            let frame = &mut self.state.frames[frame];
            let reg = if on_stack { &mut frame.stack[index].spilled } else { &mut frame.regs[index] };
            *reg = RegState::unknown();
            if on_stack {
                let bits = frame.stack[index].spill_size() * 8;
                frame.stack[index].spilled.value = frame.stack[index].spilled.value.truncated(bits);
            }
        }
    }

    /// What a helper call does, after its arguments were found right.
    pub(crate) fn call_helper(&mut self, proto: &HelperProto, arguments: &Arguments) -> Checked<Next> {
        if let (ITER_NEXT, Some(at)) = (proto.id, arguments.iter) {
            return self.iter_next(at);
        }
        match proto.id {
            LOOP | FOR_EACH_MAP_ELEM | USER_RINGBUF_DRAIN => self.call_back(proto.id, arguments)?,
            TAIL_CALL => self.tail_call()?,
            SPIN_LOCK => self.state.lock = arguments.lock,
            SPIN_UNLOCK => self.state.lock = None,
            _ => {}
        }
        if arguments.released != 0 {
            pointer::release(&mut self.state, arguments.released);
            dynptr::destroy(&mut self.state, arguments.released);
        }
        if proto.changes_packet {
            packet::forget(&mut self.state);
        }
        self.state.clobber_caller_saved();
        let returned = self.returned(proto, arguments)?;
        self.state.set(Reg::R0, returned);
        Ok(Next::Goto(self.pc + 1))
    }

    /// A call of a function of the target.
    pub(crate) fn call_host(&mut self, index: i32) -> Checked<Next> {
        let program = self.program;
        let function = usize::try_from(index).ok().and_then(|index| program.host_functions.get(index));
        let Some(function) = function else { refuse!("kernel btf_id {index} is not a function") };
        self.may_call_host(function)?;
        self.host_arguments(function)?;
        self.facts.host_calls = true;
        self.facts.host_calls_in_global |= self.state.frames[0].subprogram != 0;
        self.facts.kfuncs.insert(self.pc, HOST_FUNCTION_BASE + index as u32);
        self.state.clobber_caller_saved();
        let returned = match function.returns {
            HostValue { size: 0, .. } => RegState::UNINIT,
            HostValue { size: 8, .. } => RegState::unknown(),
            HostValue { size, signed: true } => {
                let most = (1i64 << (8 * u32::from(size) - 1)) - 1;
                RegState::scalar(Scalar::signed_range(-most - 1, most))
            }
            HostValue { size, signed: false } => {
                RegState::scalar(Scalar::unsigned_range(0, (1 << (8 * u32::from(size))) - 1))
            }
        };
        self.state.set(Reg::R0, returned);
        Ok(Next::Goto(self.pc + 1))
    }

    /// A tail call that succeeds returns from the subprogram with whatever the other program returns.
    fn tail_call(&mut self) -> Checked {
        self.facts.tail_calls = true;
        let subprogram = usize::from(self.state.frame().subprogram);
        self.facts.tail_callers[subprogram] = true;
        if self.state.frames.len() == 1 || self.state.frame().callback.is_some() {
            return Ok(());
        }
        let mut returned = self.state.clone();
        let callsite = returned.frame().callsite as usize;
        returned.frames.pop();
        returned.set(Reg::R0, RegState::unknown());
        self.push(callsite + 1, returned)
    }

    /// What r0 is after the call.
    fn returned(&mut self, proto: &HelperProto, arguments: &Arguments) -> Checked<RegState> {
        Ok(match proto.ret {
            RetKind::Void => RegState::UNINIT,
            RetKind::Integer => RegState::scalar(range_returned(proto.id, arguments)),
            RetKind::MapValueOrNull => {
                let Some(map) = arguments.map else { refuse!("helper {} needs a map", proto.name) };
                self.looked_up(map, arguments)?
            }
            RetKind::RingbufMemOrNull => {
                let Some(size) = arguments.record_size else { refuse!("helper {} needs a size", proto.name) };
                // The kernel numbers the pointer before the reference, whose number both have.
                self.fresh_id();
                let id = self.fresh_id();
                self.state.references.push((id, self.pc as u32));
                let kind = Kind::Mem { size, memory: Memory::Ringbuf, nullable: true };
                RegState { id, reference: id, ..RegState::pointer(kind) }
            }
            // Made by `iter_next`.
            RetKind::IterElementOrNull => RegState::constant(0),
            RetKind::Cast => {
                let type_id = arguments.type_id;
                let kind = Kind::Btf { type_id, trust: Trust::Untrusted, nullable: false };
                RegState::pointer(kind)
            }
            RetKind::DynptrMemOrNull => {
                let Some(size) = arguments.record_size else { refuse!("helper {} needs a size", proto.name) };
                let id = self.fresh_id();
                let kind = Kind::Mem { size, memory: Memory::Dynptr, nullable: true };
                RegState { id, reference: arguments.dynptr, ..RegState::pointer(kind) }
            }
            RetKind::Mem { size } => {
                RegState::pointer(Kind::Mem { size, memory: Memory::Argument, nullable: false })
            }
            RetKind::Btf(name) => RegState::pointer(self.object(name, false)),
            RetKind::BtfOrNull(name) => {
                let id = self.fresh_id();
                RegState { id, ..RegState::pointer(self.object(name, true)) }
            }
        })
    }

    /// A kernel object that a helper vouches for.
    fn object(&self, name: &str, nullable: bool) -> Kind {
        let type_id = self.types().and_then(|types| types.find(name)).unwrap_or(0);
        Kind::Btf { type_id, trust: Trust::Trusted, nullable }
    }

    /// The result of a look-up.
    fn looked_up(&mut self, map: MapRef, arguments: &Arguments) -> Checked<RegState> {
        let info = self.map(map)?;
        let nullable = !arguments.key_exists;
        let is_outer = matches!(info.shape.map_type, MapType::ARRAY_OF_MAPS | MapType::HASH_OF_MAPS);
        let kind = if is_outer {
            if info.inner.is_none() || map.inner {
                refuse!("the members of map {} are not known", info.name);
            }
            Kind::MapPtr { map: MapRef { index: map.index, inner: true }, nullable: true }
        } else {
            Kind::MapValue { map, nullable }
        };
        // A lock in this value is not the lock in another.
        let id =
            if kind.is_nullable() || pointer::has_lock(self.program, kind) { self.fresh_id() } else { 0 };
        Ok(RegState { id, ..RegState::pointer(kind) })
    }

    /// A helper that calls a subprogram: the path into the subprogram is explored later, this one goes on behind the call.
    fn call_back(&mut self, helper: u32, arguments: &Arguments) -> Checked {
        let Some(callee) = arguments.callback else { refuse!("helper {helper} needs a callback") };
        self.facts.callbacks[callee] = true;
        let turns_max = if helper == LOOP {
            self.mark_reg_precise(Reg::R1);
            self.state.reg(Reg::R1).value.umax
        } else {
            u64::MAX
        };
        if u64::from(self.state.frame().callback_depth) >= turns_max {
            self.state.frame_mut().callback_depth = 0;
            return Ok(());
        }
        let mut inside = self.state.clone();
        let mut frame = self.new_frame(callee)?;
        frame.callback = Some(Callback { returns_max: 1 });
        self.callback_arguments(helper, arguments, &inside, &mut frame)?;
        inside.frame_mut().callback_depth += 1;
        inside.frames.push(frame);
        self.push(self.code.subprograms[callee].start, inside)?;
        self.state.frame_mut().callback_depth = 0;
        Ok(())
    }

    fn callback_arguments(
        &mut self,
        helper: u32,
        arguments: &Arguments,
        state: &State,
        frame: &mut Frame,
    ) -> Checked {
        let context = *state.reg(Reg::R3);
        if helper == LOOP {
            frame.regs[1] = RegState::unknown();
            frame.regs[2] = context;
            return Ok(());
        }
        if helper == USER_RINGBUF_DRAIN {
            let id = self.fresh_id();
            frame.regs[1] = RegState { id, ..RegState::pointer(Kind::DynptrPtr) };
            frame.regs[2] = context;
            return Ok(());
        }
        let Some(map) = arguments.map else { refuse!("helper {helper} needs a map") };
        frame.regs[1] = RegState::pointer(Kind::MapPtr { map, nullable: false });
        frame.regs[2] = RegState::pointer(Kind::MapKey { map });
        frame.regs[3] = RegState::pointer(Kind::MapValue { map, nullable: false });
        frame.regs[4] = context;
        Ok(())
    }

    /// `may_goto`: on, or to the target when the budget of the run is spent.
    pub(crate) fn may_goto(&mut self, target: i16) -> Checked<Next> {
        let out = self.state.clone();
        self.push(jump_target(self.pc, target.into()), out)?;
        // The newest state that was kept here is this one.
        self.widen(self.pc, 1);
        self.state.may_goto_depth += 1;
        Ok(Next::Goto(self.pc + 1))
    }

    /// The instruction is the head of a loop whose turns something else bounds.
    pub(crate) fn is_bounded_loop_head(&self) -> bool {
        use beeline_isa::{Call, Op};
        match self.code.op(self.pc) {
            Some(Op::MayGoto { .. }) => true,
            Some(Op::Call(Call::Kfunc { .. })) => self.is_iter_next(),
            Some(Op::Call(Call::Helper(id))) => {
                [LOOP, FOR_EACH_MAP_ELEM, USER_RINGBUF_DRAIN].contains(&(id as u32))
            }
            _ => false,
        }
    }
}

/// Numbers that some helpers return are bounded by their arguments.
fn range_returned(helper: u32, arguments: &Arguments) -> Scalar {
    const GET_SMP_PROCESSOR_ID: u32 = 8;
    const PROBE_READ_STR: u32 = 45;
    const GET_STACK: u32 = 67;
    const PROBE_READ_USER_STR: u32 = 114;
    const PROBE_READ_KERNEL_STR: u32 = 115;
    const GET_TASK_STACK: u32 = 141;
    /// Most CPUs of a kernel (`NR_CPUS` of the distributions).
    const CPUS_MAX: u64 = 8192;
    /// `MAX_ERRNO`.
    const ERRNO_MAX: i64 = 4095;
    match helper {
        GET_SMP_PROCESSOR_ID => Scalar::unsigned_range(0, CPUS_MAX - 1),
        PROBE_READ_STR | GET_STACK | PROBE_READ_USER_STR | PROBE_READ_KERNEL_STR | GET_TASK_STACK => {
            match arguments.size_max {
                Some(size) => Scalar::signed_range(-ERRNO_MAX, i64::from(size)),
                None => Scalar::UNKNOWN,
            }
        }
        _ => Scalar::UNKNOWN,
    }
}

/// The number in `size` bytes of the stack, little-endian, when it is known: zeros, or a spilled number of just that size.
pub(crate) fn constant_bytes(frame: &Frame, off: i32, size: u32) -> Option<u64> {
    let (index, first) = crate::state::place(off);
    let slot = frame.stack.get(index)?;
    if first == 0 && slot.spill_size() == size && slot.spilled.kind == Kind::Scalar {
        return slot.spilled.value.as_const();
    }
    let bytes = slot.bytes.get(first..first + size as usize)?;
    bytes.iter().all(|&byte| byte == Byte::Zero).then_some(0)
}
