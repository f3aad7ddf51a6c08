//! Return probes: a call that is paired with the function's own return.
//!
//! ```text
//! at the entry                         at the return point
//! sp ▶ │ return address │              │ return point   │   the function's `ret` took it
//!      │ arguments ...  │         sp ▶ │ arguments ...  │
//!
//! return stack:  push {return address, sp, site, return point; what sessions keep}   ...   pop, put the address back, `ret`
//! ```
//!
//! `call displaced` overwrites the return address with the return point, so that the processor's own return stack holds both: the
//! function's `ret` is predicted, and so is ours. On the stack only that one word differs.

use crate::cpu::Sequence;
use crate::frame::SaveArea;
use crate::phase::{Phase, RUN_FLAGS, Shared, changed, run_session_cookie, slot_field};
use crate::program_use::Registers;
use crate::site_code::{LinkCode, SiteCode};
use beeline_abi::regs::PtRegs;
use beeline_abi::thread::{ReturnSlot, ThreadSlot};
use iced_x86::IcedError;
use iced_x86::code_asm::{
    AsmMemoryOperand, CodeAssembler, CodeLabel, dword_ptr, eax, qword_ptr, rax, rcx, rdx, rsp,
};
use std::mem::offset_of;

/// Bytes of an entry.
const ENTRY: i32 = size_of::<ReturnSlot>() as i32;

/// A field of the entry that rdx points to.
fn entry_field(offset: usize) -> AsmMemoryOperand {
    qword_ptr(rdx + offset as i32)
}

/// A field of the entry below the one that rdx points to.
fn previous_field(offset: usize) -> AsmMemoryOperand {
    qword_ptr(rdx + (offset as i32 - ENTRY))
}

/// In an entry, what the session with this number keeps.
fn session_cookie(index: u32) -> usize {
    offset_of!(ReturnSlot, session_cookies) + 8 * index as usize
}

/// Pushes the return whose address stands `word` bytes above rsp. From rcx = slot with the guard set; uses rax, rdx.
///
/// When the top is not plainly free, jumps to `no_room`, which may come back to `room`. The trampoline field is
/// the return point: the caller places it right behind its call.
pub(crate) fn push(
    asm: &mut CodeAssembler,
    word: i32,
    site: &SiteCode<'_>,
    return_point: CodeLabel,
    room: &mut CodeLabel,
    no_room: CodeLabel,
) -> Result<(), IcedError> {
    asm.mov(rdx, slot_field(offset_of!(ThreadSlot, returns_top)))?;
    asm.cmp(rdx, slot_field(offset_of!(ThreadSlot, returns_end)))?;
    asm.je(no_room)?;
    asm.lea(rax, qword_ptr(rsp + word))?;
    asm.cmp(rdx, slot_field(offset_of!(ThreadSlot, returns_base)))?;
    asm.je(*room)?;
    // Outstanding calls lie further up the stack; anything else is stale or a tail call.
    asm.cmp(previous_field(offset_of!(ReturnSlot, sp)), rax)?;
    asm.jbe(no_room)?;
    asm.set_label(room)?;
    asm.mov(entry_field(offset_of!(ReturnSlot, sp)), rax)?;
    asm.mov(rax, qword_ptr(rax))?;
    asm.mov(entry_field(offset_of!(ReturnSlot, return_address)), rax)?;
    asm.mov(rax, site.site_runtime)?;
    asm.mov(entry_field(offset_of!(ReturnSlot, site)), rax)?;
    let mut has_sessions = false;
    for index in site.links.iter().filter(|link| link.is_return).filter_map(|link| link.session) {
        asm.mov(rax, qword_ptr(rcx + run_session_cookie(index)))?;
        asm.mov(entry_field(session_cookie(index)), rax)?;
        has_sessions = true;
    }
    if has_sessions {
        asm.mov(eax, dword_ptr(rcx + RUN_FLAGS))?;
        asm.mov(entry_field(offset_of!(ReturnSlot, session_flags)), rax)?;
    }
    asm.lea(rax, qword_ptr(return_point))?;
    asm.mov(entry_field(offset_of!(ReturnSlot, trampoline)), rax)?;
    asm.add(rdx, ENTRY)?;
    asm.mov(slot_field(offset_of!(ThreadSlot, returns_top)), rdx)
}

/// `return_room(slot, sp)`: goes to `room` with rax = the word's address and rdx = the top when there is room now; else falls through.
pub(crate) fn ask_for_room(
    asm: &mut CodeAssembler,
    phase: &Phase<'_>,
    room: CodeLabel,
) -> Result<(), IcedError> {
    let mut none = asm.create_label();
    asm.lea(rax, qword_ptr(rsp + phase.save.distance))?;
    asm.call(phase.gates.room)?;
    asm.test(rax, rax)?;
    asm.je(none)?;
    asm.mov(rdx, slot_field(offset_of!(ThreadSlot, returns_top)))?;
    asm.lea(rax, qword_ptr(rsp + phase.save.distance))?;
    asm.jmp(room)?;
    asm.set_label(&mut none)
}

/// The part that runs when the function returns.
pub(crate) struct ReturnHalf<'a> {
    /// Offset from S of the word with the return address: on top of the save area.
    word: i32,
    phase: Phase<'a>,
    links: Vec<&'a LinkCode>,
    /// The call was paired: an entry of the return stack has the return address. Else that is in its word, where it was all the time.
    paired: bool,
    /// The top entry is not the one.
    search: CodeLabel,
    /// The return address is back in its word and the entry is popped.
    resolved: CodeLabel,
    /// From rsp = S: restore and return.
    finish: CodeLabel,
}

impl<'a> ReturnHalf<'a> {
    pub(crate) fn new(
        asm: &mut CodeAssembler,
        shared: Shared<'a>,
        site: &'a SiteCode<'a>,
        at: u64,
    ) -> ReturnHalf<'a> {
        let links: Vec<&LinkCode> = site.links.iter().filter(|l| l.is_return).collect();
        let flags = offset_of!(PtRegs, flags) as u32;
        // After a return the flags are dead and nothing of the caller's lies below its stack pointer.
        let word = SaveArea::len(shared.environment.small_stacks);
        let save = SaveArea {
            distance: word + 8,
            keep_status: false,
            read_flags: links.iter().any(|l| l.needs.context.reads(flags)),
            own_stack: shared.environment.small_stacks,
            slot: true,
            changed: changed(&links),
            free: Registers::NONE,
            contexts: 0,
        };
        ReturnHalf {
            word,
            phase: Phase::new(asm, shared, at, save),
            links,
            paired: true,
            search: asm.create_label(),
            resolved: asm.create_label(),
            finish: asm.create_label(),
        }
    }

    /// The part at a function's own `ret`, which it does as well.
    pub(crate) fn at_ret(
        asm: &mut CodeAssembler,
        shared: Shared<'a>,
        site: &'a SiteCode<'a>,
        at: u64,
    ) -> ReturnHalf<'a> {
        ReturnHalf { paired: false, ..ReturnHalf::new(asm, shared, site, at) }
    }

    /// The restartable sequences in it.
    pub(crate) fn into_sequences(self) -> Vec<Sequence> {
        self.phase.sequences
    }

    pub(crate) fn hot(&mut self, asm: &mut CodeAssembler) -> Result<(), IcedError> {
        if !self.paired {
            // As behind the `ret`. The word is on top of the save area then: nobody else writes below the stack pointer so soon.
            asm.lea(rsp, qword_ptr(rsp + 8))?;
        }
        self.phase.save.enter(asm)?;
        self.phase.find_slot(asm)?;
        if self.paired {
            self.pop(asm)?;
            asm.set_label(&mut self.resolved)?;
        }
        let returned_to = self.phase.save.running_at(self.word);
        self.phase.call_programs(asm, &self.links, true, |asm| asm.mov(rax, returned_to))?;
        self.phase.clear_guard(asm)?;
        asm.set_label(&mut self.finish)?;
        self.phase.save.restore(asm)?;
        asm.lea(rsp, qword_ptr(rsp + self.word))?;
        asm.ret()
    }

    fn pop(&self, asm: &mut CodeAssembler) -> Result<(), IcedError> {
        asm.mov(rdx, slot_field(offset_of!(ThreadSlot, returns_top)))?;
        asm.cmp(rdx, slot_field(offset_of!(ThreadSlot, returns_base)))?;
        asm.je(self.search)?;
        asm.lea(rax, qword_ptr(rsp + self.word))?;
        asm.cmp(previous_field(offset_of!(ReturnSlot, sp)), rax)?;
        asm.jne(self.search)?;
        asm.mov(rax, previous_field(offset_of!(ReturnSlot, return_address)))?;
        asm.mov(qword_ptr(rsp + self.word), rax)?;
        asm.sub(rdx, ENTRY)?;
        asm.mov(slot_field(offset_of!(ThreadSlot, returns_top)), rdx)?;
        self.load_sessions(asm)
    }

    /// The run gets what the sessions kept in the entry that rdx points to. Uses rax.
    fn load_sessions(&self, asm: &mut CodeAssembler) -> Result<(), IcedError> {
        let mut has_sessions = false;
        for index in self.links.iter().filter_map(|link| link.session) {
            asm.mov(rax, entry_field(session_cookie(index)))?;
            asm.mov(qword_ptr(rcx + run_session_cookie(index)), rax)?;
            has_sessions = true;
        }
        if has_sessions {
            asm.mov(eax, dword_ptr(rdx + offset_of!(ReturnSlot, session_flags) as i32))?;
            asm.mov(dword_ptr(rcx + RUN_FLAGS), eax)?;
        }
        Ok(())
    }

    pub(crate) fn cold(&mut self, asm: &mut CodeAssembler) -> Result<(), IcedError> {
        self.phase.cold(asm)?;
        if self.paired {
            self.cold_search(asm)?;
        }
        asm.set_label(&mut self.phase.no_slot)?;
        asm.nop()?;
        asm.set_label(&mut self.phase.missed)?;
        if self.paired {
            self.find(asm)?;
        } else {
            asm.nop()?;
        }
        asm.set_label(&mut self.phase.no_stack)?;
        self.phase.count_missed(asm, &self.links)?;
        asm.jmp(self.finish)
    }

    /// The top entry is not the one that returns.
    fn cold_search(&mut self, asm: &mut CodeAssembler) -> Result<(), IcedError> {
        asm.set_label(&mut self.search)?;
        self.find(asm)?;
        if self.links.iter().any(|link| link.session.is_some()) {
            asm.mov(rdx, rax)?; // the entry, which stays readable while the guard is set
            self.load_sessions(asm)?;
        }
        asm.jmp(self.resolved)
    }

    /// Puts the return address back into its word and pops its entry.
    fn find(&self, asm: &mut CodeAssembler) -> Result<(), IcedError> {
        asm.lea(rax, qword_ptr(rsp + self.word))?;
        asm.call(self.phase.gates.find)
    }
}
