//! Takes probes and agent out of a process.
//!
//! ```text
//! stop:   put the original bytes back where a jump of ours stands
//!         put return addresses back on the stacks
//!         is a thread in our code, or will one come back to it?  ─ yes ─▶ let it run for a moment, stop again
//!         unmap everything, the block last
//! ```
//!
//! From the first write on the block says that this is under way; whoever comes after a killed detach goes on with it.
//! A thread *will come back* when its guard word says that a program runs, or when a signal handler will return there.

use crate::dispatch::{Dispatching, is_returned_to};
use crate::error::TargetRefused;
use crate::existing::{Existing, Found, carries_probes, find, is_ours, leftovers};
use crate::gone::Standing;
use crate::guard::{Placed, Restorer, is_breakpoint};
use crate::report::DetachReport;
use crate::seccomp::Filters;
use crate::stack::Stack;
use crate::target::{self, remote};
use crate::tracer;
use crate::wire::{BlockHead, Wire, region_offset};
use crate::{semaphore, sequences};
use beeline_abi::process::{ProcessBlock, Region, SiteRuntime};
use beeline_abi::run::RunContext;
use beeline_abi::thread::{RETURN_SLOTS, ReturnSlot, THREAD_SLOTS, ThreadSlot};
use beeline_ptrace::{Registers, StopError, StopOptions, StoppedProcess};
use beeline_remote::{Borrowed, Mapping, Mappings, Process, RemoteError, SystemCall};
use std::mem::offset_of;
use std::time::{Duration, Instant};

/// `RSEQ_FLAG_UNREGISTER`.
const RSEQ_FLAG_UNREGISTER: u64 = 1;

/// How long threads get to come back that cannot be found.
const PATIENCE: Duration = Duration::from_millis(100);

/// How patiently a process is detached.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DetachOptions {
    /// How long threads get to leave our code. They do so within microseconds, unless they wait in it.
    pub timeout: Duration,
}

impl Default for DetachOptions {
    fn default() -> DetachOptions {
        DetachOptions { timeout: Duration::from_secs(5) }
    }
}

/// Takes all probes and the agent out of process `pid`; what an interrupted attach or detach has left, too.
///
/// # Errors
/// [`TargetRefused`]: [`TargetRefused::NotAttached`] when it carries nothing of ours.
pub fn detach(pid: i32, options: &DetachOptions) -> Result<DetachReport, TargetRefused> {
    tracer::run(|| {
        let process = target::open(pid)?;
        let maps = process.maps().map_err(|error| remote(pid, error))?;
        if let Found::Nothing = find(&process, &maps)? {
            return Err(TargetRefused::NotAttached { pid });
        }
        take_out(&process, options)
    })
}

/// Takes everything out before something else is done to the process.
pub(crate) fn clean(pid: i32) -> Result<(), TargetRefused> {
    let report = take_out(&target::open(pid)?, &DetachOptions::default())?;
    match report.left {
        None => Ok(()),
        Some(reason) => {
            Err(TargetRefused::ForeignAgent { pid, reason: format!("it cannot be taken out: {reason}") })
        }
    }
}

fn take_out(process: &Process, options: &DetachOptions) -> Result<DetachReport, TargetRefused> {
    let mut report = DetachReport {
        pid: process.pid(),
        restored: 0,
        foreign: Vec::new(),
        returns: 0,
        stopped: Duration::ZERO,
        rounds: 0,
        left: None,
    };
    let begin = Instant::now();
    let mut pause = Duration::from_micros(200);
    loop {
        let mut stopped = match StoppedProcess::stop(process.pid(), StopOptions::default()) {
            // It ended while its threads were leaving our code: then it is out.
            Err(StopError::Died { .. } | StopError::Zombie { .. } | StopError::NoSuchProcess { .. })
                if report.rounds > 0 =>
            {
                return Ok(report);
            }
            other => other?,
        };
        report.rounds += 1;
        let patient = begin.elapsed() < PATIENCE;
        let state = Round { process, stopped: &mut stopped, patient }.run(&mut report);
        report.stopped += stopped.release();
        match state? {
            State::Out => return Ok(report),
            State::Kept(reason) => {
                report.left = Some(reason);
                return Ok(report);
            }
            State::Busy(reason) if begin.elapsed() > options.timeout => {
                report.left = Some(reason);
                return Ok(report);
            }
            State::Busy(_) => std::thread::sleep(pause),
        }
        pause = (pause * 2).min(Duration::from_millis(20));
    }
}

/// How far a round has got.
enum State {
    /// Everything is out.
    Out,
    /// A thread is not out of our code yet.
    Busy(String),
    /// It has to stay.
    Kept(String),
}

/// One stop.
struct Round<'a> {
    process: &'a Process,
    stopped: &'a mut StoppedProcess,
    /// There is time to see whether threads come back by themselves that cannot be found.
    patient: bool,
}

impl<'a> Round<'a> {
    fn run(&mut self, report: &mut DetachReport) -> Result<State, TargetRefused> {
        let maps = self.maps()?;
        let objection = Filters::of(self.stopped)?.objection();
        let existing = match (find(self.process, &maps)?, &objection) {
            (Found::Nothing, _) => return Ok(State::Out),
            (Found::Remains, None) => return self.unmap(&maps, None),
            (Found::Remains, Some(reason)) => return Ok(State::Kept(reason.clone())),
            (Found::Agent(existing), _) => existing,
        };
        if let Some(owner) = existing.owner_beside(self.process) {
            let reason = format!("its memory is that of process {owner}: detach that");
            return Ok(State::Kept(reason));
        }
        self.mark(&existing)?;
        report.foreign.clear();
        self.restore_sites(&existing, &maps, report, is_breakpoint)?;
        if let Some(state) = self.leave_guard(&existing, &maps, objection.is_none())? {
            return Ok(state);
        }
        self.restore_sites(&existing, &maps, report, |site| !is_breakpoint(site))?;
        self.leave_calls(&existing)?;
        let slots = Slots::read(self.process, &existing)?;
        report.returns += self.restore_returns(&existing, &slots);
        if let Some((tid, why)) = self.occupied(&existing, &slots, &maps)? {
            return Ok(State::Busy(format!("thread {tid} {why}")));
        }
        self.restore_holes(&existing, &maps, report)?;
        if let Some(address) = report.foreign.first() {
            let reason = format!("somebody else has changed the code at {address:#x} on top of a probe");
            return Ok(State::Kept(reason));
        }
        if let Some(reason) = objection {
            // It runs as without probes; what is mapped for them stays until it ends.
            return Ok(State::Kept(reason));
        }
        if let Some(state) = self.leave_rseq(&existing, &slots, &maps)? {
            return Ok(state);
        }
        if let Some(dispatching) = existing.dispatching {
            if let Some(state) = self.leave_slots(&dispatching, &maps)? {
                return Ok(state);
            }
            dispatching.take_code(self.process).map_err(|error| self.failed(error))?;
        }
        self.unmap(&maps, Some(&existing))
    }

    /// Says in the block that detaching is under way.
    fn mark(&self, existing: &Existing) -> Result<(), TargetRefused> {
        let flags = existing.head.flags | ProcessBlock::FLAG_UNFINISHED;
        let head = BlockHead { flags, ..existing.head.clone() };
        self.process.memory().write(existing.block, &head.to_bytes()).map_err(|error| self.failed(error))
    }

    /// Takes the handler out that breakpoints depend on, when there are none any more and no thread is on the way from one; the guard still
    /// sees what the process wants. Afterwards no thread is in a call with an argument of the guard's.
    fn leave_guard(
        &mut self,
        existing: &Existing,
        maps: &Mappings,
        may_call: bool,
    ) -> Result<Option<State>, TargetRefused> {
        let Some(guard) = Placed::at(self.process, existing.guard()) else { return Ok(None) };
        if let Some(dispatching) = existing.dispatching {
            let gate = guard.call_gate().map_err(|error| self.failed(error))?;
            let ended = dispatching
                .serve_agent(self.process, gate, false)
                .and_then(|()| dispatching.end(self.process, self.stopped));
            if let Some(tid) = ended.map_err(|error| self.failed(error))? {
                return Ok(Some(State::Busy(format!("thread {tid} has a system call handed to it"))));
            }
        }
        if let Some(tid) = guard.in_flight(self.stopped) {
            return Ok(Some(State::Busy(format!("thread {tid} has met a breakpoint"))));
        }
        if guard.is_active() && may_call {
            let mut borrowed = match self.borrow_any(maps)? {
                Ok(borrowed) => borrowed,
                Err(busy) => return Ok(Some(busy)),
            };
            let result = guard.uninstall(&mut borrowed, u64::MAX);
            borrowed.end(self.stopped).map_err(|error| remote(self.process.pid(), error))?;
            result.map_err(|error| self.failed(error))?;
        }
        for thread in self.stopped.threads() {
            let registers = thread.known_registers().map_err(|error| self.failed(error.into()))?;
            if let Some(own) = guard.without_copies(&registers) {
                thread.set_registers(&own).map_err(|error| self.failed(error.into()))?;
            }
        }
        self.leave_handlers(&guard, maps)?;
        Ok(None)
    }

    /// No thread will come back to a slot. Which is in use says the slot; whoever left its call by a jump, or ended in it, counts for ever, and
    /// so it is searched for then.
    fn leave_slots(
        &self,
        dispatching: &Dispatching,
        maps: &Mappings,
    ) -> Result<Option<State>, TargetRefused> {
        if dispatching.is_unused(self.process).map_err(|error| self.failed(error))? {
            return Ok(None);
        }
        if self.patient {
            return Ok(Some(State::Busy(
                "a thread may come back to a system call of code made at run time".to_owned(),
            )));
        }
        let found = is_returned_to(self.process, maps, dispatching).map_err(|error| self.failed(error))?;
        let reason = match found {
            Some(false) => return Ok(None),
            Some(true) => {
                "a signal handler, on a stack that no thread is on, will return to a system call of code made at run time"
            }
            None => {
                "there is too much memory to be searched for who returns to a system call of code made at run time"
            }
        };
        Ok(Some(State::Kept(reason.to_owned())))
    }

    /// Handlers of the process in which the guard went on return by the process's own code.
    fn leave_handlers(&self, guard: &Placed<'_>, maps: &Mappings) -> Result<(), TargetRefused> {
        let restorers = guard.restorers().map_err(|error| self.failed(error))?;
        for thread in self.stopped.threads() {
            let registers = thread.known_registers().map_err(|error| self.failed(error.into()))?;
            for frame in Stack::of(self.process, maps, &registers).frames() {
                let is_it = |it: &&Restorer| it.signal == frame.signal && it.ours == frame.returns_to;
                // Where the process has none the frame is the guard's own: the thread is in our code, or has left it.
                if let Some(restorer) = restorers.iter().find(is_it).filter(|it| it.theirs != 0) {
                    let written = self.process.memory().write_u64(frame.address, restorer.theirs);
                    written.map_err(|error| self.failed(error))?;
                }
            }
        }
        Ok(())
    }

    /// Puts original bytes back where a jump of ours stands, at the sites that are meant.
    fn restore_sites(
        &self,
        existing: &Existing,
        maps: &Mappings,
        report: &mut DetachReport,
        meant: impl Fn(&SiteRuntime) -> bool,
    ) -> Result<(), TargetRefused> {
        let sites = existing.sites.iter().zip(&existing.links);
        for (site, links) in sites.filter(|(site, _)| site.link_count != 0 && meant(site)) {
            let len = site.len as usize;
            match existing.standing(self.process, maps, site) {
                Standing::InPlace => {
                    // Where our jump stands, the library with the semaphore is still mapped.
                    semaphore::leave(self.process, site.links, links, |_| true)
                        .map_err(|error| self.failed(error))?;
                    let write = self.process.memory().write(site.address, &site.original[..len]);
                    write.map_err(|error| self.failed(error))?;
                    report.restored += usize::from(carries_probes(links));
                }
                Standing::Changed => report.foreign.push(site.address),
                Standing::Gone => {}
            }
        }
        Ok(())
    }

    /// Threads in a copy of a system call, where they may wait for long, go on at the original one. If the kernel makes the call
    /// again it goes back from there.
    fn leave_calls(&self, existing: &Existing) -> Result<(), TargetRefused> {
        for thread in self.stopped.threads() {
            let registers = thread.known_registers().map_err(|error| self.failed(error.into()))?;
            if let Some(rip) = existing.original_call(self.process, registers.rip) {
                let back = Registers { rip, ..registers };
                thread.set_registers(&back).map_err(|error| self.failed(error.into()))?;
            }
        }
        Ok(())
    }

    /// Puts back what stood in the holes of short sites, when no thread is on its way through one any more.
    fn restore_holes(
        &self,
        existing: &Existing,
        maps: &Mappings,
        report: &mut DetachReport,
    ) -> Result<(), TargetRefused> {
        for hole in existing.holes() {
            let len = hole.len as usize;
            match existing.standing(self.process, maps, hole) {
                Standing::InPlace => {
                    let write = self.process.memory().write(hole.address, &hole.original[..len]);
                    write.map_err(|error| self.failed(error))?;
                }
                Standing::Changed => report.foreign.push(hole.address),
                Standing::Gone => {}
            }
        }
        Ok(())
    }

    /// Puts return addresses back on the stacks; tells how many.
    fn restore_returns(&self, existing: &Existing, slots: &Slots) -> usize {
        let memory = self.process.memory();
        let mut count = 0;
        for slot in &slots.0 {
            // The newest entry first: an older one of the same stack word is stale, and does not match any more then.
            for entry in slot.returns(self.process).iter().rev() {
                let stands = memory.read_u64(entry.sp).is_ok_and(|word| word == entry.trampoline);
                if stands && existing.owns(entry.trampoline) {
                    count += usize::from(memory.write_u64(entry.sp, entry.return_address).is_ok());
                }
            }
        }
        count
    }

    /// A thread that still needs our code, and why; none when nobody does.
    fn occupied(
        &self,
        existing: &Existing,
        slots: &Slots,
        maps: &Mappings,
    ) -> Result<Option<(i32, &'static str)>, TargetRefused> {
        let mut registers = Vec::with_capacity(self.stopped.threads().len());
        for thread in self.stopped.threads() {
            let its = thread.known_registers().map_err(|error| self.failed(error.into()))?;
            if existing.owns(its.rip) {
                return Ok(Some((thread.tid(), "is in a probe")));
            }
            if existing.owns(its.rsp) {
                return Ok(Some((thread.tid(), "is on the stack of a probe")));
            }
            registers.push((thread.tid(), its));
        }
        let places: Vec<_> = registers.iter().map(|(_, its)| Stack::place(maps, its)).collect();
        let mut occupied = None;
        self.process.memory().visit(&places, |index, bytes| {
            let (tid, its) = &registers[index];
            let stack = Stack::new(places[index].0, bytes.unwrap_or_default());
            let mut handler = false;
            let mut returns = stack.handler_returns().inspect(|_| handler = true);
            if returns.any(|(pc, sp)| existing.owns(pc) || existing.owns(sp)) {
                occupied.get_or_insert((*tid, "will return from a signal handler into a probe"));
            }
            if slots.runs_program(its, maps.at(its.rsp), handler) {
                occupied.get_or_insert((*tid, "runs a program"));
            }
        });
        Ok(occupied)
    }

    /// No thread's `struct rseq` lies in our memory or refers to it.
    fn leave_rseq(
        &mut self,
        existing: &Existing,
        slots: &Slots,
        maps: &Mappings,
    ) -> Result<Option<State>, TargetRefused> {
        sequences::forget(self.process, self.stopped, slots, |word| existing.owns(word))
            .map_err(|error| self.failed(error))?;
        let mut ours = Vec::new();
        for thread in self.stopped.threads() {
            let rseq = thread.rseq().map_err(|error| self.failed(error.into()))?;
            ours.extend(rseq.filter(|rseq| existing.owns(rseq.address)).map(|rseq| (thread.tid(), rseq)));
        }
        for (tid, rseq) in ours {
            let Some(index) = self.stopped.threads().iter().position(|thread| thread.tid() == tid) else {
                continue;
            };
            let arguments =
                [rseq.address, rseq.size.into(), RSEQ_FLAG_UNREGISTER, rseq.signature.into(), 0, 0];
            let mut borrowed = match self.borrow(maps, index)? {
                Ok(borrowed) => borrowed,
                Err(busy) => return Ok(Some(busy)),
            };
            let result = borrowed.system_call("rseq (unregister)", libc::SYS_rseq, arguments);
            borrowed.end(self.stopped).map_err(|error| remote(self.process.pid(), error))?;
            result.map_err(|error| self.failed(error))?;
        }
        Ok(None)
    }

    /// Unmaps all that is ours.
    fn unmap(&mut self, maps: &Mappings, existing: Option<&Existing>) -> Result<State, TargetRefused> {
        let mut borrowed = match self.borrow_any(maps)? {
            Ok(borrowed) => borrowed,
            Err(busy) => return Ok(busy),
        };
        let result = unmap_all(&mut borrowed, maps, existing);
        borrowed.end(self.stopped).map_err(|error| remote(self.process.pid(), error))?;
        result.map_err(|error| self.failed(error))?;
        Ok(State::Out)
    }

    /// Borrows a thread, whichever can be.
    fn borrow_any(&mut self, maps: &Mappings) -> Result<Result<Borrowed<'a>, State>, TargetRefused> {
        let index = target::borrowable(self.process, self.stopped);
        self.borrow(maps, index.unwrap_or(0))
    }

    /// Borrows a thread; [`State::Busy`] when it has to go on for a moment before, or one that works for a borrower that was killed.
    fn borrow(
        &mut self,
        maps: &Mappings,
        index: usize,
    ) -> Result<Result<Borrowed<'a>, State>, TargetRefused> {
        match Borrowed::begin(self.process, maps, self.stopped, index) {
            Ok(borrowed) => Ok(Ok(borrowed)),
            Err(error @ (RemoteError::Busy { .. } | RemoteError::NotNow { .. })) => {
                Ok(Err(State::Busy(error.to_string())))
            }
            Err(error) => Err(remote(self.process.pid(), error)),
        }
    }

    fn maps(&self) -> Result<Mappings, TargetRefused> {
        self.process.maps().map_err(|error| self.failed(error))
    }

    fn failed(&self, error: RemoteError) -> TargetRefused {
        remote(self.process.pid(), error)
    }
}

/// Unmaps every region that can be told for ours, the one with the block last, then what has our name.
fn unmap_all(
    borrowed: &mut Borrowed<'_>,
    maps: &Mappings,
    existing: Option<&Existing>,
) -> Result<(), RemoteError> {
    let process = borrowed.process();
    if let Some(existing) = existing {
        let holds_block = |region: &Region| existing.block.wrapping_sub(region.start) < region.len;
        let mut calls = Vec::new();
        for (index, region) in existing.regions.iter().enumerate().filter(|(_, region)| !holds_block(region))
        {
            let Some(mapping) = maps.at(region.start) else { continue };
            if !is_ours(mapping) {
                if !is_chunk(mapping, region) {
                    continue;
                }
                // Memory of the agent's own has no name. If we are killed here it stays; what is mapped in its place
                // later must not be taken for it.
                let entry = existing.block + region_offset(index);
                process.memory().write(entry, &Region::default().to_bytes())?;
            }
            calls.push(SystemCall::unmap(region.start, region.len));
        }
        let home = existing.regions.iter().find(|region| holds_block(region));
        calls.extend(home.map(|home| SystemCall::unmap(home.start, home.len)));
        borrowed.make_all(&calls)?;
    }
    let rest = process.maps()?;
    let memory = process.memory();
    let left = leftovers(&rest, |address| memory.read_u64(address).ok());
    let calls: Vec<SystemCall> =
        left.iter().map(|range| SystemCall::unmap(range.start, range.end - range.start)).collect();
    borrowed.make_all(&calls)
}

/// The mapping can be memory that the agent took for its threads: neighbours of the same kind are merged with it.
fn is_chunk(mapping: &Mapping, region: &Region) -> bool {
    mapping.name.is_empty()
        && mapping.write
        && !mapping.execute
        && !mapping.shared
        && region.start.is_multiple_of(region.len.max(1))
        && region.start + region.len <= mapping.end
}

/// A thread's slot, as far as it matters here.
#[derive(Debug)]
struct Slot {
    key: u64,
    guard: u64,
    /// Address of the link whose program runs, or ran last.
    link: u64,
    returns_base: u64,
    returns_top: u64,
    /// Address of the `struct rseq` by which stubs claim CPUs, 0 = none.
    rseq: u64,
}

impl Slot {
    fn read(bytes: &[u8]) -> Slot {
        let word = |offset: usize| u64::get(&bytes[offset..]);
        Slot {
            key: word(offset_of!(ThreadSlot, key)),
            guard: word(offset_of!(ThreadSlot, guard)),
            link: word(offset_of!(ThreadSlot, run) + offset_of!(RunContext, link)),
            returns_base: word(offset_of!(ThreadSlot, returns_base)),
            returns_top: word(offset_of!(ThreadSlot, returns_top)),
            rseq: word(offset_of!(ThreadSlot, claim_rseq)),
        }
    }

    /// Its outstanding returns.
    fn returns(&self, process: &Process) -> Vec<ReturnSlot> {
        let len = self.returns_top.wrapping_sub(self.returns_base) / ReturnSlot::LEN as u64;
        if self.returns_base == 0 || len > RETURN_SLOTS + 1 {
            return Vec::new();
        }
        let bytes = process.memory().read_vec(self.returns_base, len as usize * ReturnSlot::LEN);
        bytes.unwrap_or_default().chunks_exact(ReturnSlot::LEN).map(ReturnSlot::get).collect()
    }
}

/// The slots that were ever used.
#[derive(Debug)]
pub(crate) struct Slots(Vec<Slot>);

impl Slots {
    pub(crate) fn read(process: &Process, existing: &Existing) -> Result<Slots, TargetRefused> {
        const LEN: u64 = size_of::<ThreadSlot>() as u64;
        let start = existing.head.threads;
        let all = start..start.wrapping_add(THREAD_SLOTS * LEN);
        // Most of them were never used, and their memory is not there; reading it would make it.
        let written = process.written(all.clone()).unwrap_or_else(|_| vec![all.clone()]);
        let mut slots = Vec::new();
        let mut next = 0;
        for pages in written {
            let first = (pages.start.saturating_sub(start) / LEN).max(next);
            next = (pages.end.saturating_sub(start).div_ceil(LEN)).min(THREAD_SLOTS).max(first);
            let bytes = process
                .memory()
                .read_vec(start + first * LEN, ((next - first) * LEN) as usize)
                .map_err(|error| remote(process.pid(), error))?;
            slots.extend(bytes.chunks_exact(LEN as usize).map(Slot::read).filter(|slot| slot.key != 0));
        }
        Ok(Slots(slots))
    }

    /// The outstanding returns of all threads.
    pub(crate) fn returns(&self, process: &Process) -> impl Iterator<Item = ReturnSlot> {
        self.0.iter().flat_map(|slot| slot.returns(process))
    }

    /// Where stubs have set restartable sequences.
    pub(crate) fn rseq_areas(&self) -> impl Iterator<Item = u64> {
        self.0.iter().map(|slot| slot.rseq).filter(|&area| area != 0)
    }

    /// The link whose program the thread runs, as far as its guard word tells.
    pub(crate) fn link_that_runs(&self, registers: &Registers) -> Option<u64> {
        let slot = self.0.iter().find(|slot| slot.key & !3 == registers.fs_base)?;
        (slot.guard != 0).then_some(slot.link)
    }

    /// The thread is below the frame of a program that has not ended. A guard word below the stack pointer, on the same
    /// stack, was left by a run that was abandoned; in a signal handler nobody knows which stacks lie side by side.
    fn runs_program(&self, registers: &Registers, stack: Option<&Mapping>, handler: bool) -> bool {
        let Some(slot) = self.0.iter().find(|slot| slot.key & !3 == registers.fs_base) else { return false };
        let same_stack = stack.is_some_and(|stack| stack.holds(slot.guard));
        slot.guard != 0 && (handler || !(same_stack && registers.rsp > slot.guard))
    }
}

/// The number of slots in use.
pub(crate) fn threads_seen(process: &Process, existing: &Existing) -> usize {
    Slots::read(process, existing).map_or(0, |slots| slots.0.len())
}
