//! Writes random structured programs.
//!
//! The generator keeps a rough [`model`] of registers and stack, as a compiler would, and writes what makes sense in it: a
//! bound before an access, a test for null before a use. Now and then it does not, by a little. What a bound looks like, and
//! how the number came about, is as varied as the instruction set allows.

mod access;
mod arithmetic;
mod calls;
mod flow;
mod model;

use crate::maps;
use crate::numbers::Numbers;
use beeline_isa::Insn;
use beeline_isa::opcode as o;
use beeline_verifier::{GlobalArg, GlobalSignature, MapInfo, ProgType, Program, SubprogramInfo};
use model::{Base, Model, Thing};

/// Program types, frequent ones several times.
const TYPES: [ProgType; 14] = [
    ProgType::KPROBE,
    ProgType::KPROBE,
    ProgType::KPROBE,
    ProgType::KPROBE,
    ProgType::KPROBE,
    ProgType::TRACEPOINT,
    ProgType::RAW_TRACEPOINT,
    ProgType::PERF_EVENT,
    ProgType::XDP,
    ProgType::XDP,
    ProgType::SOCKET_FILTER,
    ProgType::SCHED_CLS,
    ProgType::SCHED_CLS,
    ProgType::SYSCALL,
];

/// What a function is, and with it its arguments.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Role {
    /// The program: r1 is the context.
    Main,
    /// Called with: number, pointer to 16 bytes, context, number.
    Static,
    /// The same by its type, verified by itself.
    Global,
    /// Of `bpf_loop`: index, pointer to 16 bytes of the caller's stack.
    Turn,
    /// Of `bpf_for_each_map_elem`: map, key, value, pointer to 16 bytes of the caller's stack.
    Element,
}

/// The functions of a program. A function calls only later ones.
const ROLES: [Role; 6] = [Role::Main, Role::Static, Role::Static, Role::Global, Role::Turn, Role::Element];

/// Writes one program.
struct Generator {
    numbers: Numbers,
    prog_type: ProgType,
    insns: Vec<Insn>,
    model: Model,
    /// Registers that must keep what they hold: bit n for rn.
    locked: u16,
    function: usize,
    /// Slots of calls and references, and whom they mean.
    pending: Vec<(usize, usize)>,
    /// Functions that somebody refers to.
    wanted: [bool; ROLES.len()],
    /// Slots of stack that the function may use.
    slots: usize,
    /// How many statements may still be written.
    budget: u32,
    /// In percent: how often it makes a mistake where it could.
    mistakes: u64,
    loops: u32,
}

/// A random program; the same for the same numbers.
pub fn program(numbers: Numbers, maps: &[MapInfo]) -> Program {
    let mut generator = Generator::new(numbers);
    let mut starts = [0; ROLES.len()];
    for (function, start) in starts.iter_mut().enumerate() {
        if generator.wanted[function] {
            *start = generator.insns.len();
            generator.write_function(function);
        }
    }
    for &(at, function) in &generator.pending {
        generator.insns[at].imm = starts[function] as i32 - at as i32 - 1;
    }
    let subprograms =
        generator.wanted.iter().enumerate().filter(|&(function, &wanted)| wanted && function > 0);
    let subprograms = subprograms.map(|(function, _)| SubprogramInfo {
        start: starts[function] as u32,
        name: format!("f{function}"),
        global: (ROLES[function] == Role::Global).then(signature),
    });
    Program {
        name: "adversary".into(),
        prog_type: generator.prog_type,
        gpl_compatible: true,
        sleepable: generator.prog_type == ProgType::SYSCALL,
        subprograms: subprograms.collect(),
        insns: std::mem::take(&mut generator.insns),
        maps: maps.to_vec(),
        ..Program::default()
    }
}

fn signature() -> GlobalSignature {
    let memory = GlobalArg::Mem { size: 16, nonnull: false };
    GlobalSignature {
        args: vec![GlobalArg::Scalar, memory, GlobalArg::Ctx, GlobalArg::Scalar],
        returns_void: false,
    }
}

impl Generator {
    fn new(mut numbers: Numbers) -> Generator {
        let prog_type = numbers.one_of(&TYPES);
        let mistakes = numbers.one_of(&[0, 0, 1, 2, 5]);
        Generator {
            numbers,
            prog_type,
            insns: Vec::with_capacity(128),
            model: Model::new(),
            locked: 0,
            function: 0,
            pending: Vec::new(),
            wanted: [true, false, false, false, false, false],
            slots: model::SLOTS,
            budget: 0,
            mistakes,
            loops: 0,
        }
    }

    fn emit(&mut self, code: u8, dst: u8, src: u8, off: i16, imm: i32) {
        self.insns.push(Insn::new(code, dst, src, off, imm));
    }

    fn wide(&mut self, dst: u8, src: u8, low: i32, high: i32) {
        self.emit(o::LD_IMM64, dst, src, 0, low);
        self.emit(0, 0, 0, 0, high);
    }

    fn mov(&mut self, dst: u8, src: u8) {
        self.emit(o::ALU64 | o::MOV | o::SRC_REG, dst, src, 0, 0);
        if dst < 10 {
            self.model.regs[dst as usize] = self.thing(src);
        }
    }

    fn mov_imm(&mut self, dst: u8, imm: i32) {
        self.emit(o::ALU64 | o::MOV, dst, 0, 0, imm);
        self.set(dst, Thing::Number(u32::try_from(imm).ok()));
    }

    fn thing(&self, reg: u8) -> Thing {
        if reg == 10 { Thing::start(Base::Stack) } else { self.model.regs[reg as usize] }
    }

    fn set(&mut self, reg: u8, thing: Thing) {
        self.model.regs[reg as usize] = thing;
    }

    /// True when a mistake is to be made.
    fn errs(&mut self) -> bool {
        self.mistakes != 0 && self.numbers.percent(self.mistakes)
    }

    /// A register whose contents fulfil a condition.
    fn find(&mut self, fits: impl Fn(Thing) -> bool) -> Option<u8> {
        let all = (0..10).filter(|&reg| fits(self.model.regs[reg as usize])).collect::<Vec<u8>>();
        if all.is_empty() { None } else { Some(self.numbers.one_of(&all)) }
    }

    /// A register that may be overwritten.
    fn free(&mut self) -> u8 {
        for _ in 0..12 {
            let reg = self.numbers.below(10) as u8;
            if self.locked & 1 << reg == 0 && !self.is_held(reg) && self.is_cheap(reg) {
                return reg;
            }
        }
        (0..6).find(|reg| self.locked & 1 << reg == 0 && !self.is_held(*reg)).unwrap_or(0)
    }

    /// Pointers and the context are kept for a while.
    fn is_cheap(&mut self, reg: u8) -> bool {
        match self.model.regs[reg as usize] {
            Thing::Nothing | Thing::Number(_) => true,
            Thing::Context => false,
            _ => self.numbers.percent(20),
        }
    }

    fn is_held(&self, reg: u8) -> bool {
        self.model.held.contains(&reg)
    }

    /// A register that a call does not clobber.
    fn saved(&mut self) -> Option<u8> {
        let fits = |reg: &u8| {
            self.locked & 1 << reg == 0
                && !self.is_held(*reg)
                && !matches!(self.model.regs[*reg as usize], Thing::Context)
        };
        let all = (6..10).filter(fits).collect::<Vec<u8>>();
        if all.is_empty() { None } else { Some(self.numbers.one_of(&all)) }
    }

    /// A number in some register.
    fn number(&mut self) -> u8 {
        if let Some(reg) = self.find(Thing::is_number)
            && self.numbers.percent(75)
        {
            return reg;
        }
        let reg = self.free();
        self.new_number(reg);
        reg
    }

    fn write_function(&mut self, function: usize) {
        let role = ROLES[function];
        (self.function, self.model, self.locked) = (function, Model::new(), 0);
        self.slots = if role == Role::Main {
            4 + self.numbers.below(13) as usize
        } else {
            2 + self.numbers.below(4) as usize
        };
        self.budget = if role == Role::Main {
            3 + self.numbers.below(14) as u32
        } else {
            1 + self.numbers.below(5) as u32
        };
        let memory = Thing::start(Base::Memory(16));
        match role {
            Role::Main => self.set(1, Thing::Context),
            Role::Static => {
                let things = [Thing::ANY, memory, Thing::Context, Thing::ANY];
                self.model.regs[1..5].copy_from_slice(&things);
            }
            Role::Global => {
                let things = [Thing::ANY, Thing::Maybe(Base::Memory(16)), Thing::Context, Thing::ANY];
                self.model.regs[1..5].copy_from_slice(&things);
            }
            Role::Turn => self.model.regs[1..3].copy_from_slice(&[Thing::ANY, memory]),
            Role::Element => {
                let things = [
                    Thing::Nothing,
                    Thing::start(Base::Memory(4)),
                    Thing::start(Base::Value(maps::ARRAY)),
                    memory,
                ];
                self.model.regs[1..5].copy_from_slice(&things);
            }
        }
        self.prologue();
        while self.budget > 0 && self.insns.len() < 400 {
            self.statement(3);
        }
        self.release_all();
        self.write_exit();
    }

    /// Arguments go where calls do not clobber them; some stack is initialised.
    fn prologue(&mut self) {
        let mut to = 6;
        for reg in 1..5 {
            let thing = self.model.regs[reg];
            if thing != Thing::Nothing && to < 10 && !self.numbers.percent(10) {
                self.mov(to, reg as u8);
                to += 1;
            }
        }
        for _ in 0..self.numbers.below(3) {
            let (slot, value) = (self.numbers.below(self.slots as u64) as usize, self.numbers.interesting());
            self.emit(o::ST | o::MEM | o::DW, 10, 0, -8 * (slot as i16 + 1), value as i32);
            self.model.slots[slot] = Thing::ANY;
        }
    }

    /// r0 and `exit`.
    fn write_exit(&mut self) {
        let is_callback = matches!(ROLES[self.function], Role::Turn | Role::Element);
        match self.find(Thing::is_number) {
            Some(reg) if !is_callback && self.numbers.percent(70) => self.mov(0, reg),
            Some(reg) if self.numbers.percent(30) => {
                self.mov(0, reg);
                self.emit(o::ALU64 | o::AND, 0, 0, 0, 1);
            }
            _ => {
                let value =
                    if is_callback && !self.errs() { self.numbers.below(2) } else { self.numbers.below(4) };
                self.mov_imm(0, value as i32);
            }
        }
        self.emit(o::JMP | o::EXIT, 0, 0, 0, 0);
    }

    fn statement(&mut self, depth: u32) {
        self.budget = self.budget.saturating_sub(1);
        match self.numbers.below(100) {
            0..=17 => self.compute(),
            18..=25 => {
                let reg = self.free();
                self.new_number(reg);
            }
            26..=45 => self.bounded_access(),
            46..=54 => self.plain_access(),
            55..=61 => self.spill_or_fill(),
            62..=64 => self.copy(),
            65..=72 if depth > 0 => self.branch(depth),
            73..=76 if depth > 0 => self.repeat(depth),
            77..=82 => self.look_up(),
            83..=85 => self.ring(depth),
            86..=90 => self.helper(),
            91..=93 => self.call_function(),
            94..=95 => self.atomic(),
            96..=97 => self.packet(),
            98 => self.early_exit(),
            _ => self.constant_map(),
        }
    }
}
