//! A chain: the programs of a system call, called by the stubs at all of its sites in reach.
//!
//! ```text
//!   │ the caller's stack            │ ◀ its stack pointer
//!   │ red zone, flags               │   HOOK_BELOW bytes
//!   │ return address                │
//!   ├───────────────────────────────┤
//!   │ contexts: record, raw words   │
//!   │ save area                     │ ◀ S; rsp while programs run (see `frame`)
//! ```
//!
//! It takes rax = number or result, rcx = number (behind the call), r11 = where to go on when the call is skipped (before it). A
//! call changes rcx and r11, so they are free before it; behind it r11 is what the kernel has left there. The stub sees to the flags. All else is as in the stubs of probes: slot, guard, and
//! no more saved than the programs change. Only words of a record that a program reads are there.
//!
//! Where programs need no slot and look at nothing, and change no more than a call does, there is no frame: rax waits in a register that
//! is free. Such a chain is so short that it also stands in the stubs that call it, in the same cache line (see [`bare`]).
//!
//! What needs the whole `pt_regs` is no chain's: the gate calls the agent with it.

use crate::assemble::{Marks, finish};
use crate::frame::{Kept, SaveArea};
use crate::phase::{Phase, RUN_FLAGS, RUN_OVERRIDE_VALUE, Shared, changed, need_slot, test_enabled_word};
use crate::program_use::Registers;
use crate::site_code::{LinkCode, Stub, StubError};
use beeline_abi::code::ContextUse;
use beeline_abi::run::RunContext;
use beeline_abi::system_call::{EnterRecord, ExitRecord, RawArguments};
use iced_x86::IcedError;
use iced_x86::code_asm::{
    AsmMemoryOperand, AsmRegister32, AsmRegister64, CodeAssembler, CodeLabel, dword_ptr, eax, ecx, qword_ptr,
    r8, r9, r10, r11, rax, rbx, rcx, rdi, rdx, rsi, rsp,
};
use std::mem::offset_of;

/// What a program at system calls sees.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum CallContext {
    /// The record of a tracepoint: [`EnterRecord`], [`ExitRecord`].
    Record,
    /// [`RawArguments`].
    Raw,
    /// The registers of the kernel's function for the call.
    Registers,
}

/// A program of a chain.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct CallLink {
    /// The link. `is_return` tells whether it runs behind the call.
    pub code: LinkCode,
    /// What the program sees.
    pub context: CallContext,
    /// It asks for the `pt_regs` by a helper.
    pub asks_registers: bool,
}

impl CallLink {
    /// It runs without a `pt_regs`.
    fn is_direct(&self) -> bool {
        let used = self.code.needs.context.0;
        let record = if self.code.is_return { size_of::<ExitRecord>() } else { size_of::<EnterRecord>() };
        let within = |bytes: usize| used >> (bytes / 8) == 0;
        !self.asks_registers
            && match self.context {
                CallContext::Record => within(record),
                // The first word is the address of the registers.
                CallContext::Raw => within(size_of::<RawArguments>()) && used & 1 == 0,
                CallContext::Registers => false,
            }
    }
}

/// A chain can be made of these links.
pub(crate) fn is_chain(links: &[CallLink]) -> bool {
    links.iter().all(CallLink::is_direct)
}

/// What no chain of this many links is longer than, alignment included.
pub const fn chain_len_max(links: usize) -> u64 {
    (640 + 512 * links) as u64
}

/// Bytes that a stub goes below the caller's stack pointer before it calls a chain: the red zone, a word, and the flags.
pub(crate) const HOOK_BELOW: i32 = 144;

/// Bytes of the contexts.
const CONTEXTS: i32 = (size_of::<EnterRecord>() + size_of::<RawArguments>()) as i32;

/// Makes a chain for address `at`. `is_exit`: it runs behind the call.
pub(crate) fn build_chain(
    shared: Shared<'_>,
    links: &[CallLink],
    is_exit: bool,
    at: u64,
) -> Result<Stub, StubError> {
    let wrap = |e: IcedError| StubError::Assembler { at, reason: e.to_string() };
    let mut asm = CodeAssembler::new(64).map_err(wrap)?;
    let mut chain = Chain::new(&mut asm, shared, links, is_exit, at);
    chain.hot(&mut asm).map_err(wrap)?;
    let cold = asm.instructions().len();
    chain.cold(&mut asm).map_err(wrap)?;
    let sequences = chain.phase.sequences;
    finish(&mut asm, &Marks { return_point: None, displaced: Vec::new(), cold, sequences }, at)
}

/// Registers that nobody needs afterwards. The slot's finding changes rcx before a record gets it.
fn free(links: &[CallLink], is_exit: bool) -> Registers {
    let reads_number = |link: &CallLink| link.code.needs.context.reads(NUMBER as u32);
    let rcx_is_free = !is_exit || !links.iter().any(reads_number);
    // What the kernel leaves in it; where a call that is skipped goes on.
    let r11_is_free = !is_exit && !links.iter().any(|link| link.code.overrides);
    let free = if rcx_is_free { Registers::NONE.with(rcx) } else { Registers::NONE };
    if r11_is_free { free.with(r11) } else { free }
}

/// Running these programs takes the slot. There is no return stack to think of behind a call.
fn need_slot_at_calls(links: &[&LinkCode]) -> bool {
    links.iter().any(|&link| need_slot([&LinkCode { is_return: false, ..*link }]))
}

/// Where rax is kept while the programs of a chain run without a frame; none where they need one.
fn kept_without_frame(links: &[CallLink], is_exit: bool, save: &SaveArea) -> Option<AsmRegister64> {
    let free = free(links, is_exit);
    let looks = links.iter().any(|link| link.code.uses.reads_context());
    let changes_more = [rdx, rbx, rsi, rdi, r8, r9, r10, rcx, r11]
        .into_iter()
        .any(|register| save.changed.contains(register) && !free.contains(register));
    let is_usable = |register: &AsmRegister64| free.contains(*register) && !save.changed.contains(*register);
    [r11, rcx].into_iter().find(is_usable).filter(|_| !save.slot && !looks && !changes_more)
}

/// Writes the chain of `links` where a stub at `at` calls it, when it is short; whether it has.
pub(crate) fn bare(
    asm: &mut CodeAssembler,
    shared: Shared<'_>,
    links: &[CallLink],
    is_exit: bool,
    at: u64,
) -> Result<bool, IcedError> {
    if links.len() != 1 || !is_chain(links) {
        return Ok(false);
    }
    let mut chain = Chain::new(asm, shared, links, is_exit, at);
    match kept_without_frame(links, is_exit, &chain.phase.save) {
        Some(kept) => chain.hot_without_frame(asm, kept).map(|()| true),
        None => Ok(false),
    }
}

/// A chain while it is written.
struct Chain<'a> {
    phase: Phase<'a>,
    links: &'a [CallLink],
    codes: Vec<&'a LinkCode>,
    is_exit: bool,
    /// From rsp = S: restore and return.
    plain: CodeLabel,
    /// A program wants another result, or the call skipped: from rsp = S, rcx = slot.
    overridden: CodeLabel,
}

impl<'a> Chain<'a> {
    fn new(
        asm: &mut CodeAssembler,
        shared: Shared<'a>,
        links: &'a [CallLink],
        is_exit: bool,
        at: u64,
    ) -> Chain<'a> {
        let codes: Vec<&LinkCode> = links.iter().map(|link| &link.code).collect();
        let own_stack = shared.environment.small_stacks;
        let above = if own_stack { 0 } else { CONTEXTS };
        let save = SaveArea {
            distance: SaveArea::len(own_stack) + above,
            keep_status: false,
            read_flags: false,
            own_stack,
            slot: own_stack || need_slot_at_calls(&codes),
            changed: changed(&codes),
            free: free(links, is_exit),
            contexts: CONTEXTS,
        };
        let mut phase = Phase::new(asm, shared, at, save);
        phase.may_be_early = true;
        Chain { phase, links, codes, is_exit, plain: asm.create_label(), overridden: asm.create_label() }
    }

    fn overrides(&self) -> bool {
        self.codes.iter().any(|link| link.overrides)
    }

    fn hot(&mut self, asm: &mut CodeAssembler) -> Result<(), IcedError> {
        if let Some(kept) = kept_without_frame(self.links, self.is_exit, &self.phase.save) {
            return self.hot_without_frame(asm, kept);
        }
        self.phase.save.enter(asm)?;
        let alone = self.codes.len() == 1;
        if alone {
            test_enabled_word(asm, self.phase.at, self.codes[0])?;
            asm.je(self.plain)?;
        }
        if self.phase.save.slot {
            self.phase.find_slot(asm)?;
        }
        let record = self.phase.save.contexts_at();
        let raw = record + size_of::<EnterRecord>() as i32;
        let at = |link: &CallLink| if link.context == CallContext::Raw { raw } else { record };
        let run: Vec<(&LinkCode, i32)> = self.links.iter().map(|link| (&link.code, at(link))).collect();
        let read = |context: CallContext| {
            let links = self.links.iter().filter(move |link| link.context == context);
            links.fold(ContextUse::NONE, |all, link| all.union(link.code.needs.context))
        };
        let contexts = Contexts {
            is_exit: self.is_exit,
            record,
            read: read(CallContext::Record),
            raw,
            reads_raw: read(CallContext::Raw) != ContextUse::NONE,
        };
        self.phase.call_with(asm, &run, ContextUse::NONE, !alone, |save, asm| contexts.fill(save, asm))?;
        if self.overrides() {
            asm.test(dword_ptr(rcx + RUN_FLAGS), RunContext::OVERRIDE)?;
            asm.jne(self.overridden)?;
        }
        if self.phase.save.slot {
            self.phase.clear_guard(asm)?;
        }
        asm.set_label(&mut self.plain)?;
        self.leave(asm)?;
        asm.ret()
    }

    /// With rax in `kept` while programs run.
    fn hot_without_frame(&mut self, asm: &mut CodeAssembler, kept: AsmRegister64) -> Result<(), IcedError> {
        asm.mov(kept, rax)?;
        let alone = self.codes.len() == 1;
        if alone {
            test_enabled_word(asm, self.phase.at, self.codes[0])?;
            asm.je(self.plain)?;
        }
        let run: Vec<(&LinkCode, i32)> = self.codes.iter().map(|&code| (code, 0)).collect();
        self.phase.call_with(asm, &run, ContextUse::NONE, !alone, |_, _| Ok(()))?;
        asm.set_label(&mut self.plain)?;
        asm.mov(rax, kept)?;
        asm.ret()
    }

    /// Restores, with rsp at the return address.
    fn leave(&self, asm: &mut CodeAssembler) -> Result<(), IcedError> {
        self.phase.save.restore(asm)?;
        asm.lea(rsp, qword_ptr(rsp + self.phase.save.distance))
    }

    fn cold(&mut self, asm: &mut CodeAssembler) -> Result<(), IcedError> {
        if !self.phase.save.slot {
            // What assembles to nothing has no offset: this has one, and never runs.
            return asm.int3();
        }
        self.phase.cold(asm)?;
        for label in [&mut self.phase.no_slot, &mut self.phase.no_stack] {
            asm.set_label(label)?;
            asm.nop()?;
        }
        asm.set_label(&mut self.phase.missed)?;
        self.phase.count_missed(asm, &self.codes)?;
        asm.jmp(self.plain)?;
        if !self.overrides() {
            return Ok(());
        }
        asm.set_label(&mut self.overridden)?;
        asm.mov(rax, qword_ptr(rcx + RUN_OVERRIDE_VALUE))?;
        asm.mov(self.phase.save.at(Kept::Rax), rax)?;
        self.phase.clear_guard(asm)?;
        if self.is_exit {
            return asm.jmp(self.plain);
        }
        self.leave(asm)?;
        // Past the return address.
        asm.lea(rsp, qword_ptr(rsp + 8))?;
        asm.jmp(r11)
    }
}

/// What programs see, and of it what they read. Offsets from rsp.
struct Contexts {
    is_exit: bool,
    record: i32,
    read: ContextUse,
    raw: i32,
    reads_raw: bool,
}

impl Contexts {
    fn fill(&self, save: &SaveArea, asm: &mut CodeAssembler) -> Result<(), IcedError> {
        // The number before the call, the result behind it.
        let first = save.running(Kept::Rax);
        if self.reads_raw {
            asm.mov(rax, first)?;
            if !self.is_exit {
                asm.cdqe()?;
            }
            asm.mov(qword_ptr(rsp + (self.raw + 8)), rax)?;
        }
        if self.is_exit {
            self.word(asm, offset_of!(ExitRecord, result), first)?;
            return match save.slot {
                true => self.number(asm, save.running(Kept::Rcx)),
                false => self.number_in(asm, ecx),
            };
        }
        self.number(asm, first)?;
        let arguments = [(0, rdi), (1, rsi), (2, rdx), (3, r10), (4, r8), (5, r9)];
        for (index, register) in arguments {
            let offset = offset_of!(EnterRecord, arguments) + 8 * index;
            if register == rdx && save.slot {
                // Finding the slot has changed it.
                self.word(asm, offset, save.running(Kept::Rdx))?;
            } else if self.read.reads(offset as u32) {
                asm.mov(self.at(offset), register)?;
            }
        }
        Ok(())
    }

    fn at(&self, offset: usize) -> AsmMemoryOperand {
        qword_ptr(rsp + (self.record + offset as i32))
    }

    /// A word of the record, where it is read.
    fn word(&self, asm: &mut CodeAssembler, offset: usize, from: AsmMemoryOperand) -> Result<(), IcedError> {
        if !self.read.reads(offset as u32) {
            return Ok(());
        }
        asm.mov(rax, from)?;
        asm.mov(self.at(offset), rax)
    }

    /// The record's number: `from` as the int that it is for the kernel.
    fn number(&self, asm: &mut CodeAssembler, from: AsmMemoryOperand) -> Result<(), IcedError> {
        if !self.read.reads(NUMBER as u32) {
            return Ok(());
        }
        asm.mov(rax, from)?;
        self.number_in(asm, eax)
    }

    /// The same of a register, where it is read. Uses rax.
    fn number_in(&self, asm: &mut CodeAssembler, from: AsmRegister32) -> Result<(), IcedError> {
        if !self.read.reads(NUMBER as u32) {
            return Ok(());
        }
        asm.movsxd(rax, from)?;
        asm.mov(self.at(NUMBER), rax)
    }
}

/// Where the number stands in both records.
const NUMBER: usize = offset_of!(EnterRecord, id);
const _: () = assert!(NUMBER == offset_of!(ExitRecord, id));
