//! Execution: registers, frames, control flow.

use crate::alu;
use crate::error::{Stop, Trap, TrapKind};
use crate::host::{Environment, HelperCall, Host, Outcome};
use crate::memory::{AccessError, Memory};
use crate::program::Program;
use beeline_abi::errno::{E2BIG, EINVAL};
use beeline_abi::run::RunContext;
use beeline_isa::{AtomicOp, Call, Imm64, Op, Operand, Reg, Size, Width};

/// The value of a reference to the function at slot 0; others follow. No address looks like it.
pub const FUNCTION_BASE: u64 = 0xbee1_0000_0000_0000;

/// Iterations that `may_goto` and `bpf_loop` allow (`BPF_MAX_LOOPS`).
pub const LOOPS_MAX: u64 = 8 * 1024 * 1024;

const HELPER_TAIL_CALL: i32 = 12;
const HELPER_PROBE_READ_KERNEL: i32 = 113;
const HELPER_LOOP: i32 = 181;

/// How far a run may go.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Limits {
    /// Most instructions, over all frames.
    pub instructions_max: u64,
}

impl Default for Limits {
    /// No limit that a terminating program reaches.
    fn default() -> Limits {
        Limits { instructions_max: u64::MAX }
    }
}

/// Looks on while a program runs: a test that compares what happens with what was proven.
pub trait Watch {
    /// The instruction at slot `pc` is about to be executed with these registers. What is written to them is what it
    /// sees; r10 must stay. False ends the run with [`TrapKind::Watched`].
    fn step(&mut self, pc: u32, registers: &mut [u64; 11]) -> bool;
}

/// Nobody looks on.
struct Unwatched;

impl Watch for Unwatched {
    #[inline(always)]
    fn step(&mut self, _pc: u32, _registers: &mut [u64; 11]) -> bool {
        true
    }
}

/// Runs a program from its first instruction; `arguments` are r1 to r5 at entry.
///
/// # Errors
/// [`Trap`] when it cannot go on.
pub fn run(
    program: &Program,
    memory: &mut dyn Memory,
    host: &dyn Host,
    arguments: [u64; 5],
    run: *mut RunContext,
    limits: Limits,
) -> Result<u64, Trap> {
    run_watched(program, memory, host, arguments, run, limits, &mut Unwatched)
}

/// As [`run`], with somebody who looks on.
///
/// # Errors
/// [`Trap`] when it cannot go on, or is not to.
pub fn run_watched<W: Watch>(
    program: &Program,
    memory: &mut dyn Memory,
    host: &dyn Host,
    arguments: [u64; 5],
    run: *mut RunContext,
    limits: Limits,
    watch: &mut W,
) -> Result<u64, Trap> {
    let mut machine = Machine { program, memory, host, run, watch, pc: 0, left: limits.instructions_max };
    match machine.function(0, arguments) {
        Ok(result) => Ok(result),
        Err(stop) => match *stop {
            Stop::Exit(result) => Ok(result),
            Stop::Trap(trap) => Err(trap),
        },
    }
}

/// The rare end of a run. Boxed, so that a step's result fits into registers.
type Ended = Box<Stop>;

struct Machine<'a, W> {
    program: &'a Program,
    memory: &'a mut dyn Memory,
    host: &'a dyn Host,
    run: *mut RunContext,
    watch: &'a mut W,
    /// The instruction being executed.
    pc: u64,
    /// Instructions that may still be executed.
    left: u64,
}

/// Registers of one function, and what `may_goto` still allows it.
struct Frame {
    registers: [u64; 11],
    loops_left: u64,
}

impl Frame {
    fn get(&self, register: Reg) -> u64 {
        self.registers[register.index()]
    }

    fn operand(&self, operand: Operand) -> u64 {
        match operand {
            Operand::Reg(register) => self.get(register),
            Operand::Imm(number) => number as i64 as u64,
        }
    }
}

/// What comes after an instruction.
enum Step {
    Next,
    To(u64),
    Return(u64),
}

impl<W: Watch> Machine<'_, W> {
    fn function(&mut self, start: u64, arguments: [u64; 5]) -> Result<u64, Ended> {
        let pointer = self.memory.enter().map_err(|error| self.stop(TrapKind::Access(error)))?;
        let mut frame = Frame { registers: [0; 11], loops_left: LOOPS_MAX };
        frame.registers[1..6].copy_from_slice(&arguments);
        frame.registers[10] = pointer;
        let caller = std::mem::replace(&mut self.pc, start);
        let result = self.execute(&mut frame);
        self.memory.leave();
        if result.is_ok() {
            self.pc = caller;
        }
        result
    }

    fn execute(&mut self, frame: &mut Frame) -> Result<u64, Ended> {
        loop {
            if self.left == 0 {
                return Err(self.stop(TrapKind::Budget));
            }
            self.left -= 1;
            let op = match self.program.slot(self.pc) {
                Some(Ok(op)) => op,
                Some(Err(error)) => return Err(self.stop(TrapKind::Undecodable(*error))),
                None => return Err(self.stop(TrapKind::OutOfProgram)),
            };
            if !self.watch.step(self.pc as u32, &mut frame.registers) {
                return Err(self.stop(TrapKind::Watched));
            }
            match self.step(frame, op)? {
                Step::Next => self.pc += 1,
                Step::To(target) => self.pc = target,
                Step::Return(result) => return Ok(result),
            }
        }
    }

    #[inline(always)]
    fn step(&mut self, frame: &mut Frame, op: &Op) -> Result<Step, Ended> {
        match *op {
            Op::Alu { width, op, dst, src } => {
                let value = alu::arithmetic(width, op, frame.get(dst), frame.operand(src));
                self.set(frame, dst, value)?;
            }
            Op::Mov { width, dst, src } => {
                self.set(frame, dst, alu::truncate(width, frame.operand(src)))?;
            }
            Op::MovSx { width, dst, src, bits } => {
                self.set(frame, dst, alu::sign_extend(width, bits, frame.get(src)))?;
            }
            Op::Neg { width, dst } => self.set(frame, dst, alu::negate(width, frame.get(dst)))?,
            Op::Endian { kind, dst, bits } => {
                self.set(frame, dst, alu::byte_order(kind, bits, frame.get(dst)))?;
            }
            Op::LoadImm64 { dst, value } => {
                let value = self.immediate(value)?;
                self.set(frame, dst, value)?;
                return Ok(Step::To(self.pc + 2));
            }
            Op::Load { size, signed, dst, base, off } => {
                let loaded = self.memory.load(address(frame, base, off), size);
                let value = self.access(loaded)?;
                self.set(frame, dst, if signed { sign_extend_loaded(size, value) } else { value })?;
            }
            Op::ProbeLoad { size, signed, dst, base, off } => {
                let value = self.probe_load(address(frame, base, off), size)?;
                self.set(frame, dst, if signed { sign_extend_loaded(size, value) } else { value })?;
            }
            Op::Store { size, base, off, src } => {
                let stored = self.memory.store(address(frame, base, off), size, frame.operand(src));
                self.access(stored)?;
            }
            Op::Atomic { size, op, fetch, base, off, src } => {
                self.atomic(frame, size, op, fetch, address(frame, base, off), src)?;
            }
            Op::LoadPacket { .. } => return Err(self.stop(TrapKind::Unsupported("legacy packet access"))),
            Op::Ja { target } => return self.relative(i64::from(target)).map(Step::To),
            Op::Jump { width, op, dst, src, target } => {
                if alu::compare(width, op, frame.get(dst), frame.operand(src)) {
                    return self.relative(i64::from(target)).map(Step::To);
                }
            }
            Op::MayGoto { target } => match frame.loops_left.checked_sub(1) {
                Some(left) => frame.loops_left = left,
                None => return self.relative(i64::from(target)).map(Step::To),
            },
            Op::Call(callee) => return self.call(frame, callee),
            Op::Exit => return Ok(Step::Return(frame.get(Reg::R0))),
        }
        Ok(Step::Next)
    }

    fn immediate(&mut self, value: Imm64) -> Result<u64, Ended> {
        match value {
            Imm64::Value(number) => Ok(number),
            Imm64::Map(map) => self.host.map_handle(map).ok_or_else(|| self.stop(TrapKind::NoMap(map))),
            Imm64::MapValue { map, offset } => {
                let data = self.host.map_data(map).ok_or_else(|| self.stop(TrapKind::NoMap(map)))?;
                Ok(data.wrapping_add(u64::from(offset)))
            }
            Imm64::Func(relative) => Ok(FUNCTION_BASE + self.relative(i64::from(relative))?),
            Imm64::BtfId(_) => Err(self.stop(TrapKind::Unsupported("a kernel variable"))),
        }
    }

    fn atomic(
        &mut self,
        frame: &mut Frame,
        size: Size,
        op: AtomicOp,
        fetch: bool,
        address: u64,
        src: Reg,
    ) -> Result<(), Ended> {
        match op {
            AtomicOp::LoadAcquire => {
                let loaded = self.memory.load_acquire(address, size);
                let value = self.access(loaded)?;
                self.set(frame, src, value)
            }
            AtomicOp::StoreRelease => {
                let stored = self.memory.store_release(address, size, frame.get(src));
                self.access(stored)
            }
            AtomicOp::Cmpxchg => {
                let exchanged =
                    self.memory.compare_exchange(address, size, frame.get(Reg::R0), frame.get(src));
                let old = self.access(exchanged)?;
                self.set(frame, Reg::R0, old)
            }
            AtomicOp::Add | AtomicOp::Or | AtomicOp::And | AtomicOp::Xor | AtomicOp::Xchg => {
                let fetched = self.memory.fetch_update(address, size, op, frame.get(src));
                let old = self.access(fetched)?;
                if fetch { self.set(frame, src, old) } else { Ok(()) }
            }
        }
    }

    fn call(&mut self, frame: &mut Frame, callee: Call) -> Result<Step, Ended> {
        let arguments = std::array::from_fn(|i| frame.registers[i + 1]);
        match callee {
            Call::Local(relative) => {
                let start = self.relative(i64::from(relative))?;
                frame.registers[0] = self.function(start, arguments)?;
                Ok(Step::Next)
            }
            Call::Helper(id) => self.helper(frame, id, arguments),
            Call::Register(register) => {
                let id = frame.get(register) as i64;
                match i32::try_from(id) {
                    Ok(id) => self.helper(frame, id, arguments),
                    Err(_) => Err(self.stop(TrapKind::UnknownHelper(id))),
                }
            }
            Call::Kfunc { .. } => Err(self.stop(TrapKind::Unsupported("a kernel function"))),
        }
    }

    fn helper(&mut self, frame: &mut Frame, id: i32, arguments: [u64; 5]) -> Result<Step, Ended> {
        if id == HELPER_LOOP {
            frame.registers[0] = self.bpf_loop(arguments)?;
            return Ok(Step::Next);
        }
        let (host, call) = (self.host, HelperCall { id, arguments, run: self.run });
        match host.call(&call, self).map_err(Box::new)? {
            Outcome::Value(value) => {
                frame.registers[0] = if id == HELPER_TAIL_CALL { 0 } else { value };
                Ok(Step::Next)
            }
            Outcome::Return(value) => Ok(Step::Return(value)),
            Outcome::Exit(value) => Err(Box::new(Stop::Exit(value))),
        }
    }

    /// What is at an address that may be bad, 0 when nothing is: by the helper that reads such memory.
    fn probe_load(&mut self, address: u64, size: Size) -> Result<u64, Ended> {
        let mut value = 0u64;
        let arguments = [&raw mut value as u64, u64::from(size.bytes()), address, 0, 0];
        let (host, call) = (self.host, HelperCall { id: HELPER_PROBE_READ_KERNEL, arguments, run: self.run });
        host.call(&call, self).map_err(Box::new)?;
        Ok(value)
    }

    /// `bpf_loop(nr, callback, context, flags)`.
    fn bpf_loop(&mut self, [count, callback, context, flags, _]: [u64; 5]) -> Result<u64, Ended> {
        let count = u64::from(count as u32);
        if flags != 0 {
            return Ok((-EINVAL) as u64);
        }
        if count > LOOPS_MAX {
            return Ok((-E2BIG) as u64);
        }
        for index in 0..count {
            if self.call_back(callback, [index, context, 0, 0, 0])? != 0 {
                return Ok(index + 1);
            }
        }
        Ok(count)
    }

    /// Runs the function that a reference stands for.
    fn call_back(&mut self, function: u64, arguments: [u64; 5]) -> Result<u64, Ended> {
        let start = function.wrapping_sub(FUNCTION_BASE);
        if start >= self.program.len() as u64 {
            return Err(self.stop(TrapKind::OutOfProgram));
        }
        self.function(start, arguments)
    }

    #[inline(always)]
    fn set(&self, frame: &mut Frame, register: Reg, value: u64) -> Result<(), Ended> {
        if register == Reg::R10 {
            return Err(self.stop(TrapKind::FramePointer));
        }
        frame.registers[register.index()] = value;
        Ok(())
    }

    /// The slot `offset` slots behind the next one.
    #[inline(always)]
    fn relative(&self, offset: i64) -> Result<u64, Ended> {
        self.pc.checked_add_signed(offset + 1).ok_or_else(|| self.stop(TrapKind::OutOfProgram))
    }

    #[inline(always)]
    fn access<T>(&self, result: Result<T, AccessError>) -> Result<T, Ended> {
        result.map_err(|error| self.stop(TrapKind::Access(error)))
    }

    #[cold]
    fn stop(&self, kind: TrapKind) -> Ended {
        Box::new(Stop::Trap(Trap { pc: self.pc as u32, kind }))
    }
}

impl<W: Watch> Environment for Machine<'_, W> {
    fn memory(&mut self) -> &mut dyn Memory {
        self.memory
    }

    fn callback(&mut self, function: u64, arguments: [u64; 5]) -> Result<u64, Stop> {
        self.call_back(function, arguments).map_err(|stop| *stop)
    }

    fn trap(&self, kind: TrapKind) -> Stop {
        *self.stop(kind)
    }
}

fn address(frame: &Frame, base: Reg, off: i16) -> u64 {
    frame.get(base).wrapping_add_signed(i64::from(off))
}

fn sign_extend_loaded(size: Size, value: u64) -> u64 {
    match size {
        Size::B => alu::sign_extend(Width::W64, 8, value),
        Size::H => alu::sign_extend(Width::W64, 16, value),
        Size::W => alu::sign_extend(Width::W64, 32, value),
        Size::DW => value,
    }
}
