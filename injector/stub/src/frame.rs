//! What a stub keeps on the stack, and the code that puts it there.
//!
//! ```text
//!   higher addresses
//!   │ the probed code's stack       │ ◀ its stack pointer; at an entry, the word with the return address
//!   │ red zone, 128 bytes           │   left alone, except at an entry of a target with small stacks
//!   ├───────────────────────────────┤
//!   │ status flags, slot            │   In the return stub, the word with the return address lies on top
//!   │ pt_regs: rax rcx rdx …        │ ◀ S; rsp while programs run
//!   ├───────────────────────────────┤
//! ```
//!
//! `pt_regs` is the context *and* the place where the registers are saved: programs cannot write to it, the verifier sees to that.
//! Three registers are enough to find the slot, to test the guard word, and to push or pop a return; of the others those are
//! saved that a program changes or reads. S is a multiple of 16 where the probed code keeps to the ABI, and nothing that runs here minds
//! when it is not: there is no vector instruction. Programs that need no slot (see [`phase`](crate::phase)) cost rax alone.
//!
//! Where stacks are small, programs run on the slot's own. The save area holds single words then, rbx = S, and `pt_regs` lies at
//! the top of the slot's stack.

use crate::program_use::Registers;
use beeline_abi::code::ContextUse;
use beeline_abi::regs::PtRegs;
use iced_x86::IcedError;
use iced_x86::code_asm::{
    AsmMemoryOperand, AsmRegister64, CodeAssembler, al, dword_ptr, qword_ptr, r8, r9, r10, r11, r12, r13,
    r14, r15, rax, rbp, rbx, rcx, rdi, rdx, rsi, rsp,
};
use std::mem::offset_of;

/// Bytes below the stack pointer that a leaf function may use without moving it (System V AMD64 ABI, 3.2.2).
pub(crate) const RED_ZONE: i32 = 128;

/// Bytes of `pt_regs`.
const CONTEXT_LEN: i32 = size_of::<PtRegs>() as i32;
/// Bytes of the save area; with the return address above an entry, and without one behind a return, S is a multiple of 16.
const LEN: i32 = CONTEXT_LEN + 32;
const _: () = assert!((LEN + RED_ZONE + 8) % 16 == 0);
/// The same where programs run on the slot's own stack.
const LEN_SMALL: i32 = 56;
/// Bytes of `pt_regs` on the slot's own stack, whose top is a multiple of 16.
const FRAME_LEN: i32 = (CONTEXT_LEN + 15) & !15;

/// Registers that a callee may change and that are not saved first thing, with their place in `pt_regs`.
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

/// A word of the save area.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Kept {
    Rax,
    Rcx,
    Rdx,
    Rbx,
    /// All flags, where a program reads them.
    Flags,
    /// The status flags, where they are live: in the form of `lahf`, `seto`.
    Status,
    /// The thread's slot, while programs run.
    Slot,
}

/// The direction flag as it is in the flags at `flags`; the status flags are lost.
pub(crate) fn restore_direction(
    asm: &mut CodeAssembler,
    flags: impl Into<AsmMemoryOperand>,
) -> Result<(), IcedError> {
    const DIRECTION: i32 = 1 << 10;
    let mut up = asm.create_label();
    asm.test(dword_ptr(flags.into()), DIRECTION)?;
    asm.je(up)?;
    asm.std()?;
    asm.set_label(&mut up)?;
    asm.zero_bytes()
}

/// How a phase of a stub saves what it uses.
#[derive(Clone, Copy)]
pub(crate) struct SaveArea {
    /// Distance from S to the stack pointer of the probed code.
    pub(crate) distance: i32,
    /// The status flags are live.
    pub(crate) keep_status: bool,
    /// All flags are saved: a program reads `pt_regs::flags`, or calls helpers where the direction flag may be set.
    pub(crate) read_flags: bool,
    /// The slot's own stack is used.
    pub(crate) own_stack: bool,
    /// The thread's slot is used.
    pub(crate) slot: bool,
    /// What running the programs changes.
    pub(crate) changed: Registers,
    /// Registers of the probed code that nobody needs afterwards.
    pub(crate) free: Registers,
    /// Bytes of contexts that are no `pt_regs`: they lie behind it, or behind the save area that it is a part of. A multiple of 16.
    pub(crate) contexts: i32,
}

impl SaveArea {
    /// Bytes from S to what lies above the save area.
    pub(crate) fn len(own_stack: bool) -> i32 {
        if own_stack { LEN_SMALL } else { LEN }
    }

    /// Offset of a word from S.
    fn offset(&self, word: Kept) -> i32 {
        let (small, large) = match word {
            Kept::Rax => (0, offset_of!(PtRegs, ax)),
            Kept::Rcx => (8, offset_of!(PtRegs, cx)),
            Kept::Rdx => (16, offset_of!(PtRegs, dx)),
            Kept::Status => (24, size_of::<PtRegs>()),
            Kept::Flags => (32, offset_of!(PtRegs, flags)),
            Kept::Rbx => (40, offset_of!(PtRegs, bx)),
            Kept::Slot => (48, size_of::<PtRegs>() + 8),
        };
        if self.own_stack { small } else { large as i32 }
    }

    /// A word, from rsp = S.
    pub(crate) fn at(&self, word: Kept) -> AsmMemoryOperand {
        qword_ptr(rsp + self.offset(word))
    }

    /// Offset of those contexts from rsp while programs run.
    pub(crate) fn contexts_at(&self) -> i32 {
        if self.own_stack { FRAME_LEN } else { LEN }
    }

    /// A word, while programs run.
    pub(crate) fn running(&self, word: Kept) -> AsmMemoryOperand {
        self.running_at(self.offset(word))
    }

    /// The word so many bytes above S, while programs run.
    pub(crate) fn running_at(&self, offset: i32) -> AsmMemoryOperand {
        if self.own_stack { qword_ptr(rbx + offset) } else { qword_ptr(rsp + offset) }
    }

    /// Makes room and saves. 'lea' leaves the flags alone.
    pub(crate) fn enter(&self, asm: &mut CodeAssembler) -> Result<(), IcedError> {
        if self.read_flags {
            // Pushed to their place at once: a word less is stored than by a push and a pop.
            let flags = self.offset(Kept::Flags);
            asm.lea(rsp, qword_ptr(rsp - (self.distance - flags - 8)))?;
            asm.pushfq()?;
            asm.lea(rsp, qword_ptr(rsp - flags))?;
            if self.keep_status {
                // In the middle of a function the direction may be another than helpers expect.
                asm.cld()?;
            }
        } else {
            asm.lea(rsp, qword_ptr(rsp - self.distance))?;
        }
        asm.mov(self.at(Kept::Rax), rax)?;
        if self.keep_status {
            // popfq costs more than the rest of the stub: the six status flags by hand.
            asm.lahf()?;
            asm.seto(al)?;
            asm.mov(self.at(Kept::Status), rax)?;
        }
        for (register, word) in self.first() {
            asm.mov(self.at(word), register)?;
        }
        Ok(())
    }

    /// What is saved first thing besides rax: where the slot is used, what finding it takes.
    fn first(&self) -> impl Iterator<Item = (AsmRegister64, Kept)> {
        let both = [(rcx, Kept::Rcx), (rdx, Kept::Rdx)];
        both.into_iter().filter(|(register, _)| self.is_saved(*register))
    }

    /// [`enter`](SaveArea::enter) saves rcx, rdx.
    pub(crate) fn is_saved(&self, register: AsmRegister64) -> bool {
        (self.slot || self.changed.contains(register)) && !self.free.contains(register)
    }

    /// Programs change it, and it is needed afterwards.
    fn is_restored(&self, register: AsmRegister64) -> bool {
        self.changed.contains(register) && !self.free.contains(register)
    }

    /// Restores what [`enter`](SaveArea::enter) saved; the stack pointer stays at S.
    pub(crate) fn restore(&self, asm: &mut CodeAssembler) -> Result<(), IcedError> {
        if self.keep_status {
            if self.read_flags {
                restore_direction(asm, rsp + self.offset(Kept::Flags))?;
            }
            asm.mov(rax, self.at(Kept::Status))?;
            asm.add(al, 0x7f)?; // 1 overflows, 0 does not
            asm.sahf()?;
        }
        for (register, word) in self.first() {
            asm.mov(register, self.at(word))?;
        }
        asm.mov(rax, self.at(Kept::Rax))
    }

    /// Saves what programs change, and what they read of `used`: from rsp = S, rcx = slot, and rax = top of the slot's own stack
    /// where that is used. rsp is the address of `pt_regs` afterwards.
    pub(crate) fn enter_frame(&self, asm: &mut CodeAssembler, used: ContextUse) -> Result<(), IcedError> {
        if self.slot && self.changed.contains(rcx) {
            asm.mov(self.at(Kept::Slot), rcx)?;
        }
        if self.own_stack {
            asm.mov(self.at(Kept::Rbx), rbx)?;
            asm.mov(rbx, rsp)?;
            asm.lea(rsp, qword_ptr(rax - (FRAME_LEN + self.contexts)))?;
        }
        for (register, offset) in others() {
            if self.is_restored(register) || used.reads(offset as u32) {
                asm.mov(qword_ptr(rsp + offset), register)?;
            }
        }
        Ok(())
    }

    /// Fills the words of `pt_regs` that are `used` and not there yet; uses rax. `ip` puts the instruction pointer into rax.
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
        self.fill_saved(asm, used)?;
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
            asm.lea(rax, self.running_at(self.distance))?;
            asm.mov(qword_ptr(rsp + offset_of!(PtRegs, sp) as i32), rax)?;
        }
        if used.reads(offset_of!(PtRegs, ip) as u32) {
            ip(asm)?;
            asm.mov(qword_ptr(rsp + offset_of!(PtRegs, ip) as i32), rax)?;
        }
        Ok(())
    }

    /// The words that the save area holds.
    fn fill_saved(&self, asm: &mut CodeAssembler, used: ContextUse) -> Result<(), IcedError> {
        if !self.own_stack {
            let unsaved =
                [(rcx, Kept::Rcx, offset_of!(PtRegs, cx)), (rdx, Kept::Rdx, offset_of!(PtRegs, dx))];
            let unsaved = unsaved.into_iter().filter(|(register, ..)| !self.is_saved(*register));
            for (register, word, offset) in unsaved.chain([(rbx, Kept::Rbx, offset_of!(PtRegs, bx))]) {
                if used.reads(offset as u32) {
                    asm.mov(self.at(word), register)?;
                }
            }
            return Ok(());
        }
        let saved = [
            (Kept::Rbx, offset_of!(PtRegs, bx)),
            (Kept::Rax, offset_of!(PtRegs, ax)),
            (Kept::Rcx, offset_of!(PtRegs, cx)),
            (Kept::Rdx, offset_of!(PtRegs, dx)),
            (Kept::Flags, offset_of!(PtRegs, flags)),
        ];
        for (from, offset) in saved {
            if used.reads(offset as u32) {
                asm.mov(rax, self.running(from))?;
                asm.mov(qword_ptr(rsp + offset as i32), rax)?;
            }
        }
        Ok(())
    }

    /// Back to rsp = S; rcx = slot stays.
    pub(crate) fn leave_frame(&self, asm: &mut CodeAssembler) -> Result<(), IcedError> {
        for (register, offset) in others() {
            if self.is_restored(register) {
                asm.mov(register, qword_ptr(rsp + offset))?;
            }
        }
        if self.own_stack {
            asm.mov(rsp, rbx)?;
            asm.mov(rbx, self.at(Kept::Rbx))?;
        }
        Ok(())
    }
}
