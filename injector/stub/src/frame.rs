//! What a stub keeps on the stack, and the code that puts it there.
//!
//! ```text
//!   higher addresses
//!   │ the probed code's stack       │ ◀ its stack pointer; at an entry, the word with the return address
//!   │ red zone, 128 bytes           │   left alone, except at an entry of a target with small stacks
//!   ├───────────────────────────────┤
//!   │ save area: rax rcx rdx rbx …  │ ◀ S. In the return stub, the word with the return address lies on top
//!   ├───────────────────────────────┤
//!   │ (alignment)                   │
//!   │ frame: pt_regs                │ ◀ rsp while programs run; or at the top of the slot's own stack
//! ```
//!
//! The save area alone is enough to find the slot, to test the guard word, and to push or pop a return. The frame exists only
//! while programs run, and rbx = S then: the way back to S through a register is shorter than through memory. Its `pt_regs` is the context *and* the place where the registers are saved: programs
//! cannot write to it, the verifier sees to that.

use beeline_abi::code::ContextUse;
use beeline_abi::regs::PtRegs;
use iced_x86::IcedError;
use iced_x86::code_asm::{
    AsmRegister64, CodeAssembler, al, qword_ptr, r8, r9, r10, r11, r12, r13, r14, r15, rax, rbp, rbx, rcx,
    rdi, rdx, rsi, rsp,
};
use std::mem::offset_of;

/// Bytes below the stack pointer that a leaf function may use without moving it (System V AMD64 ABI, 3.2.2).
pub(crate) const RED_ZONE: i32 = 128;

/// Offsets in the save area.
pub(crate) const SAVED_RAX: i32 = 0;
const SAVED_RCX: i32 = 8;
const SAVED_RDX: i32 = 16;
const SAVED_STATUS: i32 = 24;
const SAVED_FLAGS: i32 = 32;
const SAVED_RBX: i32 = 40;
/// The thread's slot, while there is a frame.
pub(crate) const SAVED_SLOT: i32 = 48;
/// Bytes of the save area.
pub(crate) const SAVE_LEN: i32 = 56;

/// Bytes of the frame.
const FRAME_LEN: i32 = (size_of::<PtRegs>() as i32 + 15) & !15;

/// Registers that a callee may change and that the save area does not hold, with their place in `pt_regs`.
pub(crate) fn others() -> [(AsmRegister64, i32); 6] {
    [
        (rsi, offset_of!(PtRegs, si) as i32),
        (rdi, offset_of!(PtRegs, di) as i32),
        (r8, offset_of!(PtRegs, r8) as i32),
        (r9, offset_of!(PtRegs, r9) as i32),
        (r10, offset_of!(PtRegs, r10) as i32),
        (r11, offset_of!(PtRegs, r11) as i32),
    ]
}

/// How a phase of a stub saves what it uses.
#[derive(Clone, Copy)]
pub(crate) struct SaveArea {
    /// Distance from S to the stack pointer of the probed code.
    pub(crate) distance: i32,
    /// The status flags are live.
    pub(crate) keep_status: bool,
    /// A program reads `pt_regs::flags`.
    pub(crate) read_flags: bool,
    /// The slot's own stack is used.
    pub(crate) own_stack: bool,
}

impl SaveArea {
    /// Makes room and saves. `moved` is how far the stack pointer goes down; 'lea' leaves the flags alone.
    pub(crate) fn enter(&self, asm: &mut CodeAssembler) -> Result<(), IcedError> {
        asm.lea(rsp, qword_ptr(rsp - self.distance))?;
        asm.mov(qword_ptr(rsp + SAVED_RAX), rax)?;
        if self.read_flags {
            asm.pushfq()?;
            asm.pop(qword_ptr(rsp + SAVED_FLAGS))?;
        }
        if self.keep_status {
            // popfq costs more than the rest of the stub: the six status flags by hand.
            asm.lahf()?;
            asm.seto(al)?;
            asm.mov(qword_ptr(rsp + SAVED_STATUS), rax)?;
        }
        asm.mov(qword_ptr(rsp + SAVED_RCX), rcx)?;
        asm.mov(qword_ptr(rsp + SAVED_RDX), rdx)
    }

    /// Restores what [`enter`](SaveArea::enter) saved; the stack pointer stays at S.
    pub(crate) fn restore(&self, asm: &mut CodeAssembler) -> Result<(), IcedError> {
        if self.keep_status {
            asm.mov(rax, qword_ptr(rsp + SAVED_STATUS))?;
            asm.add(al, 0x7f)?; // 1 overflows, 0 does not
            asm.sahf()?;
        }
        asm.mov(rdx, qword_ptr(rsp + SAVED_RDX))?;
        asm.mov(rcx, qword_ptr(rsp + SAVED_RCX))?;
        asm.mov(rax, qword_ptr(rsp + SAVED_RAX))
    }

    /// Makes the frame: from rsp = S, rcx = slot, and rax = top of the slot's own stack where that is used.
    pub(crate) fn enter_frame(&self, asm: &mut CodeAssembler) -> Result<(), IcedError> {
        asm.mov(qword_ptr(rsp + SAVED_RBX), rbx)?;
        asm.mov(qword_ptr(rsp + SAVED_SLOT), rcx)?;
        asm.mov(rbx, rsp)?;
        if self.own_stack {
            asm.lea(rsp, qword_ptr(rax - FRAME_LEN))?;
        } else {
            asm.lea(rsp, qword_ptr(rsp - FRAME_LEN))?;
        }
        asm.and(rsp, -16i32)?;
        for (register, offset) in others() {
            asm.mov(qword_ptr(rsp + offset), register)?;
        }
        Ok(())
    }

    /// Fills the words of `pt_regs` that are `used`. From rbx = S; uses rax. `ip` puts the instruction pointer into rax.
    pub(crate) fn fill_context(
        &self,
        asm: &mut CodeAssembler,
        used: ContextUse,
        ip: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>,
    ) -> Result<(), IcedError> {
        let kept = [
            (r15, offset_of!(PtRegs, r15)),
            (r14, offset_of!(PtRegs, r14)),
            (r13, offset_of!(PtRegs, r13)),
            (r12, offset_of!(PtRegs, r12)),
            (rbp, offset_of!(PtRegs, bp)),
        ];
        for (register, offset) in kept {
            if used.reads(offset as u32) {
                asm.mov(qword_ptr(rsp + offset as i32), register)?;
            }
        }
        let saved = [
            (SAVED_RBX, offset_of!(PtRegs, bx)),
            (SAVED_RAX, offset_of!(PtRegs, ax)),
            (SAVED_RCX, offset_of!(PtRegs, cx)),
            (SAVED_RDX, offset_of!(PtRegs, dx)),
            (SAVED_FLAGS, offset_of!(PtRegs, flags)),
        ];
        for (from, offset) in saved {
            if used.reads(offset as u32) {
                asm.mov(rax, qword_ptr(rbx + from))?;
                asm.mov(qword_ptr(rsp + offset as i32), rax)?;
            }
        }
        // include/linux/ptrace.h: not in a system call; arch/x86: the user's code and stack segments.
        let constants = [
            (-1i32, offset_of!(PtRegs, orig_ax)),
            (0x33, offset_of!(PtRegs, cs)),
            (0x2b, offset_of!(PtRegs, ss)),
        ];
        for (value, offset) in constants {
            if used.reads(offset as u32) {
                asm.mov(qword_ptr(rsp + offset as i32), value)?;
            }
        }
        if used.reads(offset_of!(PtRegs, sp) as u32) {
            asm.lea(rax, qword_ptr(rbx + self.distance))?;
            asm.mov(qword_ptr(rsp + offset_of!(PtRegs, sp) as i32), rax)?;
        }
        if used.reads(offset_of!(PtRegs, ip) as u32) {
            ip(asm)?;
            asm.mov(qword_ptr(rsp + offset_of!(PtRegs, ip) as i32), rax)?;
        }
        Ok(())
    }

    /// Back from the frame to rsp = S, rcx = slot.
    pub(crate) fn leave_frame(&self, asm: &mut CodeAssembler) -> Result<(), IcedError> {
        for (register, offset) in others() {
            asm.mov(register, qword_ptr(rsp + offset))?;
        }
        asm.mov(rsp, rbx)?;
        asm.mov(rcx, qword_ptr(rsp + SAVED_SLOT))?;
        asm.mov(rbx, qword_ptr(rsp + SAVED_RBX))
    }
}
