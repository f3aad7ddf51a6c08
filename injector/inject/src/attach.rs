//! Puts probes into a process.
//!
//! ```text
//! prepare    plan sites, choose addresses, link programs, make stubs          the process runs
//! apply      check that all of it still holds                                 stopped
//!            map everything, beeline_init                                     by a borrowed thread
//!            move threads out of windows, write the jumps
//! ```
//!
//! Until the first jump is written nothing of ours can run. A jump is written as a whole, its stub is complete before,
//! and the block names what stood there before that.

mod in_force;

use crate::agent::AgentImage;
use crate::bell::FollowerBell;
use crate::detach;
use crate::dispatch::{self, LetThrough};
use crate::early;
use crate::error::TargetRefused;
use crate::existing::{Existing, Found, find, is_ours};
use crate::files::MappedFiles;
use crate::generation::{Area, Generation, agent_base};
use crate::guard::{self, GuardImage};
use crate::image::{AGENT_IMAGE, GUARD_IMAGE};
use crate::ingredients::Ingredients;
use crate::obstacles;
use crate::report::AttachReport;
use crate::request::{BreakpointUse, Request};
use crate::seccomp::Filters;
use crate::sites::{Breakpoints, PlannedSites};
use crate::sweep::sweep;
use crate::target::{self, Facts, Surroundings, remote};
use crate::tracer;
use crate::wire::{BlockHead, HEAD_LEN, Wire, region_offset};
use beeline_abi::calls::CallGate;
use beeline_abi::dispatch::SIGSYS;
use beeline_abi::guard::{SIGTRAP, bit};
use beeline_abi::process::{ProcessBlock, Region};
use beeline_ptrace::{StopOptions, StoppedProcess};
use beeline_remote::{Borrowed, Mappings, Process, RemoteError, SystemCall, thread_pointer};
use beeline_site::Binary;
use beeline_stub::ThreadKey;
use std::mem::offset_of;
use std::os::fd::BorrowedFd;
use std::time::Duration;

/// How often an attempt is made again because the process changed under it.
const ATTEMPTS_MAX: usize = 200;
/// How long the process gets before the next attempt.
const PAUSE: Duration = Duration::from_millis(1);
/// How often it is tried again where only a thread was in the way, with twice the pause each time: a quarter of a second in all.
const YIELDS_MAX: u32 = 7;

/// Puts the request's probes into process `pid`.
///
/// Attaching again adds what is new and leaves what is in force alone. A process in which an earlier attach or detach
/// was interrupted is cleaned first.
///
/// # Errors
/// [`TargetRefused`]; the process is then as it was before.
pub fn attach(pid: i32, request: &Request) -> Result<AttachReport, TargetRefused> {
    attach_with(pid, request, None)
}

/// The same for a process that is going to be followed.
pub(crate) fn attach_with(
    pid: i32,
    request: &Request,
    bell: Option<&FollowerBell>,
) -> Result<AttachReport, TargetRefused> {
    tracer::run(|| {
        let mut key = None;
        let mut yields = 0;
        for _ in 0..ATTEMPTS_MAX {
            let process = clean(pid)?;
            let prepared = Prepared::new(&process, request, key)?.followed_by(bell);
            let prepared = prepared.yielding(yields < YIELDS_MAX);
            let mut planned = prepared.plan()?;
            if prepared.is_empty(&planned) {
                return Ok(prepared.report(&planned, 0, Duration::ZERO));
            }
            let generation = Generation::build(prepared.ingredients(), &mut planned)?;
            let mut stopped = StoppedProcess::stop(pid, StopOptions::default())?;
            let threads = stopped.threads().len();
            let result = prepared.apply(&mut planned, generation, &mut stopped);
            if result.is_ok() && prepared.existing.is_some() {
                // What cannot be taken out stays until the process is detached.
                let _ = sweep(&process, &mut stopped, &[]);
            }
            let time = stopped.release();
            match result {
                Ok(()) => return Ok(prepared.report(&planned, threads, time)),
                Err(Failure::OtherKey(other)) => key = Some(other),
                Err(Failure::Again) => std::thread::sleep(PAUSE),
                Err(Failure::InTheWay) => {
                    yields += 1;
                    std::thread::sleep(PAUSE * (1 << yields));
                }
                Err(Failure::Refused(reason)) => {
                    // The reason is what counts, also when nothing can be done any more.
                    let _ = clean(pid);
                    return Err(reason);
                }
            }
        }
        Err(TargetRefused::NoRoom {
            pid,
            what: "our mappings: the process changes its own all the time".to_owned(),
        })
    })
}

/// Opens the process, and takes out what an interrupted attach or detach has left in it.
fn clean(pid: i32) -> Result<Process, TargetRefused> {
    let process = target::open(pid)?;
    target::check_seccomp(&process)?;
    target::refuse_translated(&process)?;
    let maps = process.maps().map_err(|error| remote(pid, error))?;
    let leftover = match find(&process, &maps)? {
        Found::Nothing => false,
        Found::Remains => true,
        Found::Agent(existing) => existing.is_unfinished(),
    };
    if leftover {
        detach::clean(process.pid())?;
    }
    Ok(process)
}

/// Why an attempt did not succeed.
#[derive(Debug)]
pub(crate) enum Failure {
    /// The process changed meanwhile, or is busy with an earlier attempt.
    Again,
    /// A thread will return to a place that changes; soon it will have. Only for who [yields](Prepared::yielding).
    InTheWay,
    /// Threads are not found this way.
    OtherKey(ThreadKey),
    /// For good.
    Refused(TargetRefused),
}

impl From<TargetRefused> for Failure {
    fn from(reason: TargetRefused) -> Failure {
        Failure::Refused(reason)
    }
}

/// An attach, before anything is decided that needs the process to stand still.
#[derive(Debug)]
pub(crate) struct Prepared<'a> {
    process: &'a Process,
    request: &'a Request,
    maps: Mappings,
    files: MappedFiles,
    existing: Option<Box<Existing>>,
    surroundings: Surroundings,
    image: AgentImage,
    guard_image: GuardImage,
    key: ThreadKey,
    small_stacks: bool,
    /// Of the follower that the process gets.
    bell: Option<&'a FollowerBell>,
    /// A thread that is in the way gets the time to leave.
    yields: bool,
    /// The process stands before its first instruction.
    early: bool,
    /// Calls of code made at run time are to be traced, or nothing is done.
    complete: bool,
}

impl<'a> Prepared<'a> {
    /// Looks at the process. `key` overrides how stubs find their thread.
    pub(crate) fn new(
        process: &'a Process,
        request: &'a Request,
        key: Option<ThreadKey>,
    ) -> Result<Prepared<'a>, TargetRefused> {
        let pid = process.pid();
        let maps = process.maps().map_err(|error| remote(pid, error))?;
        let image = AgentImage::parse(AGENT_IMAGE).map_err(|what| TargetRefused::BadRequest { what })?;
        let guard_image =
            GuardImage::parse(GUARD_IMAGE).map_err(|what| TargetRefused::BadRequest { what })?;
        let existing = match find(process, &maps)? {
            Found::Agent(existing) => {
                Some(Box::new(existing.without_gone(process, &maps).without_unused(request)))
            }
            Found::Nothing | Found::Remains => None,
        };
        if let Some(existing) = &existing {
            check_existing(process, existing, request, &image)?;
        }
        let files = MappedFiles::of(&maps);
        let executable = target::executable(process, &maps, &files);
        let key = match &existing {
            Some(existing) if !existing.is_early() => ThreadKey::from_locator(existing.head.locator),
            _ => key.or_else(|| Some(target::likely_thread_key(executable))),
        };
        let key = key.ok_or_else(|| foreign(pid, "its block is damaged"))?;
        if key == ThreadKey::FsBase && !target::has_rdfsbase(process) {
            let what = "finding its threads: this kernel does not allow rdfsbase".to_owned();
            return Err(TargetRefused::NoRoom { pid, what });
        }
        let small_stacks = match &existing {
            Some(existing) => existing.head.flags & ProcessBlock::FLAG_SMALL_STACKS != 0,
            None => executable.is_some_and(Binary::is_go),
        };
        let surroundings = Surroundings::of(process, &maps, &files)?;
        Ok(Prepared {
            process,
            request,
            maps,
            files,
            existing,
            surroundings,
            image,
            guard_image,
            key,
            small_stacks,
            bell: None,
            yields: false,
            early: false,
            complete: request.complete,
        })
    }

    /// When a thread is in the way of a site, nothing is done at all: it is to be tried again. Else the site is refused.
    pub(crate) fn yielding(self, yields: bool) -> Prepared<'a> {
        Prepared { yields, ..self }
    }

    /// The process stands before its first instruction, with this entry point: only its loader runs, if it has one.
    pub(crate) fn before_first_instruction(self, entry: Option<u64>) -> Prepared<'a> {
        let loaded = entry.filter(|_| self.surroundings.has_loader());
        let files = match loaded {
            Some(entry) => self.files.without(entry),
            None => self.files,
        };
        Prepared { early: true, files, ..self }
    }

    /// What the request says of calls of code made at run time does not hold: they have been found to be impossible to trace.
    pub(crate) fn without_made_code(self, reason: Option<&String>) -> Prepared<'a> {
        Prepared { complete: self.complete && reason.is_none(), ..self }
    }

    /// The process is followed: it is to tell when libraries come or go.
    pub(crate) fn followed_by(self, bell: Option<&'a FollowerBell>) -> Prepared<'a> {
        Prepared { bell, ..self }
    }

    /// What a generation is made from.
    pub(crate) fn ingredients(&self) -> Ingredients<'_> {
        Ingredients {
            process: self.process,
            maps: &self.maps,
            files: &self.files,
            request: self.request,
            existing: self.existing.as_deref(),
            image: &self.image,
            guard_image: &self.guard_image,
            thread_key: self.key,
            small_stacks: self.small_stacks,
            bell: self.bell,
        }
    }

    /// Decides where each probe goes.
    pub(crate) fn plan(&self) -> Result<PlannedSites, TargetRefused> {
        let Some(let_through) = self.let_through()? else { return Ok(self.plan_breakpoints()) };
        let dispatches = self.existing.as_ref().is_some_and(|existing| existing.dispatching.is_some());
        let planned = self.plan_with(&self.wanted_breakpoints(), true, Some(&let_through));
        match planned.calls.unguarded.clone() {
            Some(reason) if !dispatches => Err(self.not_complete(reason)),
            _ => Ok(planned),
        }
    }

    /// From where calls are let through when all others are to be dispatched, or are.
    fn let_through(&self) -> Result<Option<LetThrough>, TargetRefused> {
        let calls = self.existing.as_ref().map_or(&[][..], |existing| existing.call_links());
        let has_calls = !self.request.system_calls.is_empty() || !calls.is_empty();
        match self.existing.as_ref().and_then(|existing| existing.dispatching) {
            Some(dispatching) => Ok(Some(LetThrough::of(&dispatching))),
            // What there is before the first instruction is not all; who made the request comes again.
            None if !self.complete || self.early || !has_calls => Ok(None),
            None => {
                LetThrough::find(self.process, &self.files).map(Some).map_err(|why| self.not_complete(why))
            }
        }
    }

    fn not_complete(&self, reason: String) -> TargetRefused {
        TargetRefused::NotComplete { pid: self.process.pid(), reason }
    }

    fn wanted_breakpoints(&self) -> Breakpoints {
        match self.request.breakpoints {
            BreakpointUse::Never => Breakpoints::NotWanted,
            BreakpointUse::WhereNoJumpFits => Breakpoints::Wanted,
            BreakpointUse::Everywhere => Breakpoints::Everywhere,
        }
    }

    /// Where some are to be breakpoints the process gets a guard, or has one; without a guard that sees
    /// every call that it has to there are no breakpoints.
    fn plan_breakpoints(&self) -> PlannedSites {
        let guarded = self.existing.as_ref().is_some_and(|existing| existing.guard() != 0);
        let wanted = self.wanted_breakpoints();
        let planned = self.plan_with(&wanted, guarded, None);
        if guarded || planned.breakpoints().next().is_none() {
            return planned;
        }
        let planned = self.plan_with(&wanted, true, None);
        match planned.calls.unguarded.clone() {
            None => planned,
            Some(why) => self.plan_with(&Breakpoints::Impossible(why), false, None),
        }
    }

    fn plan_with(
        &self,
        breakpoints: &Breakpoints,
        guarded: bool,
        let_through: Option<&LetThrough>,
    ) -> PlannedSites {
        let given = self.ingredients();
        let (process, files, request) = (self.process, &self.files, self.request);
        let wanted = (breakpoints, guarded, let_through);
        PlannedSites::plan(process, files, request, given.existing, self.bell, wanted, |id| {
            given.unusable(id)
        })
    }

    /// There is nothing to be put into the process.
    pub(crate) fn is_empty(&self, planned: &PlannedSites) -> bool {
        if planned.calls.changed {
            return false;
        }
        let Some(existing) = &self.existing else { return planned.sites.is_empty() };
        if existing.is_early() {
            return false;
        }
        let known = |id| existing.programs.iter().any(|program| program.id == id);
        let nothing = planned.sites.is_empty() && planned.restored.is_empty();
        nothing && self.request.programs.iter().all(|program| known(program.id))
    }

    /// What was done.
    pub(crate) fn report(&self, planned: &PlannedSites, threads: usize, stopped: Duration) -> AttachReport {
        AttachReport {
            pid: self.process.pid(),
            first: self.existing.is_none(),
            probes: planned.outcomes(self.request),
            system_calls: planned.calls.coverage.clone().filter(|_| !self.request.system_calls.is_empty()),
            not_complete: None,
            threads,
            stopped,
        }
    }

    /// Does it. The process stands still.
    pub(crate) fn apply(
        &self,
        planned: &mut PlannedSites,
        mut generation: Generation<'_>,
        stopped: &mut StoppedProcess,
    ) -> Result<(), Failure> {
        let maps = self.process.maps().map_err(|error| self.failed(error))?;
        let fresh = self.check_unchanged(&maps)?;
        let filters = Filters::of(stopped)?;
        if let Some(reason) = filters.objection() {
            return Err(TargetRefused::Seccomp { pid: self.process.pid(), reason }.into());
        }
        if let Some(tids) = thread_pointer::shared(stopped).map_err(|error| self.failed(error))? {
            return Err(TargetRefused::SharedThreadPointer { pid: self.process.pid(), tids }.into());
        }
        self.check_dispatch(stopped)?;
        self.check_complete(&generation, (&maps, &filters), stopped)?;
        // What a later attach needs of them stands in the block.
        let facts = match &self.existing {
            Some(existing) if !existing.is_early() => None,
            _ => Some(Facts::of(self.process, stopped, &self.surroundings)?),
        };
        if self.key == ThreadKey::FsSelf && facts.is_some_and(|facts| !facts.self_pointer) {
            return Err(Failure::OtherKey(ThreadKey::FsBase));
        }
        let unusable =
            obstacles::unusable_sites(self.process, (&maps, &self.files), &generation.patches, stopped);
        let unusable = unusable.map_err(|error| self.failed(error))?;
        if self.yields && unusable.iter().any(|site| site.passes) {
            return Err(Failure::InTheWay);
        }
        for site in unusable {
            generation.give_up(site.address)?;
            planned.refuse(site.address, &site.reason);
        }
        self.leave_breakpoints(planned, &mut generation, (&maps, &filters), stopped)?;
        if obstacles::is_installing_filter(&generation.patches, stopped) {
            return Err(Failure::Again);
        }
        let mut head = self.final_head(&generation, facts, fresh.as_ref());
        self.put_in(&generation, &mut head, fresh.as_ref(), &maps, &filters, stopped)?;
        let result = self.put_in_force(&generation, planned, &head, stopped);
        if result.is_err() {
            self.take_back(&generation, stopped);
        }
        result.map_err(Failure::Refused)
    }

    /// No thread dispatches its system calls: it would get those that the agent makes.
    fn check_dispatch(&self, stopped: &StoppedProcess) -> Result<(), TargetRefused> {
        for thread in stopped.threads() {
            let found = thread.dispatch().map_err(|error| self.failed(error.into()))?;
            if found.is_some() && found != self.process.own_dispatch() {
                return Err(TargetRefused::Dispatches { pid: self.process.pid(), tid: thread.tid() });
            }
        }
        Ok(())
    }

    /// Every thread gets the signal of dispatched calls, and the guard can work, where calls are to be dispatched that are not yet.
    fn check_complete(
        &self,
        generation: &Generation<'_>,
        (maps, filters): (&Mappings, &Filters),
        stopped: &StoppedProcess,
    ) -> Result<(), Failure> {
        if !generation.dispatch.as_ref().is_some_and(|made| made.is_new) {
            return Ok(());
        }
        dispatch::check_kernel(self.process.pid(), stopped)?;
        if !target::has_rdfsbase(self.process) {
            let reason = "this kernel does not allow rdfsbase, by which threads are told apart".to_owned();
            return Err(self.not_complete(reason).into());
        }
        if let Some(reason) = filters.objection_to_guard().or_else(|| filters.objection_to_dispatch()) {
            return Err(self.not_complete(reason).into());
        }
        match dispatch::blocking(self.process, maps, stopped).map_err(|error| self.failed(error))? {
            Ok(_) => Ok(()),
            Err(_) if self.yields => Err(Failure::InTheWay),
            Err(reason) => Err(self.not_complete(reason).into()),
        }
    }

    /// Gives up the breakpoints where one of the threads would not get their signal, or the guard could not work.
    fn leave_breakpoints(
        &self,
        planned: &mut PlannedSites,
        generation: &mut Generation<'_>,
        (maps, filters): (&Mappings, &Filters),
        stopped: &StoppedProcess,
    ) -> Result<(), Failure> {
        let new: Vec<u64> = guard::new_breakpoints(&generation.patches).collect();
        if new.is_empty() {
            return Ok(());
        }
        let placed = self.existing.as_ref().and_then(|it| guard::Placed::at(self.process, it.guard()));
        if placed.is_some_and(|placed| placed.keeps(SIGTRAP)) {
            return Ok(());
        }
        let reason = match filters.objection_to_guard() {
            Some(reason) => reason,
            None => match guard::blocking(self.process, maps, stopped).map_err(|error| self.failed(error))? {
                None => return Ok(()),
                Some(_) if self.yields => return Err(Failure::InTheWay),
                Some(reason) => reason,
            },
        };
        for address in new {
            generation.give_up(address)?;
            planned.refuse(address, &format!("no breakpoint is possible: {reason}"));
        }
        Ok(())
    }

    /// The agent is the one that was prepared for; its head as it is now.
    fn check_unchanged(&self, maps: &Mappings) -> Result<Option<BlockHead>, Failure> {
        match (find(self.process, maps)?, &self.existing) {
            (Found::Nothing, None) => Ok(None),
            (Found::Agent(now), Some(then)) => {
                let same = now.block == then.block
                    && now.head.sites == then.head.sites
                    && now.head.flags == then.head.flags;
                if same { Ok(Some(now.head)) } else { Err(Failure::Again) }
            }
            _ => Err(Failure::Again),
        }
    }

    /// The head as it will be. `facts` are for an attach that knows nothing of threads, `fresh` is the head of a later one as it is now.
    fn final_head(
        &self,
        generation: &Generation<'_>,
        facts: Option<Facts>,
        fresh: Option<&BlockHead>,
    ) -> BlockHead {
        let mut head = generation.head.clone();
        if let Some(facts) = facts {
            let known = head.flags & !(ProcessBlock::FLAG_EARLY | ProcessBlock::FLAG_RSEQ);
            let early = if self.early { ProcessBlock::FLAG_EARLY } else { 0 };
            head = BlockHead {
                flags: known | facts.flags | early,
                tid_offset: facts.tid_offset,
                rseq_offset: facts.rseq_offset,
                vdso_clock_gettime: facts.vdso_clock_gettime,
                ..head
            };
        }
        match fresh {
            // What the agent changes by itself stays as it is now.
            Some(fresh) => BlockHead {
                pool: fresh.pool,
                reserve: fresh.reserve,
                vdso_clock_gettime: if fresh.vdso_clock_gettime == 0 { 0 } else { head.vdso_clock_gettime },
                region_count: self.region_places(fresh, generation.regions.len()).1,
                ..head
            },
            None => head,
        }
    }

    /// Maps everything and starts the agent. On failure everything is out again.
    fn put_in(
        &self,
        generation: &Generation<'_>,
        head: &mut BlockHead,
        fresh: Option<&BlockHead>,
        maps: &Mappings,
        filters: &Filters,
        stopped: &mut StoppedProcess,
    ) -> Result<(), Failure> {
        let Some(index) = target::borrowable(self.process, stopped) else { return Err(Failure::Again) };
        if let Some(fresh) = fresh {
            self.announce(generation, fresh)?;
        }
        let mut borrowed = match Borrowed::begin(self.process, maps, stopped, index) {
            Ok(borrowed) => borrowed,
            Err(RemoteError::Busy { .. } | RemoteError::NotNow { .. }) => {
                if let Some(fresh) = fresh {
                    self.withdraw(generation, fresh)?;
                }
                return Err(Failure::Again);
            }
            Err(error) => return Err(self.failed(error).into()),
        };
        let result = self.fill(&mut borrowed, generation, head, filters);
        if result.is_err() {
            for area in &generation.areas {
                // What was not mapped is not there to be unmapped; what is there is ours: the name tells.
                unmap_ours(&mut borrowed, area);
            }
        }
        let ended = borrowed.end(stopped).map_err(|error| self.failed(error));
        if let (Err(_), Some(fresh)) = (&result, fresh) {
            self.withdraw(generation, fresh)?;
        }
        result?;
        Ok(ended?)
    }

    /// Enters the regions of a later attach before they are mapped.
    fn announce(&self, generation: &Generation<'_>, fresh: &BlockHead) -> Result<(), TargetRefused> {
        let (places, region_count) = self.region_places(fresh, generation.regions.len());
        for (region, index) in generation.regions.iter().zip(places) {
            self.write_region(generation.block, index, region)?;
        }
        let flags = fresh.flags | ProcessBlock::FLAG_UNFINISHED;
        self.write_head_at(generation.block, &BlockHead { region_count, flags, ..fresh.clone() })
    }

    /// Which entries of the list of regions a later attach uses, empty ones first; how many the list has then.
    fn region_places(&self, fresh: &BlockHead, count: usize) -> (Vec<usize>, u32) {
        let known = fresh.region_count as usize;
        let free = self.existing.iter().flat_map(|existing| existing.free_regions());
        let places: Vec<usize> = free.chain(known..).take(count).collect();
        let behind = places.last().map_or(known, |last| known.max(last + 1));
        (places, behind as u32)
    }

    fn write_region(&self, block: u64, index: usize, region: &Region) -> Result<(), TargetRefused> {
        let written = self.process.memory().write(block + region_offset(index), &region.to_bytes());
        written.map_err(|error| self.failed(error))
    }

    /// Takes the regions of an attempt that failed out of the list again.
    fn withdraw(&self, generation: &Generation<'_>, fresh: &BlockHead) -> Result<(), TargetRefused> {
        for index in self.region_places(fresh, generation.regions.len()).0 {
            self.write_region(generation.block, index, &Region::default())?;
        }
        self.write_head(fresh)
    }

    fn fill(
        &self,
        borrowed: &mut Borrowed<'_>,
        generation: &Generation<'_>,
        head: &mut BlockHead,
        filters: &Filters,
    ) -> Result<(), Failure> {
        if head.vdso_clock_gettime != 0
            && !filters.leave_counter(borrowed).map_err(|error| self.failed(error))?
        {
            head.vdso_clock_gettime = 0;
        }
        let mut files: Vec<BorrowedFd<'_>> = vec![generation.memory.descriptor()];
        files.extend(generation.shared.iter().map(|file| file.file));
        let received = match borrowed.receive(&files, |descriptors| generation.mapping_calls(descriptors)) {
            Ok(received) => received,
            Err(RemoteError::SystemCall { source, .. }) if source.raw_os_error() == Some(libc::EEXIST) => {
                return Err(Failure::Again);
            }
            Err(error) => return Err(self.failed(error).into()),
        };
        borrowed.close_received(&received).map_err(|error| self.failed(error))?;
        let unfinished = BlockHead { flags: head.flags | ProcessBlock::FLAG_UNFINISHED, ..head.clone() };
        if self.existing.is_none() {
            self.write_head_at(generation.block, &unfinished)?;
        }
        self.narrow_gate(generation.call_gate, filters)?;
        let result = borrowed
            .call(generation.init, [generation.block, 0, 0, 0])
            .map_err(|error| self.failed(error))?;
        if result == 0
            && let Some(placed) = guard::Placed::at(self.process, head.guard)
            && let Err(error) = self.install(borrowed, &placed, generation)
        {
            return Err(self.failed(error).into());
        }
        match result as i64 {
            0 if self.early => {
                early::place_slot(borrowed, generation.claim_slot, generation.block, head.threads)
                    .map_err(|error| self.failed(error).into())
            }
            0 => Ok(()),
            errno => Err(TargetRefused::AgentFailed { pid: self.process.pid(), errno: -errno }.into()),
        }
    }

    /// Puts the handler of what is needed now in force. When that fails nothing of ours is led to any more.
    fn install(
        &self,
        borrowed: &mut Borrowed<'_>,
        placed: &guard::Placed<'_>,
        generation: &Generation<'_>,
    ) -> Result<(), RemoteError> {
        let mut signals = if guard::has_breakpoints(&generation.patches) { bit(SIGTRAP) } else { 0 };
        // Whoever cleans up when we are killed finds what he has to take out.
        let guard = generation.block + offset_of!(ProcessBlock, guard) as u64;
        self.process.memory().write_u64(guard, generation.head.guard)?;
        if let Some(made) = &generation.dispatch {
            signals |= bit(SIGSYS);
            placed.set_dispatch(made.dispatching.block)?;
            made.dispatching.put_code(self.process)?;
        }
        let before = placed.signals()?;
        let result = placed.install(borrowed, signals & !before, target::inner_pid(self.process));
        if result.is_err() {
            // What is mapped goes again: nothing may lead there. The first error is the one that counts.
            let _ = placed.uninstall(borrowed, !before);
            if let Some(made) = generation.dispatch.as_ref().filter(|made| made.is_new) {
                let _ = placed.set_dispatch(0);
                let _ = made.dispatching.take_code(self.process);
            }
        }
        result
    }

    /// Forbids the agent the calls that the process's filters do not allow.
    fn narrow_gate(&self, address: u64, filters: &Filters) -> Result<(), TargetRefused> {
        let gate = CallGate::new();
        filters.narrow(&gate);
        let memory = self.process.memory();
        for (index, word) in gate.words().into_iter().enumerate().filter(|&(_, word)| word != 0) {
            let at = address + 8 * index as u64;
            let before = memory.read_u64(at).map_err(|error| self.failed(error))?;
            memory.write_u64(at, before | word).map_err(|error| self.failed(error))?;
        }
        Ok(())
    }

    fn read_fork_page(&self, block: u64) -> Result<u64, TargetRefused> {
        let bytes =
            self.process.memory().read_array::<HEAD_LEN>(block).map_err(|error| self.failed(error))?;
        let head =
            BlockHead::from_bytes(&bytes).map_err(|_| foreign(self.process.pid(), "its block is damaged"))?;
        Ok(head.fork_page)
    }

    fn write_head(&self, head: &BlockHead) -> Result<(), TargetRefused> {
        let block = self.existing.as_ref().map_or(0, |existing| existing.block);
        self.write_head_at(block, head)
    }

    fn write_head_at(&self, block: u64, head: &BlockHead) -> Result<(), TargetRefused> {
        self.process.memory().write(block, &head.to_bytes()).map_err(|error| self.failed(error))
    }

    fn failed(&self, error: RemoteError) -> TargetRefused {
        remote(self.process.pid(), error)
    }
}

/// Unmaps an area of an attempt that failed, if it got as far as being mapped.
fn unmap_ours(borrowed: &mut Borrowed<'_>, area: &Area) {
    let maps = borrowed.process().maps().unwrap_or_default();
    if maps.at(area.region.start).is_some_and(is_ours) {
        // If even this fails, the next attach or detach finds it by its name.
        let _ = borrowed.make_all(&[SystemCall::unmap(area.region.start, area.region.len)]);
    }
}

/// The agent that is there can be added to.
fn check_existing(
    process: &Process,
    existing: &Existing,
    request: &Request,
    image: &AgentImage,
) -> Result<(), TargetRefused> {
    let pid = process.pid();
    if let Some(owner) = existing.owner_beside(process) {
        return Err(foreign(pid, &format!("its memory is that of process {owner}")));
    }
    if existing.head.store_uuid != request.store_uuid {
        return Err(TargetRefused::OtherStore { pid });
    }
    let base = agent_base(image, existing);
    let linked = image.at(base);
    for segment in image.segments().iter().filter(|segment| segment.protection & libc::PROT_WRITE == 0) {
        let ours = &linked.bytes[segment.start as usize..(segment.start + segment.len) as usize];
        let theirs = process.memory().read_vec(base.wrapping_add(segment.start), ours.len());
        if theirs.ok().as_deref() != Some(ours) {
            return Err(foreign(pid, "it was made by another build of beeline; detach and attach again"));
        }
    }
    Ok(())
}

fn foreign(pid: i32, reason: &str) -> TargetRefused {
    TargetRefused::ForeignAgent { pid, reason: reason.to_owned() }
}
