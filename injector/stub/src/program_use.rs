//! What a program's machine code does to registers: a stub saves no more than that.

use iced_x86::code_asm::{AsmRegister64, rdi, rsi};
use iced_x86::{
    Decoder, DecoderOptions, FlowControl, Instruction, InstructionInfoFactory, Mnemonic, OpAccess, OpKind,
    Register,
};
use std::collections::HashSet;

/// A set of general registers.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Registers(u16);

impl Registers {
    /// No register.
    pub const NONE: Registers = Registers(0);
    /// Every register.
    pub const ALL: Registers = Registers(u16::MAX);

    pub(crate) fn contains(self, register: AsmRegister64) -> bool {
        self.0 & bit(register.into()) != 0
    }

    pub(crate) fn with(self, register: AsmRegister64) -> Registers {
        Registers(self.0 | bit(register.into()))
    }

    /// Both sets together.
    pub const fn union(self, other: Registers) -> Registers {
        Registers(self.0 | other.0)
    }

    fn add(&mut self, register: Register) {
        self.0 |= bit(register);
    }
}

/// The bit of a general register of any width; 0 for others.
fn bit(register: Register) -> u16 {
    let full = register.full_register();
    if full.is_gpr64() { 1 << full.number() } else { 0 }
}

/// What running a program does.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ProgramUse {
    /// Registers that it may change.
    pub changes: Registers,
    /// Registers that it may read, which may hold an argument.
    pub reads: Registers,
    /// It calls code outside of itself: helpers look at the run, and change what a callee may.
    pub calls: bool,
    /// It stores to memory other than its frame, in a way that a second run of the same thread could come between.
    pub stores: bool,
}

impl ProgramUse {
    /// A program of which nothing is known.
    pub const UNKNOWN: ProgramUse =
        ProgramUse { changes: Registers::ALL, reads: Registers::ALL, calls: true, stores: true };

    /// It does not mind to be interrupted by another run of the same thread, and touches nothing that the thread's runs share.
    pub(crate) fn is_alone(&self) -> bool {
        !self.calls && !self.stores && !self.reads_run()
    }

    /// It may look at its context.
    pub(crate) fn reads_context(&self) -> bool {
        self.reads.contains(rdi)
    }

    /// It may look at its run.
    pub(crate) fn reads_run(&self) -> bool {
        self.reads.contains(rsi)
    }

    /// What the program whose code begins at offset 0 of `code` does. Its code is followed wherever it can go; where it leaves
    /// `code`, or cannot be followed, nothing is known.
    pub fn of(code: &[u8]) -> ProgramUse {
        Follower::new(code).run().unwrap_or(ProgramUse::UNKNOWN)
    }
}

/// Bytes of a program that stands in stubs instead of being called, at most.
const BODY_MAX: usize = 96;

/// What of the program whose linked code this is can stand in place of a call: the code up to its one return, which is the last
/// that runs, without a frame that it does not use. None for a longer program, or one that calls, or refers to its own address.
pub(crate) fn body(code: &[u8]) -> Option<&[u8]> {
    /// `push %rbp; mov %rsp,%rbp`, `mov %rbp,%rsp; pop %rbp`: every compiled program has them.
    const FRAME: (&[u8], &[u8]) = (&[0x55, 0x48, 0x89, 0xe5], &[0x48, 0x89, 0xec, 0x5d]);
    let mut decoder = Decoder::with_ip(64, code, 0, DecoderOptions::NONE);
    let (mut targets, mut uses_stack) = (Vec::new(), 0);
    let end = loop {
        let instruction = decoder.decode();
        let at = instruction.ip() as usize;
        if instruction.is_invalid() || at > BODY_MAX || instruction.is_ip_rel_memory_operand() {
            return None;
        }
        if instruction.flow_control() == FlowControl::Return {
            break at;
        }
        uses_stack += usize::from(names_stack(&instruction));
        match instruction.flow_control() {
            FlowControl::Next => {}
            FlowControl::ConditionalBranch | FlowControl::UnconditionalBranch
                if instruction.op0_kind() == OpKind::NearBranch64 =>
            {
                targets.push(instruction.near_branch_target());
            }
            _ => return None,
        }
    };
    let body = &code[..end];
    let inner = body.strip_prefix(FRAME.0).and_then(|rest| rest.strip_suffix(FRAME.1));
    match inner {
        // The four instructions of the frame alone name the stack.
        Some(inner) if uses_stack == 4 && targets.is_empty() => Some(inner),
        _ => targets.iter().all(|&target| target <= end as u64).then_some(body),
    }
}

fn names_stack(instruction: &Instruction) -> bool {
    let is_stack = |register: Register| matches!(register.full_register(), Register::RSP | Register::RBP);
    let operands = (0..instruction.op_count()).any(|index| {
        instruction.op_kind(index) == OpKind::Register && is_stack(instruction.op_register(index))
    });
    operands
        || is_stack(instruction.memory_base())
        || is_stack(instruction.memory_index())
        || instruction.is_stack_instruction()
}

struct Follower<'a> {
    code: &'a [u8],
    seen: HashSet<u64>,
    waiting: Vec<u64>,
    info: InstructionInfoFactory,
    found: ProgramUse,
}

impl<'a> Follower<'a> {
    fn new(code: &'a [u8]) -> Follower<'a> {
        Follower {
            code,
            seen: HashSet::new(),
            waiting: vec![0],
            info: InstructionInfoFactory::new(),
            found: ProgramUse {
                changes: Registers::NONE,
                reads: Registers::NONE,
                calls: false,
                stores: false,
            },
        }
    }

    fn run(mut self) -> Option<ProgramUse> {
        while let Some(at) = self.waiting.pop() {
            self.follow(at)?;
        }
        Some(self.found)
    }

    /// Goes on at an offset until flow ends or joins what was seen.
    fn follow(&mut self, start: u64) -> Option<()> {
        let bytes = self.code.get(usize::try_from(start).ok()?..)?;
        let mut decoder = Decoder::with_ip(64, bytes, start, DecoderOptions::NONE);
        loop {
            if !self.seen.insert(decoder.ip()) {
                return Some(());
            }
            let instruction = decoder.decode();
            if instruction.is_invalid() {
                return None;
            }
            self.note(&instruction);
            match instruction.flow_control() {
                FlowControl::Next => {}
                FlowControl::ConditionalBranch => self.waiting.push(self.target(&instruction)?),
                FlowControl::UnconditionalBranch => {
                    self.waiting.push(self.target(&instruction)?);
                    return Some(());
                }
                FlowControl::Return => return Some(()),
                // A call, or something that nobody can follow.
                _ => return None,
            }
        }
    }

    /// Where a direct branch inside of the code goes.
    fn target(&self, instruction: &Instruction) -> Option<u64> {
        let target = instruction.near_branch_target();
        let direct = instruction.op0_kind() == OpKind::NearBranch64;
        (direct && target < self.code.len() as u64).then_some(target)
    }

    fn note(&mut self, instruction: &Instruction) {
        let found = &mut self.found;
        for used in self.info.info(instruction).used_registers() {
            match used.access() {
                OpAccess::Read | OpAccess::CondRead => found.reads.add(used.register()),
                OpAccess::Write | OpAccess::CondWrite => found.changes.add(used.register()),
                OpAccess::ReadWrite | OpAccess::ReadCondWrite => {
                    found.reads.add(used.register());
                    found.changes.add(used.register());
                }
                _ => {}
            }
        }
        // An exchange with memory is locked without the prefix.
        let locked = instruction.has_lock_prefix() || instruction.mnemonic() == Mnemonic::Xchg;
        for used in self.info.info(instruction).used_memory() {
            found.reads.add(used.base());
            found.reads.add(used.index());
            let is_read =
                matches!(used.access(), OpAccess::Read | OpAccess::CondRead | OpAccess::NoMemAccess);
            // Compiled code uses rbp for its frame alone.
            let in_frame = matches!(used.base(), Register::RSP | Register::RBP);
            found.stores |= !is_read && !in_frame && !locked;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use iced_x86::code_asm::{CodeAssembler, eax, ecx, qword_ptr, r8, r11, rax, rbp, rcx, rdx, rsp};

    fn of(write: impl FnOnce(&mut CodeAssembler) -> Result<(), iced_x86::IcedError>) -> ProgramUse {
        let mut asm = CodeAssembler::new(64).unwrap();
        write(&mut asm).unwrap();
        ProgramUse::of(&asm.assemble(0).unwrap())
    }

    #[test]
    fn straight_code() {
        let found = of(|asm| {
            asm.mov(ecx, 5)?;
            asm.inc(qword_ptr(r8 + rdx * 2))?;
            asm.xor(eax, eax)?;
            asm.ret()
        });
        assert!(!found.calls && !found.reads_context() && !found.reads_run());
        assert!(found.changes.contains(rcx) && found.changes.contains(rax));
        assert!(found.reads.contains(r8) && found.reads.contains(rdx));
        assert!(![r8, rdx, rdi, rsi, r11].iter().any(|&register| found.changes.contains(register)));
    }

    #[test]
    fn what_another_run_could_come_between() {
        let alone = |write: &dyn Fn(&mut CodeAssembler) -> Result<(), iced_x86::IcedError>| {
            of(|asm| {
                write(asm)?;
                asm.ret()
            })
            .is_alone()
        };
        assert!(alone(&|asm| asm.xor(eax, eax)));
        assert!(alone(&|asm| asm.mov(rax, qword_ptr(rdi + 8))));
        assert!(alone(&|asm| asm.lock().inc(qword_ptr(r8))));
        assert!(alone(&|asm| asm.lock().cmpxchg(qword_ptr(r8), rdx)));
        assert!(alone(&|asm| asm.xchg(qword_ptr(r8), rdx)));
        assert!(alone(&|asm| {
            asm.push(rbp)?;
            asm.mov(rbp, rsp)?;
            asm.mov(qword_ptr(rsp - 8), rdx)?;
            asm.mov(rsp, rbp)?;
            asm.pop(rbp)
        }));
        assert!(!alone(&|asm| asm.inc(qword_ptr(r8))));
        assert!(!alone(&|asm| asm.mov(qword_ptr(rdi + 8), rax)));
        assert!(!alone(&|asm| asm.mov(rax, qword_ptr(rsi + 8))));
        assert!(!ProgramUse::UNKNOWN.is_alone());
    }

    #[test]
    fn both_ways_of_a_branch() {
        let found = of(|asm| {
            let (mut there, mut back) = (asm.create_label(), asm.create_label());
            asm.test(rdi, rdi)?;
            asm.je(there)?;
            asm.set_label(&mut back)?;
            asm.ret()?;
            // Constants between functions, which never run.
            asm.db(&[0xff; 9])?;
            asm.set_label(&mut there)?;
            asm.mov(r11, rsi)?;
            asm.jmp(back)
        });
        assert!(!found.calls && found.reads_context() && found.reads_run());
        assert!(found.changes.contains(r11) && !found.changes.contains(rcx));
    }

    #[test]
    fn bodies() {
        let framed = |inner: &[u8]| {
            [&[0x55, 0x48, 0x89, 0xe5], inner, &[0x48, 0x89, 0xec, 0x5d, 0xc3, 0xcc, 0xcc]].concat()
        };
        // xor %eax,%eax
        assert_eq!(body(&framed(&[0x31, 0xc0])), Some(&[0x31u8, 0xc0][..]));
        // push %rbx; pop %rbx: the frame stays.
        let code = framed(&[0x53, 0x5b]);
        assert_eq!(body(&code), Some(&code[..10]));
        // test %eax,%eax; je over a nop: the frame stays, since somebody may jump into it.
        let code = framed(&[0x85, 0xc0, 0x74, 0x01, 0x90]);
        assert_eq!(body(&code), Some(&code[..13]));
        // A jump behind the return; a second return before it; a call; a constant behind the code; nothing; no return.
        assert_eq!(body(&framed(&[0x74, 0x7f])), None);
        assert_eq!(body(&[0x74, 0x01, 0xc3, 0x90, 0xc3]), None);
        assert_eq!(body(&framed(&[0xe8, 0, 0, 0, 0])), None);
        assert_eq!(body(&framed(&[0x48, 0x8b, 0x05, 0, 0, 0, 0])), None);
        assert_eq!(body(&[]), None);
        assert_eq!(body(&[0x90; 16]), None);
        assert_eq!(body(&[&[0x90; 200][..], &[0xc3]].concat()), None);
    }

    #[test]
    fn what_cannot_be_followed() {
        let check = |write: &dyn Fn(&mut CodeAssembler) -> Result<(), iced_x86::IcedError>| {
            assert_eq!(of(write), ProgramUse::UNKNOWN);
        };
        check(&|asm| asm.call(rax));
        check(&|asm| asm.jmp(rax));
        check(&|asm| asm.call(0x1000u64));
        check(&|asm| asm.jmp(0x1000u64));
        check(&|asm| asm.nop());
        check(&|asm| asm.syscall());
        check(&|asm| asm.db(&[0x06]));
        assert_eq!(ProgramUse::of(&[]), ProgramUse::UNKNOWN);
    }
}
