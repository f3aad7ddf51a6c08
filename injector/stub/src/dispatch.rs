//! Where calls go whose number is no constant: before the call to the code for its number, behind it to that of the number that the
//! thread's slot remembers.
//!
//! ```text
//! before   (somebody wants the end: the slot notes stack pointer and number)
//!          (somebody wants the beginning: on at CodeAt::before of the number)
//! behind   the slot's last call has this stack pointer? ─ yes ─▶ on at CodeAt::behind of the number
//!                       └ no; it has none ─▶ back, nobody wanted this call
//!                       └ no; another: that of a handler that was left ─▶ gate: the agent searches
//! ```
//!
//! The notes of a thread are made and taken without the guard: what a signal handler adds in between it takes away before it returns, and
//! when it does not return the notes that it interrupted are nobody's any more.

use crate::arena::{FILLER, LINE};
use crate::chain::HOOK_BELOW;
use crate::frame::SaveArea;
use crate::near;
use crate::phase::{Phase, Shared};
use crate::program_use::Registers;
use crate::site_code::StubError;
use beeline_abi::system_call::{CodeAt, NUMBERS, PENDING, PendingCall, SystemCalls};
use beeline_abi::thread::ThreadSlot;
use iced_x86::IcedError;
use iced_x86::code_asm::{
    AsmMemoryOperand, AsmRegister64, CodeAssembler, cl, dword_ptr, eax, ecx, edx, qword_ptr, rax, rcx, rdx,
    rsp,
};
use std::mem::offset_of;

/// Whom it hands on to. Addresses are the target's.
#[derive(Clone, Copy)]
pub(crate) struct Dispatch<'a> {
    pub(crate) shared: Shared<'a>,
    /// The process's [`SystemCalls`].
    pub(crate) calls: u64,
    /// The gate behind a call, for a number that has to be searched for.
    pub(crate) gate: u64,
}

/// Bytes of a frame here: rax, rdx.
const FRAME: i32 = 16;
const RAX: i32 = 0;
const RDX: i32 = 8;
/// From the frame to the caller's stack pointer.
const TO_CALLER: i32 = FRAME + 8 + HOOK_BELOW;

impl Dispatch<'_> {
    /// Makes both for address `at`; gives the code and where it begins: before the call, behind it.
    pub(crate) fn build(&self, at: u64) -> Result<(Vec<u8>, [u64; 2]), StubError> {
        let wrap = |e: IcedError| StubError::Assembler { at, reason: e.to_string() };
        let (mut code, mut starts) = (Vec::new(), [0; 2]);
        for (start, is_exit) in starts.iter_mut().zip([false, true]) {
            *start = (at + code.len() as u64).next_multiple_of(LINE);
            code.resize((*start - at) as usize, FILLER);
            let mut asm = CodeAssembler::new(64).map_err(wrap)?;
            if is_exit { self.exit(&mut asm, *start) } else { self.enter(&mut asm, *start) }.map_err(wrap)?;
            code.extend(asm.assemble(*start).map_err(wrap)?);
        }
        Ok((code, starts))
    }

    /// With rax = number, rcx = a byte of [`SystemCalls::wanted`], not 0, r11 = where to go on when the call is skipped.
    fn enter(&self, asm: &mut CodeAssembler, at: u64) -> Result<(), IcedError> {
        let (mut noted, mut back) = (asm.create_label(), asm.create_label());
        let (mut beyond, mut bounded) = (asm.create_label(), asm.create_label());
        asm.push(rdx)?;
        asm.push(rax)?;
        asm.test(cl, i32::from(SystemCalls::EXIT))?;
        asm.je(noted)?;
        let mut phase = self.phase(asm, at);
        phase.locate(asm)?;
        asm.mov(edx, top())?;
        asm.inc(qword_ptr(top()))?;
        place(asm)?;
        asm.mov(rax, kept(RAX))?;
        asm.mov(pending(offset_of!(PendingCall, number)), rax)?;
        asm.lea(rax, qword_ptr(rsp + TO_CALLER))?;
        asm.mov(pending(offset_of!(PendingCall, sp)), rax)?;
        asm.set_label(&mut noted)?;
        asm.mov(ecx, dword_ptr(kept(RAX)))?;
        asm.cmp(ecx, NUMBERS as i32)?;
        asm.jae(beyond)?;
        asm.set_label(&mut bounded)?;
        self.code_at(asm, at, rdx)?;
        asm.add(ecx, ecx)?;
        asm.mov(rcx, qword_ptr(rdx + rcx * 8 + offset_of!(CodeAt, before) as i32))?;
        asm.pop(rax)?;
        asm.pop(rdx)?;
        asm.jrcxz(back)?;
        asm.jmp(rcx)?;
        asm.set_label(&mut back)?;
        asm.ret()?;
        // Near enough for short jumps.
        phase.cold(asm)?;
        // Its end will not be known.
        asm.set_label(&mut phase.no_slot)?;
        asm.jmp(noted)?;
        // Numbers that have no entry of their own share the last one.
        asm.set_label(&mut beyond)?;
        asm.mov(ecx, NUMBERS as u32)?;
        asm.jmp(bounded)
    }

    /// With rax = result; r11 stays.
    fn exit(&self, asm: &mut CodeAssembler, at: u64) -> Result<(), IcedError> {
        let (mut other, mut back) = (asm.create_label(), asm.create_label());
        let (mut beyond, mut bounded) = (asm.create_label(), asm.create_label());
        asm.push(rdx)?;
        asm.push(rax)?;
        let mut phase = self.phase(asm, at);
        phase.locate(asm)?;
        asm.mov(edx, top())?;
        asm.dec(edx)?;
        place(asm)?;
        asm.lea(rax, qword_ptr(rsp + TO_CALLER))?;
        asm.cmp(pending(offset_of!(PendingCall, sp)), rax)?;
        asm.jne(other)?;
        asm.xor(eax, eax)?;
        asm.mov(pending(offset_of!(PendingCall, sp)), rax)?;
        asm.dec(qword_ptr(top()))?;
        asm.mov(ecx, dword_ptr(pending(offset_of!(PendingCall, number))))?;
        asm.cmp(ecx, NUMBERS as i32)?;
        asm.jae(beyond)?;
        asm.lea(edx, dword_ptr(rcx + rcx))?;
        asm.set_label(&mut bounded)?;
        asm.bts(rcx, PendingCall::NOTED.trailing_zeros())?;
        self.code_at(asm, at, rax)?;
        asm.mov(rdx, qword_ptr(rax + rdx * 8 + offset_of!(CodeAt, behind) as i32))?;
        asm.test(rdx, rdx)?;
        asm.je(back)?;
        asm.mov(rax, kept(RAX))?;
        asm.mov(kept(RAX), rdx)?;
        asm.mov(rdx, kept(RDX))?;
        asm.lea(rsp, qword_ptr(rsp + FRAME))?;
        // Signal handlers leave the red zone alone.
        asm.jmp(qword_ptr(rsp - (FRAME - RAX)))?;
        asm.set_label(&mut back)?;
        asm.pop(rax)?;
        asm.pop(rdx)?;
        asm.ret()?;
        // Near enough for short jumps.
        phase.cold(asm)?;
        // Without a slot there are no notes.
        asm.set_label(&mut phase.no_slot)?;
        asm.jmp(back)?;
        asm.set_label(&mut other)?;
        asm.cmp(pending(offset_of!(PendingCall, sp)), 0)?;
        asm.je(back)?;
        asm.pop(rax)?;
        asm.pop(rdx)?;
        asm.mov(rcx, PendingCall::UNKNOWN)?;
        asm.jmp(self.gate)?;
        asm.set_label(&mut beyond)?;
        asm.mov(edx, 2 * NUMBERS as u32)?;
        asm.jmp(bounded)
    }

    /// `register` = the address of the code for all numbers.
    fn code_at(&self, asm: &mut CodeAssembler, at: u64, register: AsmRegister64) -> Result<(), IcedError> {
        near::address(asm, at, register, self.calls + offset_of!(SystemCalls, code) as u64)
    }

    /// What finds the slot.
    fn phase(&self, asm: &mut CodeAssembler, at: u64) -> Phase<'_> {
        let save = SaveArea {
            distance: FRAME,
            keep_status: false,
            read_flags: false,
            own_stack: false,
            slot: true,
            changed: Registers::NONE,
            free: Registers::NONE,
            contexts: 0,
        };
        let mut phase = Phase::new(asm, self.shared, at, save);
        phase.may_be_early = true;
        phase
    }
}

/// A word of the frame.
fn kept(offset: i32) -> AsmMemoryOperand {
    qword_ptr(rsp + offset)
}

/// The lower half of how many notes the slot at rcx has had, which is enough to find one.
fn top() -> AsmMemoryOperand {
    dword_ptr(rcx + offset_of!(ThreadSlot, pending_top) as i32)
}

/// rdx = an eighth of the offset from the slot's first note of the one with the number in edx.
fn place(asm: &mut CodeAssembler) -> Result<(), IcedError> {
    const _: () = assert!(PENDING.is_power_of_two() && size_of::<PendingCall>() == 16);
    asm.and(edx, PENDING as i32 - 1)?;
    asm.add(edx, edx)
}

/// A field of the note at rdx, of the slot at rcx.
fn pending(field: usize) -> AsmMemoryOperand {
    qword_ptr(rcx + rdx * 8 + (offset_of!(ThreadSlot, pending) + field) as i32)
}
