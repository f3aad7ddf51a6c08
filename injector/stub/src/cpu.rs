//! How a stub owns a CPU while its program runs, without the agent where all is as usual.
//!
//! ```text
//! claim      the run's identity holds?  (same process, same thread)      no ─▶ agent
//!            rdx = descriptor
//!            test $(arm),%eax           ┐ arm: rseq_cs = rdx, hidden in the number
//!   start    rseq_cs == rdx?            ┘ no ─▶ arm, which goes on at the start
//!            rseq.cpu_id == run.cpu, the CPU that was claimed last?       no ─▶ agent
//!            its slot.owner == 0?                                         no ─▶ agent
//!            slot.owner = owner         ◀ the commit
//!   behind
//! release    the run's identity holds, the slot is ours?                  no ─▶ agent
//!            slot.owner = 0
//! ```
//!
//! What the sequence is and why it is exact stands with the agent's own (`agent-core`'s `rseq`). Here `rseq_cs` stays set, since stores
//! are what a stub has too many of:
//!
//! - From `start` on, a word that names this descriptor has the kernel abort the sequence when the thread is interrupted before the
//!   commit. The comparison is the first instruction of it, and so what it has found is still true at the commit.
//! - Elsewhere the word means nothing: the kernel clears it when the thread is interrupted there. The next claim sets it again, by
//!   the instruction right before `start`: an interruption between the two aborts as well, so that a debugger's single steps end at
//!   the agent and not in a circle. The hot path runs that instruction as the number of another.
//! - Between its claims a thread may use `rseq_cs` for sequences of its own (tcmalloc does, and leaves it set, too).
//! - The descriptor lies behind the stub and may be named by a thread that is elsewhere, or has ended: whoever unmaps it clears all
//!   these words first (`inject::sequences`). A fork's child has both, `exec` neither; a child of `vfork` has no `struct rseq` and shares
//!   its parent's, which the kernel looks at when the parent goes on, and finds it outside of the sequence.
//!
//! `run.access.cpu` is not taken back: a set guard word says that a CPU may be owned, the slot's owner word which.
//! A program that calls something and owns no CPU has to see none: its stub stores that where it is not so, and the next claim
//! puts the number back before the sequence begins.
//!
//! The identity holds when the fork page's epoch and the id in the thread control block are those that the agent claimed for. It
//! keeps `ThreadSlot::claim_tid` at nobody where either cannot be trusted.
//!
//! All of this takes rcx = slot, leaves it, and needs no register but rax and rdx.

use crate::near;
use crate::phase::{Phase, slot_field};
use crate::site_code::ThreadKey;
use beeline_abi::map::Access;
use beeline_abi::process::{CpuSlot, ForkPage};
use beeline_abi::run::RunContext;
use beeline_abi::thread::{RSEQ_SIG, ThreadSlot};
use iced_x86::IcedError;
use iced_x86::code_asm::{CodeAssembler, CodeLabel, dword_ptr, eax, qword_ptr, rax, rcx, rdx};
use std::mem::offset_of;

const RUN: i32 = offset_of!(ThreadSlot, run) as i32;
const CPU: i32 = RUN + (offset_of!(RunContext, access) + offset_of!(Access, cpu)) as i32;
const CLAIM_CPU: i32 = offset_of!(ThreadSlot, claim_cpu) as i32;
const SLOT_OWNER: i32 = offset_of!(CpuSlot, owner) as i32;
/// In `struct rseq` (`include/uapi/linux/rseq.h`).
const CPU_ID: i32 = 4;
const RSEQ_CS: i32 = 8;
/// Bytes of a `struct rseq_cs`, and its alignment.
const DESCRIPTOR_LEN: u64 = 32;

/// `lea distance(%rip),%rdx` up to the distance, which has four bytes.
const NAMES: [u8; 3] = [0x48, 0x8d, 0x15];
/// `test $number,%eax` up to the number, which has four bytes.
const TEST_EAX: [u8; 1] = [0xa9];

/// A restartable sequence in a stub, by the indices of its instructions.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sequence {
    start: usize,
    behind: usize,
    abort: usize,
    /// The one with the distance to the descriptor.
    names: usize,
}

impl Sequence {
    /// Puts the descriptor behind the code, which begins at `at`; `offset` tells where in it an instruction is.
    pub(crate) fn describe<E>(
        &self,
        code: &mut Vec<u8>,
        at: u64,
        offset: impl Fn(usize) -> Result<u32, E>,
    ) -> Result<(), E> {
        let descriptor = (at + code.len() as u64).next_multiple_of(DESCRIPTOR_LEN);
        code.resize((descriptor - at) as usize, 0);
        let [start, behind, abort] = [offset(self.start)?, offset(self.behind)?, offset(self.abort)?];
        // version and flags, start_ip, post_commit_offset, abort_ip
        for word in [0, at + u64::from(start), u64::from(behind - start), at + u64::from(abort)] {
            code.extend_from_slice(&word.to_le_bytes());
        }
        let number = offset(self.names)? as usize + NAMES.len();
        let distance = (descriptor - at) as i32 - (number as i32 + 4);
        if let Some(place) = code.get_mut(number..number + 4) {
            place.copy_from_slice(&distance.to_le_bytes());
        }
        Ok(())
    }
}

/// Ways from the hot path to the agent, and back.
#[derive(Clone, Copy)]
pub(crate) struct Claim {
    /// Not without the agent.
    slow: CodeLabel,
    /// The run's number is none, or that of another CPU.
    other: CodeLabel,
    /// Where the sequence begins.
    start: CodeLabel,
    /// It is ours.
    taken: CodeLabel,
    /// Where the sequence goes when it is interrupted.
    sequence: Option<Sequence>,
}

impl Phase<'_> {
    fn is_inline(&self) -> bool {
        self.environment.fork_page != 0 && self.environment.cpu_slots != 0
    }

    /// Goes to `other` when the calling process is not the one that the agent claimed for. Uses rax.
    fn same_process(&self, asm: &mut CodeAssembler, other: CodeLabel) -> Result<(), IcedError> {
        near::load(asm, self.at, rax, self.environment.fork_page + offset_of!(ForkPage, epoch) as u64)?;
        asm.cmp(rax, slot_field(offset_of!(ThreadSlot, claim_epoch)))?;
        asm.jne(other)
    }

    /// Owns a CPU. Changes rax, rdx.
    pub(crate) fn claim_cpu(&self, asm: &mut CodeAssembler) -> Result<Claim, IcedError> {
        let mut claim = Claim {
            slow: asm.create_label(),
            other: asm.create_label(),
            start: asm.create_label(),
            taken: asm.create_label(),
            sequence: None,
        };
        if self.is_inline() {
            self.same_run(asm, claim.slow)?;
            claim.sequence = Some(self.sequence(asm, &mut claim)?);
        } else {
            asm.jmp(claim.slow)?;
        }
        asm.set_label(&mut claim.taken)?;
        asm.zero_bytes()?;
        Ok(claim)
    }

    /// Goes to `slow` when process and thread are not certainly those that the agent claimed for. Uses rax.
    fn same_run(&self, asm: &mut CodeAssembler, slow: CodeLabel) -> Result<(), IcedError> {
        self.same_process(asm, slow)?;
        if self.may_be_early && self.environment.thread_key == ThreadKey::FsBase {
            // There is no thread control block where there is no thread pointer.
            asm.rdfsbase(rax)?;
            asm.test(rax, rax)?;
            asm.je(slow)?;
        }
        asm.mov(rax, slot_field(offset_of!(ThreadSlot, claim_tid_at)))?;
        asm.mov(eax, dword_ptr(rax))?;
        asm.cmp(eax, dword_ptr(rcx + offset_of!(ThreadSlot, claim_tid) as i32))?;
        asm.jne(slow)
    }

    fn sequence(&self, asm: &mut CodeAssembler, claim: &mut Claim) -> Result<Sequence, IcedError> {
        let mut arm = asm.create_label();
        asm.mov(rax, slot_field(offset_of!(ThreadSlot, claim_rseq)))?;
        let names = asm.instructions().len();
        asm.db(&[NAMES.as_slice(), &[0; 4]].concat())?;
        asm.db(&TEST_EAX)?;
        asm.set_label(&mut arm)?;
        asm.mov(qword_ptr(rax + RSEQ_CS), rdx)?; // its four bytes are the number
        let start = asm.instructions().len();
        asm.set_label(&mut claim.start)?;
        asm.cmp(qword_ptr(rax + RSEQ_CS), rdx)?;
        asm.jne(arm)?;
        asm.mov(eax, dword_ptr(rax + CPU_ID))?;
        asm.cmp(eax, dword_ptr(rcx + CPU))?;
        asm.jne(claim.other)?;
        asm.mov(rdx, slot_field(offset_of!(ThreadSlot, claim_slot)))?;
        asm.mov(rax, slot_field(offset_of!(ThreadSlot, claim_owner)))?;
        asm.cmp(qword_ptr(rdx + SLOT_OWNER), 0)?;
        asm.jne(claim.slow)?;
        asm.mov(qword_ptr(rdx + SLOT_OWNER), rax)?; // the commit
        let behind = asm.instructions().len();
        Ok(Sequence { start, behind, abort: 0, names })
    }

    /// A run that owns no CPU has none, whatever one before it had: on at the second label.
    pub(crate) fn own_no_cpu(&self, asm: &mut CodeAssembler) -> Result<(CodeLabel, CodeLabel), IcedError> {
        let (other, mut none) = (asm.create_label(), asm.create_label());
        asm.cmp(dword_ptr(rcx + CPU), RunContext::NO_CPU as i32)?;
        asm.jne(other)?;
        asm.set_label(&mut none)?;
        asm.zero_bytes()?;
        Ok((other, none))
    }

    pub(crate) fn own_no_cpu_cold(
        &self,
        asm: &mut CodeAssembler,
        mut other: CodeLabel,
        none: CodeLabel,
    ) -> Result<(), IcedError> {
        asm.set_label(&mut other)?;
        asm.mov(dword_ptr(rcx + CPU), RunContext::NO_CPU)?;
        asm.jmp(none)
    }

    /// The ways to the agent. When it cannot claim either, a miss is counted on the link with this runtime: on at `next`.
    pub(crate) fn claim_cpu_cold(
        &mut self,
        asm: &mut CodeAssembler,
        mut claim: Claim,
        runtime: u64,
        next: CodeLabel,
    ) -> Result<(), IcedError> {
        if let Some(mut sequence) = claim.sequence {
            asm.set_label(&mut claim.other)?;
            asm.cmp(dword_ptr(rcx + CPU), RunContext::NO_CPU as i32)?;
            asm.jne(claim.slow)?;
            asm.mov(eax, dword_ptr(rcx + CLAIM_CPU))?;
            asm.mov(dword_ptr(rcx + CPU), eax)?;
            asm.mov(rax, slot_field(offset_of!(ThreadSlot, claim_rseq)))?;
            asm.jmp(claim.start)?;
            // The signature, as the displacement of a `ud1`.
            asm.db(&[0x0f, 0xb9, 0x3d])?;
            asm.db(&RSEQ_SIG.to_le_bytes())?;
            sequence.abort = asm.instructions().len();
            self.sequences.push(sequence);
        }
        asm.set_label(&mut claim.slow)?;
        asm.nop()?;
        asm.call(self.gates.claim_cpu)?;
        asm.test(rax, rax)?;
        asm.jne(claim.taken)?;
        asm.mov(rax, runtime)?;
        asm.call(self.gates.missed)?;
        asm.jmp(next)
    }

    /// Gives the CPU back. Changes rax, rdx. Where the agent has to be asked: on at the first label, and back at the second.
    pub(crate) fn release_cpu(&self, asm: &mut CodeAssembler) -> Result<(CodeLabel, CodeLabel), IcedError> {
        let (slow, mut done) = (asm.create_label(), asm.create_label());
        if self.is_inline() {
            self.same_process(asm, slow)?;
            asm.mov(rdx, slot_field(offset_of!(ThreadSlot, claim_slot)))?;
            asm.mov(rax, slot_field(offset_of!(ThreadSlot, claim_owner)))?;
            asm.cmp(qword_ptr(rdx + SLOT_OWNER), rax)?;
            asm.jne(slow)?;
            asm.mov(qword_ptr(rdx + SLOT_OWNER), 0)?;
        } else {
            asm.jmp(slow)?;
        }
        asm.set_label(&mut done)?;
        asm.zero_bytes()?;
        Ok((slow, done))
    }
}
