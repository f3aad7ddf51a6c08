//! How a stub owns a CPU while its program runs, without the agent where all is as usual.
//!
//! ```text
//! claim      the run's identity holds?  (same process, same thread)      no ─▶ agent
//!            rseq_cs = descriptor
//!   start    edx = rseq.cpu_id
//!            slot[edx].owner == 0?                                        no ─▶ rseq_cs = 0 ─▶ agent
//!            slot[edx].owner = owner            ◀ the commit
//!   behind   rseq_cs = 0
//! release    the run's identity holds, the slot is ours?                  no ─▶ agent
//!            slot.owner = 0
//! ```
//!
//! What the sequence is and why it is exact stands with the agent's own (`agent-core`'s `rseq`). Its descriptor lies behind the stub:
//! `rseq_cs` is cleared at every way out, for the arena goes away at detach.
//!
//! The identity holds when the fork page's epoch is the one that the run knows, and the thread control block names the run's
//! thread. The agent keeps `ThreadSlot::claim_owner` at nobody where either cannot be trusted.
//!
//! All of this takes rcx = slot, and leaves it.

use crate::phase::{Phase, slot_field};
use crate::site_code::ThreadKey;
use beeline_abi::map::Access;
use beeline_abi::process::{CpuSlot, ForkPage, ProcessBlock};
use beeline_abi::run::RunContext;
use beeline_abi::thread::{RSEQ_SIG, ThreadSlot};
use iced_x86::IcedError;
use iced_x86::code_asm::{
    AsmMemoryOperand, CodeAssembler, CodeLabel, dword_ptr, eax, edx, qword_ptr, rax, rcx, rdi, rdx, rsi,
};
use std::mem::offset_of;

const RUN: i32 = offset_of!(ThreadSlot, run) as i32;
const OWNER: i32 = RUN + (offset_of!(RunContext, access) + offset_of!(Access, owner)) as i32;
const CPU: i32 = RUN + (offset_of!(RunContext, access) + offset_of!(Access, cpu)) as i32;
const SLOT_OWNER: i32 = offset_of!(CpuSlot, owner) as i32;
/// A [`CpuSlot`] has so many bytes, as a shift.
const CPU_SHIFT: u32 = size_of::<CpuSlot>().trailing_zeros();
/// In `struct rseq` (`include/uapi/linux/rseq.h`).
const CPU_ID: i32 = 4;
const RSEQ_CS: i32 = 8;
/// Bytes of a `struct rseq_cs`, and its alignment.
const DESCRIPTOR_LEN: u64 = 32;

fn run_field(offset: usize) -> AsmMemoryOperand {
    qword_ptr(rcx + RUN + offset as i32)
}

/// A restartable sequence in a stub, by the indices of its instructions.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sequence {
    start: usize,
    behind: usize,
    abort: usize,
    /// The one that holds the descriptor's address.
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
        // `mov $imm64,%rdx`: two bytes, then the number.
        let number = offset(self.names)? as usize + 2;
        if let Some(place) = code.get_mut(number..number + 8) {
            place.copy_from_slice(&descriptor.to_le_bytes());
        }
        Ok(())
    }
}

/// Ways from the hot path to the agent, and back.
#[derive(Clone, Copy)]
pub(crate) struct Claim {
    /// In the sequence, the CPU is not to be had.
    leave: CodeLabel,
    /// Not without the agent.
    slow: CodeLabel,
    /// It is ours.
    taken: CodeLabel,
    /// Where the sequence goes when it is interrupted.
    sequence: Option<Sequence>,
}

impl Phase<'_> {
    fn is_inline(&self) -> bool {
        self.environment.fork_page != 0 && self.environment.cpu_slots != 0
    }

    /// Goes to `other` when the calling process is not the one that the run knows. Uses rax.
    fn same_process(&self, asm: &mut CodeAssembler, other: CodeLabel) -> Result<(), IcedError> {
        asm.mov(rax, self.environment.fork_page + offset_of!(ForkPage, epoch) as u64)?;
        asm.mov(rax, qword_ptr(rax))?;
        asm.cmp(rax, run_field(offset_of!(RunContext, ids_epoch)))?;
        asm.jne(other)
    }

    /// Owns a CPU. Changes rax, rdx, rsi, rdi.
    pub(crate) fn claim_cpu(&self, asm: &mut CodeAssembler) -> Result<Claim, IcedError> {
        let mut claim = Claim {
            leave: asm.create_label(),
            slow: asm.create_label(),
            taken: asm.create_label(),
            sequence: None,
        };
        if self.is_inline() {
            claim.sequence = Some(self.sequence(asm, &claim)?);
        } else {
            asm.jmp(claim.slow)?;
        }
        asm.set_label(&mut claim.taken)?;
        asm.zero_bytes()?;
        Ok(claim)
    }

    fn sequence(&self, asm: &mut CodeAssembler, claim: &Claim) -> Result<Sequence, IcedError> {
        self.same_process(asm, claim.slow)?;
        if self.may_be_early && self.environment.thread_key == ThreadKey::FsBase {
            // There is no thread control block where there is no thread pointer.
            asm.rdfsbase(rax)?;
            asm.test(rax, rax)?;
            asm.je(claim.slow)?;
        }
        asm.mov(rax, self.environment.block + offset_of!(ProcessBlock, tid_offset) as u64)?;
        asm.mov(eax, dword_ptr(rax))?;
        asm.mov(eax, dword_ptr(rax).fs())?;
        asm.cmp(eax, dword_ptr(rcx + RUN + offset_of!(RunContext, tid) as i32))?;
        asm.jne(claim.slow)?;
        asm.mov(rsi, qword_ptr(rcx + OWNER))?;
        asm.cmp(rsi, slot_field(offset_of!(ThreadSlot, claim_owner)))?;
        asm.jne(claim.slow)?;
        asm.mov(rdi, slot_field(offset_of!(ThreadSlot, claim_rseq)))?;
        asm.mov(rax, self.environment.cpu_slots)?;
        let names = asm.instructions().len();
        asm.mov(rdx, u64::MAX)?;
        asm.mov(qword_ptr(rdi + RSEQ_CS), rdx)?;
        // Right behind the store: the kernel forgets a sequence in which it does not find the thread.
        let start = asm.instructions().len();
        asm.mov(edx, dword_ptr(rdi + CPU_ID))?;
        asm.cmp(edx, self.environment.cpus)?;
        asm.jae(claim.leave)?;
        asm.shl(rdx, CPU_SHIFT)?;
        asm.add(rax, rdx)?;
        asm.cmp(qword_ptr(rax + SLOT_OWNER), 0)?;
        asm.jne(claim.leave)?;
        asm.mov(qword_ptr(rax + SLOT_OWNER), rsi)?; // the commit
        let behind = asm.instructions().len();
        asm.mov(qword_ptr(rdi + RSEQ_CS), 0)?;
        asm.shr(edx, CPU_SHIFT)?;
        asm.mov(dword_ptr(rcx + CPU), edx)?;
        Ok(Sequence { start, behind, abort: 0, names })
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
            // The signature, as the displacement of a `ud1`.
            asm.db(&[0x0f, 0xb9, 0x3d])?;
            asm.db(&RSEQ_SIG.to_le_bytes())?;
            sequence.abort = asm.instructions().len();
            asm.jmp(claim.slow)?; // the kernel has cleared rseq_cs
            asm.set_label(&mut claim.leave)?;
            asm.mov(qword_ptr(rdi + RSEQ_CS), 0)?;
            self.sequences.push(sequence);
        }
        asm.set_label(&mut claim.slow)?;
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
            // Computed again: stores are what a stub has too many of.
            asm.mov(edx, dword_ptr(rcx + CPU))?;
            asm.cmp(edx, self.environment.cpus)?;
            asm.jae(slow)?;
            asm.shl(rdx, CPU_SHIFT)?;
            asm.mov(rax, self.environment.cpu_slots)?;
            asm.add(rdx, rax)?;
            asm.mov(rax, qword_ptr(rcx + OWNER))?;
            asm.cmp(qword_ptr(rdx + SLOT_OWNER), rax)?;
            asm.jne(slow)?;
            asm.mov(qword_ptr(rdx + SLOT_OWNER), 0)?;
            asm.mov(dword_ptr(rcx + CPU), RunContext::NO_CPU)?;
        } else {
            asm.jmp(slow)?;
        }
        asm.set_label(&mut done)?;
        asm.zero_bytes()?;
        Ok((slow, done))
    }
}
