//! What the two halves of a stub have in common: finding the slot, the guard, calling programs, counting misses.
//!
//! Register use between the steps: rsp = S (see [`frame`](crate::frame)), rcx = the thread's slot, rax and rdx free.
//!
//! Programs that call nothing, own no CPU and change nothing but by locked instructions need neither slot nor guard ([`need_slot`]): nothing
//! of a run is kept anywhere, so that one in a signal handler that interrupts another does not disturb it. Their hits are never missed.

use crate::cpu::{Claim, Sequence};
use crate::displaced::reaches;
use crate::frame::{Kept, SaveArea};
use crate::gates::Gates;
use crate::near;
use crate::program_use::Registers;
use crate::site_code::{Environment, LinkCode, ThreadKey};
use beeline_abi::code::ContextUse;
use beeline_abi::link::{LinkRuntime, LinkShared};
use beeline_abi::run::RunContext;
use beeline_abi::thread::{HASH_MULTIPLIER, HASH_SHIFT, THREAD_SLOTS, ThreadSlot, home_index};
use iced_x86::IcedError;
use iced_x86::code_asm::{
    AsmMemoryOperand, AsmRegister64, CodeAssembler, CodeLabel, dword_ptr, eax, ecx, edx, qword_ptr, rax, rcx,
    rdi, rdx, rsi, rsp,
};
use std::collections::HashMap;
use std::mem::offset_of;

/// A field of the slot that rcx points to.
pub(crate) fn slot_field(offset: usize) -> AsmMemoryOperand {
    qword_ptr(rcx + offset as i32)
}

const RUN: i32 = offset_of!(ThreadSlot, run) as i32;
/// From the slot, the flags of the run, and what `bpf_override_return` wants returned.
pub(crate) const RUN_FLAGS: i32 = RUN + offset_of!(RunContext, flags) as i32;
pub(crate) const RUN_OVERRIDE_VALUE: i32 = RUN + offset_of!(RunContext, override_value) as i32;

/// Code that is entered from the hot path and is put behind it.
enum Cold {
    /// The thread has no thread pointer.
    Early { here: CodeLabel },
    /// The home slot is another thread's.
    Claim { here: CodeLabel },
    /// The guard word is set.
    Guard { here: CodeLabel },
    /// The agent has to claim a CPU for the link with this runtime; without one it is left out.
    ClaimCpu { claim: Claim, runtime: u64, next: CodeLabel },
    /// The agent has to give it back.
    ReleaseCpu { here: CodeLabel, back: CodeLabel },
    /// The run has a CPU's number and owns none.
    OwnNoCpu { other: CodeLabel, none: CodeLabel },
    /// The slot has no stack of its own.
    NoStack { here: CodeLabel },
}

/// Bytes that are put in at once at most.
const DATA_MAX: usize = 16;

/// What all stubs of an arena have in common.
#[derive(Clone, Copy)]
pub(crate) struct Shared<'a> {
    pub(crate) environment: &'a Environment,
    pub(crate) gates: &'a Gates,
    /// Programs that are put in place of their call, by the address of their entry (see [`body`](crate::program_use::body)).
    pub(crate) bodies: &'a HashMap<u64, Vec<u8>>,
}

/// One half of a stub while it is written.
pub(crate) struct Phase<'a> {
    shared: Shared<'a>,
    pub(crate) environment: &'a Environment,
    pub(crate) gates: &'a Gates,
    /// Where the stub will be.
    pub(crate) at: u64,
    pub(crate) save: SaveArea,
    /// The slot is known: test the guard.
    pub(crate) slot_found: CodeLabel,
    /// The guard allows a run.
    pub(crate) run: CodeLabel,
    /// No run: count a miss, from rsp = S.
    pub(crate) missed: CodeLabel,
    /// No slot for this thread: from rsp = S, rcx = 0.
    pub(crate) no_slot: CodeLabel,
    /// A thread without a thread pointer may have a slot.
    pub(crate) may_be_early: bool,
    /// Restartable sequences so far.
    pub(crate) sequences: Vec<Sequence>,
    /// Found out too late for `missed` that there is no stack to run on: from rsp = S, with the guard cleared.
    pub(crate) no_stack: CodeLabel,
    cold: Vec<Cold>,
}

impl<'a> Phase<'a> {
    pub(crate) fn new(asm: &mut CodeAssembler, shared: Shared<'a>, at: u64, save: SaveArea) -> Phase<'a> {
        Phase {
            environment: shared.environment,
            gates: shared.gates,
            shared,
            sequences: Vec::new(),
            may_be_early: false,
            at,
            save,
            slot_found: asm.create_label(),
            run: asm.create_label(),
            missed: asm.create_label(),
            no_slot: asm.create_label(),
            no_stack: asm.create_label(),
            cold: Vec::new(),
        }
    }

    /// rcx = the thread's slot; the guard word is set to S.
    pub(crate) fn find_slot(&mut self, asm: &mut CodeAssembler) -> Result<(), IcedError> {
        self.locate(asm)?;
        let guard = asm.create_label();
        asm.cmp(slot_field(offset_of!(ThreadSlot, guard)), 0)?;
        asm.jne(guard)?;
        asm.set_label(&mut self.run)?;
        asm.mov(slot_field(offset_of!(ThreadSlot, guard)), rsp)?;
        self.cold.push(Cold::Guard { here: guard });
        Ok(())
    }

    /// rcx = the thread's slot. Uses rax and rdx.
    pub(crate) fn locate(&mut self, asm: &mut CodeAssembler) -> Result<(), IcedError> {
        let claim = asm.create_label();
        match self.environment.thread_key {
            ThreadKey::FsSelf => {
                // Three bytes less than with the address in the instruction.
                asm.xor(ecx, ecx)?;
                asm.mov(rdx, qword_ptr(rcx).fs())?;
            }
            ThreadKey::FsBase => {
                asm.rdfsbase(rdx)?;
                asm.xor(ecx, ecx)?;
                asm.test(rdx, rdx)?;
                if self.may_be_early {
                    let here = asm.create_label();
                    asm.je(here)?;
                    self.cold.push(Cold::Early { here });
                } else {
                    asm.je(self.no_slot)?;
                }
            }
        }
        home_slot(asm, self.at, self.environment.threads, rdx)?;
        asm.cmp(slot_field(offset_of!(ThreadSlot, key)), rdx)?;
        asm.jne(claim)?;
        self.cold.push(Cold::Claim { here: claim });
        asm.set_label(&mut self.slot_found)
    }

    /// Ends the run: from here on a hit in a signal handler runs its programs.
    pub(crate) fn clear_guard(&self, asm: &mut CodeAssembler) -> Result<(), IcedError> {
        asm.mov(slot_field(offset_of!(ThreadSlot, guard)), 0)
    }

    /// Makes the frame with the context, calls the programs of `links`, takes the frame away.
    ///
    /// `test_enabled`: each link's shared word is looked at. `ip` puts the context's instruction pointer into rax.
    pub(crate) fn call_programs(
        &mut self,
        asm: &mut CodeAssembler,
        links: &[&LinkCode],
        test_enabled: bool,
        ip: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>,
    ) -> Result<(), IcedError> {
        let used = links.iter().fold(ContextUse::NONE, |all, l| all.union(l.needs.context));
        let run: Vec<(&LinkCode, i32)> = links.iter().map(|&link| (link, 0)).collect();
        self.call_with(asm, &run, used, test_enabled, |save, asm| save.fill_context(asm, used, ip))
    }

    /// As [`call_programs`](Phase::call_programs), each program with the context at its offset from rsp. `fill` makes them, and may
    /// change rax; of `pt_regs` the words `used` are there before.
    pub(crate) fn call_with(
        &mut self,
        asm: &mut CodeAssembler,
        links: &[(&LinkCode, i32)],
        used: ContextUse,
        test_enabled: bool,
        fill: impl FnOnce(&SaveArea, &mut CodeAssembler) -> Result<(), IcedError>,
    ) -> Result<(), IcedError> {
        if links.is_empty() {
            return Ok(());
        }
        if self.save.own_stack {
            let here = asm.create_label();
            asm.mov(rax, slot_field(offset_of!(ThreadSlot, stack_top)))?;
            asm.test(rax, rax)?;
            asm.je(here)?;
            self.cold.push(Cold::NoStack { here });
        }
        self.save.enter_frame(asm, used)?;
        fill(&self.save, asm)?;
        if links.iter().any(|(link, _)| link.uses.calls) {
            asm.mov(qword_ptr(rcx + RUN + offset_of!(RunContext, regs) as i32), rsp)?;
        }
        self.clear_flags(asm, links)?;
        for (link, context) in links {
            self.call_program(asm, link, *context, test_enabled)?;
        }
        self.save.leave_frame(asm)
    }

    /// The flags of the run as the entry's programs find them: nobody wants the function skipped, and no session's program has
    /// run and returned 0. At a return they are those of the entry.
    fn clear_flags(&self, asm: &mut CodeAssembler, links: &[(&LinkCode, i32)]) -> Result<(), IcedError> {
        let entries = links.iter().filter(|(link, _)| !link.is_return);
        let sessions = entries.filter_map(|(link, _)| link.session);
        let skipped = sessions.clone().fold(0, |all, index| all | session_skip(index));
        if skipped != 0 || links.iter().any(|(link, _)| link.overrides) {
            asm.mov(dword_ptr(rcx + RUN_FLAGS), skipped)?;
        }
        for index in sessions {
            asm.mov(qword_ptr(rcx + run_session_cookie(index)), 0)?;
        }
        Ok(())
    }

    /// From rcx = slot, which it is afterwards, too.
    fn call_program(
        &mut self,
        asm: &mut CodeAssembler,
        link: &LinkCode,
        context: i32,
        test_enabled: bool,
    ) -> Result<(), IcedError> {
        let mut next = asm.create_label();
        if test_enabled {
            test_enabled_word(asm, self.at, link)?;
            asm.je(next)?;
        }
        leave_out_elsewhere(asm, self.at, link, next)?;
        if let Some(index) = link.session.filter(|_| link.is_return) {
            asm.test(dword_ptr(rcx + RUN_FLAGS), session_skip(index))?;
            asm.jne(next)?;
        }
        if let Some(index) = link.session {
            asm.lea(rax, qword_ptr(rcx + (run_session_cookie(index) + i32::from(link.is_return))))?;
            asm.mov(qword_ptr(rcx + RUN + offset_of!(RunContext, session) as i32), rax)?;
        }
        if link.uses.calls {
            near::address(asm, self.at, rax, link.runtime)?;
            asm.mov(qword_ptr(rcx + RUN + offset_of!(RunContext, link) as i32), rax)?;
            asm.mov(dword_ptr(rcx + RUN + offset_of!(RunContext, tail_calls) as i32), 0)?;
        }
        if link.needs.cpu {
            let claim = self.claim_cpu(asm)?;
            self.cold.push(Cold::ClaimCpu { claim, runtime: link.runtime, next });
        } else if link.uses.calls {
            let (other, none) = self.own_no_cpu(asm)?;
            self.cold.push(Cold::OwnNoCpu { other, none });
        }
        if link.counts_hits {
            const IN_SHARED: i32 = (offset_of!(LinkShared, hits) - offset_of!(LinkShared, enabled)) as i32;
            asm.mov(rax, link.runtime)?;
            asm.lock().inc(qword_ptr(rax + offset_of!(LinkRuntime, hits) as i32))?;
            asm.mov(rax, link.enabled)?;
            asm.lock().inc(qword_ptr(rax + IN_SHARED))?;
        }
        if link.uses.reads_context() {
            if context == 0 {
                asm.mov(rdi, rsp)?;
            } else {
                asm.lea(rdi, qword_ptr(rsp + context))?;
            }
        }
        if link.uses.reads_run() {
            asm.lea(rsi, qword_ptr(rcx + RUN))?;
        }
        match self.shared.bodies.get(&link.entry) {
            Some(body) => body.chunks(DATA_MAX).try_for_each(|bytes| asm.db(bytes))?,
            None => self.call(asm, link.entry)?,
        }
        if self.save.slot && link.uses.changes.contains(rcx) {
            asm.mov(rcx, self.save.running(Kept::Slot))?;
        }
        if let Some(index) = link.session.filter(|_| !link.is_return) {
            asm.cmp(eax, 1)?;
            asm.sbb(edx, edx)?; // all ones when it returned 0
            asm.and(edx, session_skip(index))?;
            asm.xor(dword_ptr(rcx + RUN_FLAGS), edx)?;
        }
        if link.needs.cpu {
            let (here, back) = self.release_cpu(asm)?;
            self.cold.push(Cold::ReleaseCpu { here, back });
        }
        asm.set_label(&mut next)?;
        // Where nothing follows that has a label.
        asm.zero_bytes()
    }

    fn call(&self, asm: &mut CodeAssembler, target: u64) -> Result<(), IcedError> {
        call(asm, self.at, target)
    }

    /// Counts a miss on each of `links` that is enabled. From rsp = S.
    pub(crate) fn count_missed(&self, asm: &mut CodeAssembler, links: &[&LinkCode]) -> Result<(), IcedError> {
        for link in links {
            let mut next = asm.create_label();
            leave_out_elsewhere(asm, self.at, link, next)?;
            asm.mov(rax, link.runtime)?;
            asm.call(self.gates.missed)?;
            asm.set_label(&mut next)?;
            asm.nop()?;
        }
        Ok(())
    }

    /// The cold code behind the steps above. Each piece goes back to the hot path, to `missed` or to `no_slot`.
    pub(crate) fn cold(&mut self, asm: &mut CodeAssembler) -> Result<(), IcedError> {
        for piece in std::mem::take(&mut self.cold) {
            match piece {
                Cold::Early { here } => self.early(asm, here)?,
                Cold::Claim { here } => self.claim(asm, here)?,
                Cold::Guard { here } => self.guard(asm, here)?,
                Cold::ClaimCpu { claim, runtime, next } => self.claim_cpu_cold(asm, claim, runtime, next)?,
                Cold::ReleaseCpu { mut here, back } => {
                    asm.set_label(&mut here)?;
                    asm.call(self.gates.release_cpu)?;
                    asm.jmp(back)?;
                }
                Cold::OwnNoCpu { other, none } => self.own_no_cpu_cold(asm, other, none)?,
                Cold::NoStack { mut here } => {
                    asm.set_label(&mut here)?;
                    self.clear_guard(asm)?;
                    asm.jmp(self.no_stack)?;
                }
            }
        }
        Ok(())
    }

    /// A thread that stands before its program's first instruction has a slot all the same: that at the home of 0, when it is ready.
    fn early(&self, asm: &mut CodeAssembler, mut here: CodeLabel) -> Result<(), IcedError> {
        const _: () = assert!(home_index(0) == 0);
        let mut none = asm.create_label();
        asm.set_label(&mut here)?;
        asm.mov(rcx, self.environment.threads)?;
        asm.cmp(slot_field(offset_of!(ThreadSlot, key)), 0)?;
        asm.jne(none)?;
        asm.cmp(qword_ptr(rcx + RUN + offset_of!(RunContext, process) as i32), 0)?;
        asm.jne(self.slot_found)?;
        asm.set_label(&mut none)?;
        asm.xor(ecx, ecx)?;
        asm.jmp(self.no_slot)
    }

    /// From rdx = key.
    fn claim(&self, asm: &mut CodeAssembler, mut here: CodeLabel) -> Result<(), IcedError> {
        asm.set_label(&mut here)?;
        asm.mov(rax, rdx)?;
        asm.call(self.gates.claim)?;
        asm.test(rcx, rcx)?;
        asm.jne(self.slot_found)?;
        asm.jmp(self.no_slot)
    }

    /// Is the run that set the word abandoned?
    fn guard(&self, asm: &mut CodeAssembler, mut here: CodeLabel) -> Result<(), IcedError> {
        asm.set_label(&mut here)?;
        asm.call(self.gates.guard)?;
        asm.test(rax, rax)?;
        asm.jne(self.run)?;
        asm.jmp(self.missed)
    }
}

/// rcx = the home slot of the thread with the fs base in `key`. Uses rax.
pub(crate) fn home_slot(
    asm: &mut CodeAssembler,
    at: u64,
    threads: u64,
    key: AsmRegister64,
) -> Result<(), IcedError> {
    /// The shift leaves the index where the offset has it.
    const SLOT_SHIFT: u32 = size_of::<ThreadSlot>().trailing_zeros();
    asm.imul_3(rcx, key, HASH_MULTIPLIER as i32)?;
    asm.shr(rcx, HASH_SHIFT - SLOT_SHIFT)?;
    asm.and(ecx, ((THREAD_SLOTS - 1) << SLOT_SHIFT) as i32)?;
    near::address(asm, at, rax, threads)?;
    asm.add(rcx, rax)
}

/// In the flags of the run: the session with this number does not run when the function returns.
pub(crate) fn session_skip(index: u32) -> u32 {
    RunContext::SESSION_SKIP << index
}

/// From the slot, what the session with this number keeps.
pub(crate) fn run_session_cookie(index: u32) -> i32 {
    RUN + (offset_of!(RunContext, session_cookies) + 8 * index as usize) as i32
}

/// Running these programs takes the thread's slot.
pub(crate) fn need_slot<'a>(links: impl IntoIterator<Item = &'a LinkCode>) -> bool {
    links.into_iter().any(|link| {
        !link.uses.is_alone() || link.needs.cpu || link.session.is_some() || link.overrides || link.is_return
    })
}

/// Registers that running these programs changes.
pub(crate) fn changed(links: &[&LinkCode]) -> Registers {
    links.iter().fold(Registers::NONE, |all, link| {
        let passed = if link.uses.reads_context() { Registers::NONE.with(rdi) } else { Registers::NONE };
        let passed = if link.uses.reads_run() { passed.with(rsi) } else { passed };
        all.union(link.uses.changes).union(passed)
    })
}

/// The zero flag is set when the link is off. Uses rax.
pub(crate) fn test_enabled_word(asm: &mut CodeAssembler, at: u64, link: &LinkCode) -> Result<(), IcedError> {
    near::test(asm, at, link.enabled, LinkShared::ON)
}

/// Goes to `next` when the link is for another process than this one. Uses rax.
fn leave_out_elsewhere(
    asm: &mut CodeAssembler,
    at: u64,
    link: &LinkCode,
    next: CodeLabel,
) -> Result<(), IcedError> {
    let Some(only_in) = link.only_in else { return Ok(()) };
    near::compare(asm, at, only_in.word, only_in.pid)?;
    asm.jne(next)
}

/// Calls `target` from code near `at`; through rax when it is far away.
pub(crate) fn call(asm: &mut CodeAssembler, at: u64, target: u64) -> Result<(), IcedError> {
    if reaches(at, target) {
        return asm.call(target);
    }
    asm.mov(rax, target)?;
    asm.call(rax)
}
