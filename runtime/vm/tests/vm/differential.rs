//! Random programs: the compiler must agree with the interpreter on r0 and on the buffer.
//!
//! `BEELINE_DIFFERENTIAL=N` tries N programs instead of a few hundred.

use crate::surroundings::Surroundings;
use beeline_isa::disasm::{Line, NoNames};
use beeline_isa::opcode as o;
use beeline_isa::{Insn, decode};
use beeline_vm::engine::{Engine, Machine};
use std::fmt::Write;

/// Bytes of the buffer, a power of two.
const BUFFER: usize = 64;

/// Bytes of a frame that programs use.
const FRAME: i16 = 64;

/// A sequence of numbers that depends on a seed only (splitmix64).
pub(crate) struct Numbers(u64);

impl Numbers {
    pub(crate) fn new(seed: u64) -> Numbers {
        Numbers(seed)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub(crate) fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }

    fn one_of<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.below(choices.len() as u64) as usize]
    }

    /// Numbers at which something happens, and some others.
    fn interesting(&mut self) -> u64 {
        match self.below(4) {
            0 => self.one_of(&[0, 1, 2, 31, 32, 63, 64, 0x7f, 0x80, 0xff, 0x8000, 0xffff]),
            1 => self.one_of(&[u64::MAX, 1 << 63, (1 << 63) - 1, 1 << 31, 1 << 32, 0x7fff_ffff, 0xffff_ffff]),
            2 => self.next() >> self.below(64),
            _ => self.next(),
        }
    }
}

/// Writes one program. r9 is the buffer, r8 is for addresses and zero otherwise, r7 counts loops; r0 to r6 hold data.
struct Generator {
    numbers: Numbers,
    insns: Vec<Insn>,
    /// Slots of calls and callback references whose function is still to be placed, by function.
    pending: Vec<(usize, usize)>,
    /// Functions that the one being written may call: all with a larger index, so nothing recurs.
    function: usize,
}

/// Functions of a program: the main one, two subprograms, two callbacks.
const FUNCTIONS: usize = 5;
const CALLBACKS: std::ops::Range<usize> = 3..5;

/// A random program that ends and stays within its buffer.
pub(crate) fn program(seed: u64) -> Vec<Insn> {
    let mut generator =
        Generator { numbers: Numbers(seed), insns: Vec::new(), pending: Vec::new(), function: 0 };
    let mut starts = Vec::new();
    for function in 0..FUNCTIONS {
        starts.push(generator.insns.len());
        generator.function = function;
        generator.function_text();
    }
    for (at, function) in generator.pending {
        generator.insns[at].imm = starts[function] as i32 - at as i32 - 1;
    }
    generator.insns
}

impl Generator {
    fn emit(&mut self, code: u8, dst: u8, src: u8, off: i16, imm: i32) {
        self.insns.push(Insn::new(code, dst, src, off, imm));
    }

    fn wide(&mut self, dst: u8, value: u64) {
        self.emit(o::LD_IMM64, dst, 0, 0, value as i32);
        self.emit(0, 0, 0, 0, (value >> 32) as i32);
    }

    fn data_register(&mut self) -> u8 {
        self.numbers.below(7) as u8
    }

    fn function_text(&mut self) {
        let buffer = if CALLBACKS.contains(&self.function) { 2 } else { 1 };
        self.emit(o::ALU64 | o::MOV | o::SRC_REG, 9, buffer, 0, 0);
        for place in (1..=FRAME / 8).map(|i| -8 * i) {
            let value = self.numbers.interesting() as i32;
            self.emit(o::ST | o::MEM | o::DW, 10, 0, place, value);
        }
        for register in 0..8 {
            let value = self.numbers.interesting();
            self.wide(register, value);
        }
        self.emit(o::ALU64 | o::MOV, 8, 0, 0, 0);
        let count = 8 + self.numbers.below(40);
        self.block(count, 2);
        self.fold();
        self.emit(o::JMP | o::EXIT, 0, 0, 0, 0);
    }

    /// Everything that was computed goes into r0; a callback returns 0 mostly.
    fn fold(&mut self) {
        for register in 1..7 {
            self.emit(o::ALU64 | o::MUL, 0, 0, 0, 31);
            self.emit(o::ALU64 | o::XOR | o::SRC_REG, 0, register, 0, 0);
        }
        if CALLBACKS.contains(&self.function) {
            self.emit(o::STX | o::MEM | o::DW, 9, 0, 8, 0);
            self.emit(o::ALU64 | o::AND, 0, 0, 0, 1);
        }
    }

    fn block(&mut self, count: u64, depth: u64) {
        for _ in 0..count {
            self.statement(depth);
        }
    }

    fn statement(&mut self, depth: u64) {
        match self.numbers.below(26) {
            0..=8 => self.arithmetic(),
            9 => self.unary(),
            10..=11 => self.mov(),
            12..=13 => self.load(),
            14..=15 => self.store(),
            16..=17 => self.atomic(),
            18..=20 if depth > 0 => self.skip(depth),
            21 if depth > 0 => self.repeat(depth),
            22 => self.helper(),
            23 if depth > 0 => self.call(),
            24..=25 if depth > 0 => self.look_up(depth),
            _ => self.arithmetic(),
        }
    }

    /// An immediate or a register as second operand.
    fn operation(&mut self, code: u8, dst: u8, off: i16) {
        if self.numbers.below(2) == 0 {
            let imm = self.numbers.interesting() as i32;
            self.emit(code, dst, 0, off, imm);
        } else {
            let src = self.data_register();
            self.emit(code | o::SRC_REG, dst, src, off, 0);
        }
    }

    fn arithmetic(&mut self) {
        const OPERATIONS: [u8; 11] =
            [o::ADD, o::SUB, o::MUL, o::DIV, o::OR, o::AND, o::LSH, o::RSH, o::MOD, o::XOR, o::ARSH];
        let operation = self.numbers.one_of(&OPERATIONS);
        let class = self.numbers.one_of(&[o::ALU, o::ALU64]);
        let signed = matches!(operation, o::DIV | o::MOD) && self.numbers.below(2) == 0;
        let dst = self.data_register();
        self.operation(class | operation, dst, i16::from(signed));
    }

    fn unary(&mut self) {
        let dst = self.data_register();
        let bits = self.numbers.one_of(&[16, 32, 64]);
        match self.numbers.below(5) {
            0 => self.emit(o::ALU | o::NEG, dst, 0, 0, 0),
            1 => self.emit(o::ALU64 | o::NEG, dst, 0, 0, 0),
            2 => self.emit(o::ALU | o::END, dst, 0, 0, bits),
            3 => self.emit(o::ALU | o::END | o::SRC_REG, dst, 0, 0, bits),
            _ => self.emit(o::ALU64 | o::END, dst, 0, 0, bits),
        }
    }

    fn mov(&mut self) {
        let (dst, src) = (self.data_register(), self.data_register());
        match self.numbers.below(4) {
            0 => self.operation(o::ALU | o::MOV, dst, 0),
            1 => {
                let value = self.numbers.interesting();
                self.wide(dst, value);
            }
            2 => {
                let bits = self.numbers.one_of(&[8, 16]);
                self.emit(o::ALU | o::MOV | o::SRC_REG, dst, src, bits, 0);
            }
            _ => {
                let bits = self.numbers.one_of(&[0, 8, 16, 32]);
                self.emit(o::ALU64 | o::MOV | o::SRC_REG, dst, src, bits, 0);
            }
        }
    }

    /// A base register and an offset for `bytes` bytes, in the buffer or in the frame. It may leave r8 as base.
    fn place(&mut self, bytes: i16, aligned: bool) -> (u8, i16) {
        let align = |offset: i16| if aligned { offset & -bytes } else { offset };
        match self.numbers.below(3) {
            0 => {
                let offset = self.numbers.below(BUFFER as u64 - bytes as u64 + 1) as i16;
                (9, align(offset))
            }
            1 => {
                let offset = self.numbers.below(FRAME as u64 - bytes as u64 + 1) as i16;
                (10, align(offset) - FRAME)
            }
            _ => {
                let index = self.data_register();
                let offset = self.numbers.below(16) as i16;
                self.emit(o::ALU64 | o::MOV | o::SRC_REG, 8, index, 0, 0);
                self.emit(o::ALU64 | o::AND, 8, 0, 0, if aligned { 0x18 } else { 0x1f });
                let (base, start) = self.numbers.one_of(&[(9, 0), (10, -FRAME)]);
                self.emit(o::ALU64 | o::ADD | o::SRC_REG, 8, base, 0, 0);
                (8, align(offset) + start)
            }
        }
    }

    /// No address stays in a register where it could become data: frames lie elsewhere on the other engine.
    fn forget(&mut self, base: u8) {
        if base == 8 {
            self.emit(o::ALU64 | o::MOV, 8, 0, 0, 0);
        }
    }

    fn load(&mut self) {
        let (size, bytes) = self.numbers.one_of(&[(o::B, 1), (o::H, 2), (o::W, 4), (o::DW, 8)]);
        let (base, offset) = self.place(bytes, false);
        let mode = if size != o::DW { self.numbers.one_of(&[o::MEM, o::MEMSX]) } else { o::MEM };
        let dst = self.data_register();
        self.emit(o::LDX | mode | size, dst, base, offset, 0);
        self.forget(base);
    }

    fn store(&mut self) {
        let (size, bytes) = self.numbers.one_of(&[(o::B, 1), (o::H, 2), (o::W, 4), (o::DW, 8)]);
        let (base, offset) = self.place(bytes, false);
        if self.numbers.below(2) == 0 {
            let imm = self.numbers.interesting() as i32;
            self.emit(o::ST | o::MEM | size, base, 0, offset, imm);
        } else {
            let src = self.data_register();
            self.emit(o::STX | o::MEM | size, base, src, offset, 0);
        }
        self.forget(base);
    }

    fn atomic(&mut self) {
        let (size, bytes) = self.numbers.one_of(&[(o::W, 4), (o::DW, 8)]);
        let (base, offset) = self.place(bytes, true);
        let register = self.data_register();
        const UPDATES: [i32; 10] = [0, 1, 0x40, 0x41, 0x50, 0x51, 0xa0, 0xa1, o::XCHG, o::CMPXCHG];
        match self.numbers.below(6) {
            0 => self.emit(o::STX | o::ATOMIC | size, register, base, offset, o::LOAD_ACQ),
            1 => self.emit(o::STX | o::ATOMIC | size, base, register, offset, o::STORE_REL),
            _ => {
                let update = self.numbers.one_of(&UPDATES);
                self.emit(o::STX | o::ATOMIC | size, base, register, offset, update);
            }
        }
        self.forget(base);
    }

    fn condition(&mut self) -> u8 {
        const CONDITIONS: [u8; 11] =
            [o::JEQ, o::JNE, o::JSET, o::JGT, o::JGE, o::JLT, o::JLE, o::JSGT, o::JSGE, o::JSLT, o::JSLE];
        self.numbers.one_of(&[o::JMP, o::JMP32]) | self.numbers.one_of(&CONDITIONS)
    }

    /// A branch over some statements, now and then with an else.
    fn skip(&mut self, depth: u64) {
        let branch = self.insns.len();
        let (code, register) = (self.condition(), self.data_register());
        self.operation(code, register, 0);
        let count = self.numbers.below(4);
        self.block(count, depth - 1);
        if self.numbers.below(3) == 0 {
            let over = self.insns.len();
            self.emit(o::JMP32 | o::JA, 0, 0, 0, 0);
            self.aim(branch);
            let count = self.numbers.below(4);
            self.block(count, depth - 1);
            self.insns[over].imm = (self.insns.len() - over - 1) as i32;
        } else {
            self.aim(branch);
        }
    }

    /// Points a forward branch here.
    fn aim(&mut self, branch: usize) {
        self.insns[branch].off = (self.insns.len() - branch - 1) as i16;
    }

    /// A loop of a few rounds, left early when a condition holds.
    fn repeat(&mut self, depth: u64) {
        // The loops of other functions and of outer blocks count in r7, too: each keeps the outer count in its frame.
        let place = -FRAME - 8 - 8 * depth as i16;
        self.emit(o::STX | o::MEM | o::DW, 10, 7, place, 0);
        let rounds = 1 + self.numbers.below(4) as i32;
        self.emit(o::ALU64 | o::MOV, 7, 0, 0, rounds);
        let head = self.insns.len();
        let count = 1 + self.numbers.below(4);
        self.block(count, depth - 1);
        let early = self.insns.len();
        let (code, register) = (self.condition(), self.data_register());
        self.operation(code, register, 0);
        self.emit(o::ALU64 | o::SUB, 7, 0, 0, 1);
        let back = head as i16 - self.insns.len() as i16 - 1;
        self.emit(o::JMP | o::JSGT, 7, 0, back, 0);
        self.aim(early);
        self.emit(o::LDX | o::MEM | o::DW, 7, 10, place, 0);
    }

    fn helper(&mut self) {
        self.emit(o::JMP | o::CALL, 0, 0, 0, 100);
    }

    /// A look-up in one of three maps by a key in the frame or in the buffer, and the use of what it finds.
    fn look_up(&mut self, depth: u64) {
        let key = self.data_register();
        self.emit(o::ALU64 | o::MOV | o::SRC_REG, 8, key, 0, 0);
        self.emit(o::ALU64 | o::AND, 8, 0, 0, 7);
        let (base, offset) = self.numbers.one_of(&[(9, 4), (9, 32), (10, -4), (10, -40)]);
        self.emit(o::STX | o::MEM | o::W, base, 8, offset, 0);
        self.emit(o::ALU64 | o::MOV, 8, 0, 0, 0);
        self.emit(o::ALU64 | o::MOV | o::SRC_REG, 2, base, 0, 0);
        self.emit(o::ALU64 | o::ADD, 2, 0, 0, i32::from(offset));
        let map = self.numbers.below(3) as i32;
        self.emit(o::LD_IMM64, 1, o::PSEUDO_MAP_FD, 0, map);
        self.emit(0, 0, 0, 0, 0);
        self.emit(o::JMP | o::CALL, 0, 0, 0, 1);
        self.emit(o::ALU64 | o::MOV, 1, 0, 0, 1);
        self.emit(o::ALU64 | o::MOV, 2, 0, 0, 2);
        let check = self.insns.len();
        if self.numbers.below(2) == 0 {
            self.emit(o::JMP | o::JEQ, 0, 0, 0, 0);
        } else {
            self.emit(o::JMP | o::JNE, 0, 0, 1, 0);
            self.emit(o::JMP | o::JA, 0, 0, 0, 0);
        }
        // r8 keeps the address while other things happen; data never sees it.
        self.emit(o::ALU64 | o::MOV | o::SRC_REG, 8, 0, 0, 0);
        self.emit(o::STX | o::ATOMIC | o::DW, 8, 1, 0, o::FETCH);
        self.emit(o::LDX | o::MEM | o::W, 0, 8, 0, 0);
        self.emit(o::ALU64 | o::MOV, 8, 0, 0, 0);
        let last = self.insns[check..].iter().take(2).rposition(|insn| insn.code == o::JMP | o::JA);
        self.aim(check + last.unwrap_or(0));
        self.block(1, depth - 1);
    }

    /// A subprogram, or a callback through `bpf_loop`; only with a larger index.
    fn call(&mut self) {
        let callee = self.function + 1 + self.numbers.below(2) as usize;
        if callee >= FUNCTIONS || CALLBACKS.contains(&self.function) {
            return self.arithmetic();
        }
        if !CALLBACKS.contains(&callee) {
            self.emit(o::ALU64 | o::MOV | o::SRC_REG, 1, 9, 0, 0);
            self.pending.push((self.insns.len(), callee));
            self.emit(o::JMP | o::CALL, 0, o::PSEUDO_CALL, 0, 0);
        } else {
            let rounds = self.numbers.below(4) as i32;
            self.emit(o::ALU64 | o::MOV, 1, 0, 0, rounds);
            self.pending.push((self.insns.len(), callee));
            self.emit(o::LD_IMM64, 2, o::PSEUDO_FUNC, 0, 0);
            self.emit(0, 0, 0, 0, 0);
            self.emit(o::ALU64 | o::MOV | o::SRC_REG, 3, 9, 0, 0);
            let flags = i32::from(self.numbers.below(8) == 0);
            self.emit(o::ALU64 | o::MOV, 4, 0, 0, flags);
            self.emit(o::JMP | o::CALL, 0, 0, 0, 181);
            self.emit(o::ALU64 | o::MOV, 2, 0, 0, 0);
        }
        // The buffer's address is the same on both engines, but data should not depend on where it is.
        self.emit(o::ALU64 | o::MOV, 1, 0, 0, 0);
        self.emit(o::ALU64 | o::MOV, 3, 0, 0, 0);
    }
}

/// How many random programs to try: so many, or what the environment says.
pub(crate) fn rounds(usual: u64) -> u64 {
    std::env::var("BEELINE_DIFFERENTIAL").ok().and_then(|text| text.parse().ok()).unwrap_or(usual)
}

fn listing(insns: &[Insn]) -> String {
    let mut text = String::new();
    let mut pc = 0;
    while pc < insns.len() {
        let _ = writeln!(text, "{pc:4}: {}", Line::new(insns, pc, &NoNames));
        pc += if insns[pc].is_wide() { 2 } else { 1 };
    }
    text
}

/// r0, the buffer, and the maps after a run.
type Outcome = (u64, Vec<u8>, Vec<u64>);

fn outcome(engine: Engine, insns: &[Insn], seed: u64) -> Result<Outcome, String> {
    let mut surroundings = Surroundings::new();
    let mut numbers = Numbers(!seed);
    let mut buffer: Vec<u64> = (0..BUFFER / 8).map(|_| numbers.next()).collect();
    let (_, bytes, _) = {
        // SAFETY: every bit pattern is a number of either type.
        unsafe { buffer.align_to_mut::<u8>() }
    };
    // SAFETY: generated programs stay within their buffer and end.
    let mut machine =
        unsafe { Machine::new(engine, insns, surroundings.setup()) }.map_err(|error| error.to_string())?;
    machine.limit(10_000_000);
    let result = machine.run(bytes).map_err(|error| error.to_string())?;
    drop(machine);
    Ok((result, bytes.to_vec(), surroundings.words()))
}

#[test]
fn engines_agree_on_random_programs() {
    for seed in 0..rounds(400) {
        let insns = program(seed);
        let interpreted = outcome(Engine::Interpreter, &insns, seed);
        let compiled = outcome(Engine::Compiled, &insns, seed);
        assert!(interpreted.is_ok(), "seed {seed}: {interpreted:?}\n{}", listing(&insns));
        assert_eq!(interpreted, compiled, "seed {seed}\n{}", listing(&insns));
    }
}

#[test]
fn random_programs_use_every_kind_of_instruction() {
    let mut codes = std::collections::BTreeSet::new();
    for seed in 0..200 {
        let insns = program(seed);
        let mut pc = 0;
        while pc < insns.len() {
            decode(&insns[pc..]).expect("an instruction");
            codes.insert(insns[pc].code);
            pc += if insns[pc].is_wide() { 2 } else { 1 };
        }
    }
    assert!(codes.len() >= 100, "only {} opcodes", codes.len());
}
