//! One program on trial: verified, and if it was accepted, run on several inputs while everything that was claimed of it is
//! compared with what happens.

use crate::host::Helpers;
use crate::numbers::Numbers;
use crate::world::{World, WorldMemory};
use beeline_interp::{Limits, Trap, TrapKind, Watch, run_watched};
use beeline_isa::{Call, Insn, Op, decode};
use beeline_verifier::claims::{Claims, Moment};
use beeline_verifier::{MapInfo, Options, ProgType, Program, Verified, verify_with_claims};
use std::cell::{Cell, RefCell};
use std::panic::{AssertUnwindSafe, catch_unwind};

/// Most instructions of a run that nothing but itself bounds; others may take as many as the verifier looked at.
const STEPS_MAX: u64 = 4_000;

/// What came of a program.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// The verifier refused it.
    Refused {
        /// Instruction slot.
        pc: usize,
        /// The reason.
        reason: String,
    },
    /// It was accepted, and kept every promise.
    Held(Work),
    /// The verifier is wrong.
    Broken(String),
}

/// How much a program did.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Work {
    /// Instructions that the verifier looked at.
    pub processed: u32,
    /// Instructions that were executed in all runs.
    pub executed: u64,
    /// Distinct instruction slots that were executed.
    pub covered: u32,
    /// Runs that were cut off: a loop that only the run bounds, or an instruction that is not for the interpreter.
    pub cut: u32,
}

/// Where programs are tried: one for each thread.
pub struct Bench {
    world: RefCell<World>,
    /// Runs of each accepted program.
    pub runs: u32,
}

impl Bench {
    /// A bench for programs with these maps.
    pub fn new(maps: &[MapInfo], runs: u32) -> Bench {
        Bench { world: RefCell::new(World::new(maps)), runs }
    }

    /// Tries a program. All chance comes from `seed`.
    pub fn try_program(&self, program: &Program, options: &Options, seed: u64) -> Outcome {
        self.try_with_proof_of(program, &program.insns, options, seed)
    }

    /// Verifies one program and runs the instructions of another: a test that this is noticed.
    pub fn try_with_proof_of(
        &self,
        program: &Program,
        insns: &[Insn],
        options: &Options,
        seed: u64,
    ) -> Outcome {
        let verdict = catch_unwind(AssertUnwindSafe(|| verify_with_claims(program.clone(), options)));
        let (verified, claims) = match verdict {
            Err(panic) => return Outcome::Broken(format!("the verifier panics: {}", words(&*panic))),
            Ok(Err(rejection)) => return Outcome::Refused { pc: rejection.pc, reason: rejection.reason },
            Ok(Ok(accepted)) => accepted,
        };
        self.run_all(&verified, insns, &claims, seed)
    }

    /// Runs an accepted program on all inputs.
    fn run_all(&self, verified: &Verified, insns: &[Insn], claims: &Claims, seed: u64) -> Outcome {
        let decoded = beeline_interp::Program::new(insns);
        let shape = Shape::new(verified);
        let mut numbers = Numbers::new(seed);
        let mut work = Work { processed: verified.stats().insns_processed, ..Work::default() };
        let mut covered = vec![false; verified.insns().len()];
        for _ in 0..self.runs {
            let mut world = self.world.borrow_mut();
            world.reset(numbers.word(), verified.program().prog_type, &shape.dictionary, covered.len());
            drop(world);
            let run = Run { world: &self.world, verified, claims, shape: &shape };
            match run.go(&decoded, &mut covered) {
                Ok((executed, cut)) => {
                    work.executed += executed;
                    work.cut += u32::from(cut);
                }
                Err(what) => return Outcome::Broken(what),
            }
        }
        work.covered = covered.iter().filter(|&&is| is).count() as u32;
        Outcome::Held(work)
    }
}

/// What a panic said.
pub fn words(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("something").to_owned()
}

/// What all runs of a program share.
struct Shape {
    /// Numbers that the program mentions.
    dictionary: Vec<u64>,
    /// By slot: bytes of stack of the subprogram.
    stack_bytes: Vec<u32>,
    /// By slot: the instruction is a call.
    calls: Vec<bool>,
    /// Most instructions of a run, when something bounds them.
    steps_max: Option<u64>,
}

impl Shape {
    fn new(verified: &Verified) -> Shape {
        let insns = verified.insns();
        let mut shape = Shape {
            dictionary: Vec::new(),
            stack_bytes: vec![0; insns.len()],
            calls: vec![false; insns.len()],
            steps_max: Some(verified.stats().insns_processed.into()),
        };
        for subprogram in verified.subprograms() {
            let range = subprogram.start as usize..subprogram.end as usize;
            shape.stack_bytes[range].fill(subprogram.stack_bytes);
            if subprogram.is_callback {
                shape.steps_max = None;
            }
        }
        // A global subprogram is looked at once, however often it is called.
        if verified.program().subprograms.iter().any(|info| info.global.is_some()) {
            shape.steps_max = None;
        }
        let mut pc = 0;
        while pc < insns.len() {
            match decode(&insns[pc..]) {
                Ok(Op::Call(call)) => shape.calls[pc] = !matches!(call, Call::Register(_)),
                Ok(Op::MayGoto { .. }) => shape.steps_max = None,
                _ if insns[pc].imm != 0 => shape.dictionary.push(insns[pc].imm as i64 as u64),
                _ => {}
            }
            pc += if insns[pc].is_wide() { 2 } else { 1 };
        }
        shape
    }
}

/// One run.
struct Run<'r> {
    world: &'r RefCell<World>,
    verified: &'r Verified,
    claims: &'r Claims,
    shape: &'r Shape,
}

impl Run<'_> {
    /// Runs to the end; gives the number of instructions, and whether it was cut off.
    fn go(&self, decoded: &beeline_interp::Program, covered: &mut [bool]) -> Result<(u64, bool), String> {
        let (pc, wrong) = (Cell::new(0), RefCell::new(None));
        let host = Helpers { world: self.world, verified: self.verified, pc: &pc, wrong: &wrong };
        let mut watch = Watcher { run: self, pc: &pc, wrong: &wrong, covered, steps: 0, last: Vec::new() };
        let mut memory = WorldMemory(self.world);
        let arguments = [self.world.borrow().context(), 0, 0, 0, 0];
        let limits = Limits { instructions_max: self.shape.steps_max.unwrap_or(0).max(STEPS_MAX) };
        let null = std::ptr::null_mut();
        let result = run_watched(decoded, &mut memory, &host, arguments, null, limits, &mut watch);
        let steps = watch.steps;
        let cut = match result {
            Ok(_) => false,
            Err(Trap { kind: TrapKind::Unsupported(_), .. }) => true,
            Err(Trap { kind: TrapKind::Budget, .. }) if self.shape.steps_max.is_none() => true,
            Err(Trap { kind: TrapKind::Watched, pc }) => {
                let what = wrong.borrow_mut().take().unwrap_or_default();
                return Err(format!("at instruction {pc}: {what}"));
            }
            Err(trap) => return Err(trap.to_string()),
        };
        self.ended(steps, cut)?;
        Ok((steps, cut))
    }

    /// What must hold at the end.
    fn ended(&self, steps: u64, cut: bool) -> Result<(), String> {
        let world = self.world.borrow();
        if let Some(most) = self.shape.steps_max.filter(|&most| steps > most) {
            return Err(format!("{steps} instructions executed, {most} looked at"));
        }
        if !cut && world.records_held() != 0 {
            return Err("a record is still held at the end".into());
        }
        let needs = self.verified.needs();
        let is_kprobe = self.verified.program().prog_type == ProgType::KPROBE;
        let unforeseen = world.context_reads.iter().find(|&&(offset, _)| !needs.context.reads(offset));
        match unforeseen {
            Some((offset, _)) if is_kprobe => {
                Err(format!("the context is read at {offset}, which is not among the needs"))
            }
            _ => Ok(()),
        }
    }
}

/// Compares each instruction with what was claimed of it.
struct Watcher<'r> {
    run: &'r Run<'r>,
    pc: &'r Cell<u32>,
    wrong: &'r RefCell<Option<String>>,
    covered: &'r mut [bool],
    steps: u64,
    /// Per frame, its last instruction.
    last: Vec<u32>,
}

impl Watch for Watcher<'_> {
    fn step(&mut self, pc: u32, registers: &mut [u64; 11]) -> bool {
        self.steps += 1;
        self.pc.set(pc);
        let slot = pc as usize;
        let world = &mut *self.run.world.borrow_mut();
        self.poison(world, pc, registers);
        world.registers = *registers;
        self.covered[slot] = true;
        let said = if self.run.verified.is_live(slot) {
            self.run.claims.check(slot, world)
        } else {
            Err(format!("instruction {slot} was said never to be executed"))
        };
        if let Err(what) = said {
            self.wrong.borrow_mut().get_or_insert(what);
            return false;
        }
        true
    }
}

impl Watcher<'_> {
    /// What a program must not rely on becomes anything: registers after a call, and those of a new frame.
    fn poison(&mut self, world: &mut World, pc: u32, registers: &mut [u64; 11]) {
        let depth = world.frames().len();
        if depth > self.last.len() {
            world.limit_frame(self.run.shape.stack_bytes[pc as usize]);
            self.last.resize(depth, pc);
            for register in [0, 6, 7, 8, 9] {
                registers[register] = world.numbers.word();
            }
            return;
        }
        let back = depth < self.last.len();
        self.last.truncate(depth);
        let last = std::mem::replace(&mut self.last[depth - 1], pc);
        if self.run.shape.calls[last as usize] && last + 1 == pc || back {
            (1..6).for_each(|register| registers[register] = world.numbers.word());
        }
    }
}
