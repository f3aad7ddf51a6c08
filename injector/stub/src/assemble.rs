//! The stub of a site, put together.
//!
//! ```text
//! entry:         save; find slot; guard; programs
//!                push the return (if there are return links); clear the guard; restore
//!                call displaced                     ◀ pairs with the function's own return
//! return point:  save; find slot; guard; pop the return; programs; clear the guard; restore; ret
//! plain:         restore
//! displaced:     the instructions from the site; jmp behind the window
//! leave:         (at a `ret`) the instructions before it; save; find slot; guard; programs; clear the guard; restore; ret
//! skipped:       (bpf_override_return) push the return if there are return links; restore; ret or on at the return point
//! cold:          claims, nested hits, misses, stale returns
//! ```
//!
//! Programs that need no slot have a stub without cold code: save; programs; restore; displaced.
//!
//! Why the return stack is only touched while the guard word is set: a signal handler that interrupts a push or a pop finds the guard
//! set, misses its own hits, and so leaves the stack alone.

use crate::cpu::Sequence;
use crate::displaced::{Moved, displace, displace_before, reaches};
use crate::frame::{Kept, RED_ZONE, SaveArea};
use crate::phase::{
    Phase, RUN_FLAGS, RUN_OVERRIDE_VALUE, Shared, changed, need_slot, session_skip, test_enabled_word,
};
use crate::program_use::Registers;
use crate::returns::{self, ReturnHalf};
use crate::site_code::{LinkCode, PcMapping, SiteCode, Stub, StubError};
use beeline_abi::regs::PtRegs;
use beeline_abi::run::RunContext;
use beeline_abi::thread::SESSIONS;
use beeline_site::SitePlan;
use iced_x86::code_asm::{CodeAssembler, CodeLabel, dword_ptr, eax, qword_ptr, rax, rcx, rsp};
use iced_x86::{BlockEncoderOptions, IcedError};
use std::mem::offset_of;

/// Makes the code of `site` for address `at`.
///
/// # Errors
/// [`StubError`] when a displaced instruction or the site is out of reach of `at`, or the links do not fit the site.
pub(crate) fn build_stub(shared: Shared<'_>, site: &SiteCode<'_>, at: u64) -> Result<Stub, StubError> {
    check(site, at)?;
    let mut asm = CodeAssembler::new(64).map_err(|e| assembler(at, &e))?;
    let marks = emit(&mut asm, shared, site, at)?;
    finish(&mut asm, &marks, at)
}

/// Makes the code of a window that only moves out, for address `at`: its displaced instructions alone.
///
/// # Errors
/// [`StubError`] when one of them is out of reach of `at`.
pub(crate) fn build_copy(plan: &SitePlan, address: u64, at: u64) -> Result<Stub, StubError> {
    if !reaches(at, address) {
        return Err(StubError::OutOfRange { at, target: address });
    }
    let mut asm = CodeAssembler::new(64).map_err(|e| assembler(at, &e))?;
    let displaced = displace(&mut asm, plan, address, at)?;
    // What assembles to nothing has no offset: this has one, and never runs.
    let cold = asm.instructions().len();
    asm.int3().map_err(|e| assembler(at, &e))?;
    finish(&mut asm, &Marks { return_point: None, displaced, cold, sequences: Vec::new() }, at)
}

/// Assembles code without programs of its own: `displaced` instructions, then what rarely runs. Gives the offsets of the `marked`
/// instructions as well.
pub(crate) fn finish_copy(
    asm: &mut CodeAssembler,
    mut displaced: Vec<Moved>,
    cold: usize,
    marked: Vec<usize>,
    at: u64,
) -> Result<(Stub, Vec<u32>), StubError> {
    let known = displaced.len();
    displaced.extend(marked.into_iter().map(|index| Moved { original: 0, index }));
    let mut stub = finish(asm, &Marks { return_point: None, displaced, cold, sequences: Vec::new() }, at)?;
    let marked = stub.displaced.split_off(known).into_iter().map(|mapping| mapping.stub_offset).collect();
    Ok((stub, marked))
}

pub(crate) fn finish(asm: &mut CodeAssembler, marks: &Marks, at: u64) -> Result<Stub, StubError> {
    let result = asm
        .assemble_options(at, BlockEncoderOptions::RETURN_NEW_INSTRUCTION_OFFSETS)
        .map_err(|e| assembler(at, &e))?
        .inner;
    let offset = |index: usize| -> Result<u32, StubError> {
        let found = result.new_instruction_offsets.get(index).copied().filter(|&o| o != u32::MAX);
        found.ok_or_else(|| StubError::Assembler { at, reason: "an instruction has no offset".to_owned() })
    };
    let displaced = marks.displaced.iter();
    let displaced = displaced.map(|m| Ok(PcMapping { original: m.original, stub_offset: offset(m.index)? }));
    let cold = offset(marks.cold)?;
    let mut bytes = result.code_buffer;
    let code_len = bytes.len() as u32;
    for sequence in &marks.sequences {
        sequence.describe(&mut bytes, at, offset)?;
    }
    Ok(Stub {
        address: at,
        entry: 0,
        return_point: marks.return_point.map(offset).transpose()?,
        displaced: displaced.collect::<Result<_, StubError>>()?,
        cold: cold..code_len,
        bytes,
    })
}

/// Assembles code for `at`; the offsets of some of its instructions.
pub(crate) fn assembled(
    asm: &mut CodeAssembler,
    marked: &[usize],
    at: u64,
) -> Result<(Vec<u8>, Vec<u32>), StubError> {
    let marked = marked.iter().map(|&index| Moved { original: 0, index }).collect();
    let marks = Marks { return_point: None, displaced: marked, cold: 0, sequences: Vec::new() };
    let stub = finish(asm, &marks, at)?;
    Ok((stub.bytes, stub.displaced.into_iter().map(|mapping| mapping.stub_offset).collect()))
}

/// Indices of instructions whose offsets are asked for afterwards.
pub(crate) struct Marks {
    pub(crate) return_point: Option<usize>,
    pub(crate) displaced: Vec<Moved>,
    pub(crate) cold: usize,
    pub(crate) sequences: Vec<Sequence>,
}

fn check(site: &SiteCode<'_>, at: u64) -> Result<(), StubError> {
    if site.links.is_empty() {
        return Err(StubError::NoLinks { at: site.address });
    }
    if !reaches(at, site.address) {
        return Err(StubError::OutOfRange { at, target: site.address });
    }
    let leaves = site.plan.leave.is_some();
    if site.links.iter().any(|l| l.is_return) && !site.plan.is_entry && !leaves {
        return Err(StubError::ReturnNotAtEntry { at: site.address });
    }
    if leaves && site.links.iter().any(|l| !l.is_return || l.session.is_some()) {
        return Err(StubError::OnlyReturns { at: site.address });
    }
    if site.links.iter().filter_map(|l| l.session).any(|index| index as usize >= SESSIONS) {
        return Err(StubError::TooManySessions { at: site.address });
    }
    if site.links.iter().any(|l| l.overrides) && !site.plan.is_entry {
        return Err(StubError::OverrideNotAtEntry { at: site.address });
    }
    Ok(())
}

fn assembler(at: u64, error: &IcedError) -> StubError {
    StubError::Assembler { at, reason: error.to_string() }
}

fn emit(
    asm: &mut CodeAssembler,
    shared: Shared<'_>,
    site: &SiteCode<'_>,
    at: u64,
) -> Result<Marks, StubError> {
    if let Some(leave) = site.plan.leave {
        return emit_leave(asm, shared, site, leave.at, at);
    }
    let wrap = |e: IcedError| assembler(at, &e);
    let mut half = EntryHalf::new(asm, shared, site, at);
    half.hot(asm).map_err(wrap)?;
    let mut return_half = None;
    let mut return_point = None;
    if half.pushes_returns() {
        asm.call(half.displaced).map_err(wrap)?;
        return_point = Some(asm.instructions().len());
        asm.set_label(&mut half.return_point).map_err(wrap)?;
        let returns = return_half.insert(ReturnHalf::new(asm, shared, site, at));
        returns.hot(asm).map_err(wrap)?;
    }
    half.plain_exit(asm).map_err(wrap)?;
    asm.set_label(&mut half.displaced).map_err(wrap)?;
    let displaced = displace(asm, site.plan, site.address, at)?;
    let cold = asm.instructions().len();
    half.cold(asm).map_err(wrap)?;
    let mut sequences = half.phase.sequences;
    if let Some(mut half) = return_half {
        half.cold(asm).map_err(wrap)?;
        sequences.extend(half.into_sequences());
    }
    Ok(Marks { return_point, displaced, cold, sequences })
}

/// At a `ret`: what stands before it, then the part that runs at a return.
fn emit_leave(
    asm: &mut CodeAssembler,
    shared: Shared<'_>,
    site: &SiteCode<'_>,
    ret: u8,
    at: u64,
) -> Result<Marks, StubError> {
    let wrap = |e: IcedError| assembler(at, &e);
    let displaced = displace_before(asm, site.plan, ret, site.address, at)?;
    let mut half = ReturnHalf::at_ret(asm, shared, site, at);
    half.hot(asm).map_err(wrap)?;
    let cold = asm.instructions().len();
    half.cold(asm).map_err(wrap)?;
    Ok(Marks { return_point: None, displaced, cold, sequences: half.into_sequences() })
}

/// The part that runs when the site is reached.
struct EntryHalf<'a> {
    phase: Phase<'a>,
    site: &'a SiteCode<'a>,
    all: Vec<&'a LinkCode>,
    entries: Vec<&'a LinkCode>,
    returns: Vec<&'a LinkCode>,
    /// From rsp = S: restore and run the displaced instructions.
    plain: CodeLabel,
    displaced: CodeLabel,
    /// The return stack has no room or stale entries.
    no_room: CodeLabel,
    /// There is room at the top.
    room: CodeLabel,
    /// Every return link is off.
    returns_off: CodeLabel,
    return_point: CodeLabel,
    /// A program wants the function skipped: from rsp = S, rcx = slot.
    skipped: CodeLabel,
}

impl<'a> EntryHalf<'a> {
    fn new(asm: &mut CodeAssembler, shared: Shared<'a>, site: &'a SiteCode<'a>, at: u64) -> EntryHalf<'a> {
        let (returns, entries): (Vec<&LinkCode>, Vec<&LinkCode>) =
            site.links.iter().partition(|l| l.is_return);
        // Nothing of the caller's lies below the stack pointer at an entry, and a small stack has no room to waste.
        let red_zone = if shared.environment.small_stacks && site.plan.is_entry { 0 } else { RED_ZONE };
        let flags = offset_of!(PtRegs, flags) as u32;
        let save = SaveArea {
            distance: red_zone + SaveArea::len(shared.environment.small_stacks),
            keep_status: !site.plan.is_entry,
            read_flags: entries
                .iter()
                .any(|l| l.needs.context.reads(flags) || !site.plan.is_entry && l.uses.calls),
            own_stack: shared.environment.small_stacks,
            slot: shared.environment.small_stacks || need_slot(site.links),
            changed: changed(&entries),
            free: Registers::NONE,
            contexts: 0,
        };
        EntryHalf {
            phase: Phase::new(asm, shared, at, save),
            site,
            all: site.links.iter().collect(),
            entries,
            returns,
            plain: asm.create_label(),
            displaced: asm.create_label(),
            no_room: asm.create_label(),
            room: asm.create_label(),
            returns_off: asm.create_label(),
            return_point: asm.create_label(),
            skipped: asm.create_label(),
        }
    }

    fn pushes_returns(&self) -> bool {
        !self.returns.is_empty()
    }

    fn overrides(&self) -> bool {
        self.entries.iter().any(|link| link.overrides)
    }

    /// Back to the caller with the program's value, as if the function had returned it. Return probes see that.
    fn skip(&mut self, asm: &mut CodeAssembler) -> Result<(), IcedError> {
        let word = self.phase.save.distance;
        asm.set_label(&mut self.skipped)?;
        asm.mov(rax, qword_ptr(rcx + RUN_OVERRIDE_VALUE))?;
        asm.mov(self.phase.save.at(Kept::Rax), rax)?;
        if self.pushes_returns() {
            let (mut room, mut no_room, mut off) =
                (asm.create_label(), asm.create_label(), asm.create_label());
            if self.all.len() > 1 {
                self.test_returns(asm, off)?;
            }
            returns::push(asm, word, self.site, self.return_point, &mut room, no_room)?;
            self.phase.clear_guard(asm)?;
            self.phase.save.restore(asm)?;
            asm.lea(rsp, qword_ptr(rsp + (word + 8)))?;
            asm.jmp(self.return_point)?;
            asm.set_label(&mut no_room)?;
            returns::ask_for_room(asm, &self.phase, room)?;
            self.phase.count_missed(asm, &self.returns)?;
            asm.set_label(&mut off)?;
        }
        self.phase.clear_guard(asm)?;
        self.phase.save.restore(asm)?;
        asm.lea(rsp, qword_ptr(rsp + word))?;
        asm.ret()
    }

    fn hot(&mut self, asm: &mut CodeAssembler) -> Result<(), IcedError> {
        self.phase.save.enter(asm)?;
        let alone = self.all.len() == 1;
        if alone {
            test_enabled_word(asm, self.phase.at, self.all[0])?;
            asm.je(self.plain)?;
        }
        if self.phase.save.slot {
            self.phase.find_slot(asm)?;
        }
        let address = self.site.address;
        self.phase.call_programs(asm, &self.entries, !alone, |asm| asm.mov(rax, address))?;
        if self.overrides() {
            asm.test(dword_ptr(rcx + RUN_FLAGS), RunContext::OVERRIDE)?;
            asm.jne(self.skipped)?;
        }
        if !self.pushes_returns() {
            return if self.phase.save.slot { self.phase.clear_guard(asm) } else { Ok(()) };
        }
        if !alone {
            self.test_returns(asm, self.returns_off)?;
        }
        self.test_sessions(asm)?;
        let word = self.phase.save.distance;
        returns::push(asm, word, self.site, self.return_point, &mut self.room, self.no_room)?;
        self.phase.clear_guard(asm)?;
        self.phase.save.restore(asm)?;
        // The call puts the return point where the return address stands now.
        asm.lea(rsp, qword_ptr(rsp + (word + 8)))
    }

    /// Goes on when a return link is on, else to `off`.
    fn test_returns(&self, asm: &mut CodeAssembler, off: CodeLabel) -> Result<(), IcedError> {
        let mut on = asm.create_label();
        for (i, link) in self.returns.iter().enumerate() {
            test_enabled_word(asm, self.phase.at, link)?;
            if i + 1 == self.returns.len() {
                asm.je(off)?;
            } else {
                asm.jne(on)?;
            }
        }
        asm.set_label(&mut on)
    }

    /// Goes to `returns_off` when nothing runs at the return: there are sessions only, and no program returned 0. Uses rax.
    fn test_sessions(&self, asm: &mut CodeAssembler) -> Result<(), IcedError> {
        let mask = self.returns.iter().try_fold(0, |all, link| Some(all | session_skip(link.session?)));
        let Some(mask) = mask else { return Ok(()) };
        asm.mov(eax, dword_ptr(rcx + RUN_FLAGS))?;
        asm.not(eax)?;
        asm.test(eax, mask)?;
        asm.je(self.returns_off)
    }

    fn plain_exit(&mut self, asm: &mut CodeAssembler) -> Result<(), IcedError> {
        asm.set_label(&mut self.plain)?;
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
        // A session is one link, and misses once.
        let links: Vec<&LinkCode> =
            self.all.iter().copied().filter(|link| link.session.is_none() || !link.is_return).collect();
        self.phase.count_missed(asm, &links)?;
        asm.jmp(self.plain)?;
        if self.overrides() {
            self.skip(asm)?;
        }
        if !self.pushes_returns() {
            return Ok(());
        }
        asm.set_label(&mut self.no_room)?;
        returns::ask_for_room(asm, &self.phase, self.room)?;
        self.phase.count_missed(asm, &self.returns)?;
        asm.set_label(&mut self.returns_off)?;
        self.phase.clear_guard(asm)?;
        asm.jmp(self.plain)
    }
}
