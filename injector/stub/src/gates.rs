//! Gates: how the cold code of stubs calls the agent. One set in each arena.
//!
//! A gate is called with rsp = S - 8 (see [`frame`](crate::frame)) and rcx = the thread's slot. It keeps every register but rax, rdx and
//! the status flags, which the save area holds, and aligns the stack for the agent. The direction flag is the agent's while it runs.
//!
//! | gate | takes | gives |
//! |---|---|---|
//! | `claim` | rax = key | rcx = slot, or 0 |
//! | `guard` | | rax = 1: run, 0: missed |
//! | `missed` | rax = `LinkRuntime` | counts a miss if the link is on |
//! | `room` | rax = address of the return address | rax = 1: room at the top |
//! | `find` | rax = address of the return point's word, rcx may be 0 | the word holds the return address; rax = its entry, which is popped |
//! | `claim_cpu` | | rax = 1: a CPU is owned |
//! | `release_cpu` | | |

use crate::frame::{others, restore_direction};
use crate::phase::{call, slot_field};
use crate::site_code::{Environment, StubError};
use beeline_abi::link::{LinkRuntime, LinkShared};
use beeline_abi::thread::{ReturnSlot, ThreadSlot};
use iced_x86::code_asm::{CodeAssembler, dword_ptr, esi, qword_ptr, rax, rcx, rdi, rdx, rsi, rsp};
use iced_x86::{BlockEncoderOptions, IcedError};
use std::mem::offset_of;

/// Addresses of the gates of an arena.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Gates {
    pub(crate) claim: u64,
    pub(crate) guard: u64,
    pub(crate) missed: u64,
    pub(crate) room: u64,
    pub(crate) find: u64,
    pub(crate) claim_cpu: u64,
    pub(crate) release_cpu: u64,
}

/// Offsets in a gate's frame, behind the six saved registers.
const ENTRY_SP: i32 = 48;
const SLOT: i32 = 56;
const WORD: i32 = 64;
const FLAGS: i32 = 72;
const FRAME_LEN: i32 = 80;

/// Makes the gates for address `at`.
pub(crate) fn build_gates(environment: &Environment, at: u64) -> Result<(Vec<u8>, Gates), StubError> {
    let wrap = |e: IcedError| StubError::Assembler { at, reason: e.to_string() };
    let mut asm = CodeAssembler::new(64).map_err(wrap)?;
    let mut starts = [0; 7];
    let writers = [claim, guard, missed, room, find, claim_cpu, release_cpu];
    for (start, write) in starts.iter_mut().zip(writers) {
        *start = asm.instructions().len();
        write(&mut asm, environment, at).map_err(wrap)?;
    }
    let result =
        asm.assemble_options(at, BlockEncoderOptions::RETURN_NEW_INSTRUCTION_OFFSETS).map_err(wrap)?.inner;
    let offsets = result.new_instruction_offsets;
    let address = |index: usize| at + u64::from(offsets.get(index).copied().unwrap_or_default());
    let [claim, guard, missed, room, find, claim_cpu, release_cpu] = starts.map(address);
    Ok((result.code_buffer, Gates { claim, guard, missed, room, find, claim_cpu, release_cpu }))
}

fn claim(asm: &mut CodeAssembler, environment: &Environment, at: u64) -> Result<(), IcedError> {
    enter(asm)?;
    asm.mov(rdi, rax)?;
    asm.mov(rsi, environment.block)?;
    // rdx = S, as it is.
    call(asm, at, environment.agent.claim_slot)?;
    asm.mov(qword_ptr(rsp + SLOT), rax)?;
    leave(asm)
}

fn guard(asm: &mut CodeAssembler, environment: &Environment, at: u64) -> Result<(), IcedError> {
    enter(asm)?;
    asm.mov(rdi, rcx)?;
    asm.mov(rsi, rdx)?;
    call(asm, at, environment.agent.guard)?;
    leave(asm)
}

fn missed(asm: &mut CodeAssembler, environment: &Environment, at: u64) -> Result<(), IcedError> {
    let mut off = asm.create_label();
    enter(asm)?;
    // The arguments with which a function was entered.
    asm.mov(rdx, rdi)?;
    asm.mov(rcx, rsi)?;
    asm.mov(rdi, rax)?;
    asm.mov(rax, qword_ptr(rdi + offset_of!(LinkRuntime, shared) as i32))?;
    asm.test(dword_ptr(rax + offset_of!(LinkShared, enabled) as i32), LinkShared::ON)?;
    asm.je(off)?;
    asm.mov(esi, 1)?;
    call(asm, at, environment.agent.missed)?;
    asm.set_label(&mut off)?;
    leave(asm)
}

fn room(asm: &mut CodeAssembler, environment: &Environment, at: u64) -> Result<(), IcedError> {
    enter(asm)?;
    asm.mov(rdi, rcx)?;
    asm.mov(rsi, rax)?;
    call(asm, at, environment.agent.return_room)?;
    leave(asm)
}

/// Pops the entry only from this thread's own return stack: a coroutine may have changed threads in between.
fn find(asm: &mut CodeAssembler, environment: &Environment, at: u64) -> Result<(), IcedError> {
    let (mut found, mut done) = (asm.create_label(), asm.create_label());
    enter(asm)?;
    asm.mov(qword_ptr(rsp + WORD), rax)?;
    asm.mov(rdi, rcx)?;
    asm.mov(rsi, rax)?;
    // Where the stub has called us from.
    asm.mov(rdx, qword_ptr(rdx - 8))?;
    call(asm, at, environment.agent.return_find)?;
    asm.test(rax, rax)?;
    asm.jne(found)?;
    asm.ud2()?; // the agent promises an entry: without one there is nowhere to go
    asm.set_label(&mut found)?;
    asm.mov(rdx, qword_ptr(rsp + WORD))?;
    asm.mov(rdi, qword_ptr(rax + offset_of!(ReturnSlot, return_address) as i32))?;
    asm.mov(qword_ptr(rdx), rdi)?;
    asm.mov(rcx, qword_ptr(rsp + SLOT))?;
    asm.test(rcx, rcx)?;
    asm.je(done)?;
    asm.cmp(rax, slot_field(offset_of!(ThreadSlot, returns_base)))?;
    asm.jb(done)?;
    asm.cmp(rax, slot_field(offset_of!(ThreadSlot, returns_top)))?;
    asm.jae(done)?;
    asm.mov(slot_field(offset_of!(ThreadSlot, returns_top)), rax)?;
    asm.set_label(&mut done)?;
    leave(asm)
}

fn claim_cpu(asm: &mut CodeAssembler, environment: &Environment, at: u64) -> Result<(), IcedError> {
    enter(asm)?;
    asm.lea(rdi, slot_field(offset_of!(ThreadSlot, run)))?;
    call(asm, at, environment.agent.claim_cpu)?;
    leave(asm)
}

fn release_cpu(asm: &mut CodeAssembler, environment: &Environment, at: u64) -> Result<(), IcedError> {
    enter(asm)?;
    asm.lea(rdi, slot_field(offset_of!(ThreadSlot, run)))?;
    call(asm, at, environment.agent.release_cpu)?;
    leave(asm)
}

/// Saves what the agent may change; rdx = S.
fn enter(asm: &mut CodeAssembler) -> Result<(), IcedError> {
    asm.mov(rdx, rsp)?;
    asm.lea(rsp, qword_ptr(rsp - FRAME_LEN))?;
    asm.and(rsp, -16i32)?;
    for (i, (register, _)) in others().into_iter().enumerate() {
        asm.mov(qword_ptr(rsp + 8 * i as i32), register)?;
    }
    asm.mov(qword_ptr(rsp + ENTRY_SP), rdx)?;
    asm.mov(qword_ptr(rsp + SLOT), rcx)?;
    asm.pushfq()?;
    asm.pop(qword_ptr(rsp + FLAGS))?;
    asm.cld()?;
    asm.add(rdx, 8)
}

fn leave(asm: &mut CodeAssembler) -> Result<(), IcedError> {
    restore_direction(asm, rsp + FLAGS)?;
    for (i, (register, _)) in others().into_iter().enumerate() {
        asm.mov(register, qword_ptr(rsp + 8 * i as i32))?;
    }
    asm.mov(rcx, qword_ptr(rsp + SLOT))?;
    asm.mov(rsp, qword_ptr(rsp + ENTRY_SP))?;
    asm.ret()
}
