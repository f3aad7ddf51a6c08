//! The programs at system calls of one process: which sites are patched, who runs at which call.
//!
//! ```text
//! request.system_calls ─┐
//! links in force ───────┴▶ CallLinks ─▶ CallLists, one for each number ─▶ SystemCalls in the process
//! every mapped file ─▶ its `syscall` instructions ─▶ PlannedSites, two for most
//! ```
//!
//! All sites of a process have the same links; what of them concerns a number, the hooks of its sites call. A site whose number is a constant that nobody wants is left alone until somebody
//! does.

use crate::dispatch::LetThrough;
use crate::error::TargetRefused;
use crate::existing::{Existing, Found, find, is_call_site, is_ours};
use crate::files::{MappedFile, MappedFiles};
use crate::fit::fit;
use crate::report::{ProbeOutcome, ProbeState};
use crate::request::{CallContext, ProbeKind, Request, SystemCallRequest};
use crate::sites::{Breakpoints, PlannedSite, PlannedSites};
use crate::target;
use crate::wire::Wire;
use beeline_abi::guard::{MASKING, RT_SIGACTION};
use beeline_abi::link::LinkRuntime;
use beeline_abi::process::SiteRuntime;
use beeline_abi::system_call::{
    CLONES, CodeAt, FILTERING, List, NUMBERS, REGISTERING, SHARING, SystemCalls, WANTED_LEN,
};
use beeline_ptrace::StoppedProcess;
use beeline_remote::{Process, RemoteError};
use beeline_site::{Refusal, SitePlan, SystemCallSite, Windows};
use beeline_stub::chain_len_max;
use std::collections::{BTreeMap, BTreeSet};
use std::mem::offset_of;
use std::ops::Range;

/// Why a call is not wholly traced of which one jump stands.
const END_UNSEEN: &str = "its begin is traced, and not its end: there is no room for a jump behind it";
/// Why a call is not traced at which a jump could be.
const NOT_PLACED: &str = "it was mapped, or wanted, since the last attach: attach again";

/// A system call of the process, at one of the sites planned for it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct PlannedCall {
    /// Address of the `syscall` instruction.
    pub(crate) address: u64,
    /// Its number, where that is a constant.
    pub(crate) number: Option<u32>,
    /// Nobody behind the call looks at the flags.
    pub(crate) flags_dead: bool,
}

/// What of a process's code is traced.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct CallCoverage {
    /// System calls that were found.
    pub found: usize,
    /// Those with a jump around or over them.
    pub patched: usize,
    /// Those with a constant number that no program wants.
    pub unwanted: usize,
    /// The others: address, and why.
    pub refused: Vec<(u64, String)>,
    /// Files that could not be looked at: name, and why.
    pub unread: Vec<(String, String)>,
    /// Where calls of code in no file are traced as well: those at which programs could run, and those that were made without, because too
    /// many were under way.
    pub dispatched: Option<(u64, u64)>,
}

/// What is planned for system calls.
#[derive(Debug, Default)]
pub(crate) struct PlannedCalls {
    /// Indexes in the request of links that come in.
    pub(crate) new: Vec<usize>,
    /// Something is to be done.
    pub(crate) changed: bool,
    /// None when no program wants system calls.
    pub(crate) coverage: Option<CallCoverage>,
    /// The process is to have a guard, or has one.
    pub(crate) guarded: bool,
    /// Why a guard does not see all calls that it has to.
    pub(crate) unguarded: Option<String>,
    /// Calls from elsewhere are to be dispatched.
    pub(crate) let_through: Option<LetThrough>,
    /// Addresses of calls with jumps around them.
    pub(crate) known: BTreeSet<u64>,
    states: Vec<ProbeState>,
}

/// What calls are planned from.
#[derive(Clone, Copy)]
pub(crate) struct CallsGiven<'a> {
    pub(crate) request: &'a Request,
    pub(crate) existing: Option<&'a Existing>,
    /// The process is to have a guard, or has one.
    pub(crate) guarded: bool,
    /// Calls from elsewhere are to be dispatched, or are.
    pub(crate) let_through: Option<&'a LetThrough>,
}

impl PlannedCalls {
    /// Enters the sites. `unusable` tells why a program cannot be linked.
    pub(crate) fn plan(
        sites: &mut BTreeMap<u64, PlannedSite>,
        process: &Process,
        files: &MappedFiles,
        CallsGiven { request, existing, guarded, let_through }: CallsGiven<'_>,
        unusable: &impl Fn(u32) -> Option<String>,
    ) -> PlannedCalls {
        let in_force = existing.map_or(&[][..], Existing::call_links);
        let dispatches = existing.is_some_and(|existing| existing.dispatching.is_some());
        let changed = guarded && existing.is_none_or(|existing| existing.guard() == 0)
            || let_through.is_some() && !dispatches;
        let let_through = let_through.cloned();
        let mut planned = PlannedCalls { guarded, changed, let_through, ..PlannedCalls::default() };
        for (index, call) in request.system_calls.iter().enumerate() {
            let known = in_force.iter().find(|link| link.link_id == call.link_id);
            planned.states.push(match (known, unusable(call.program_id)) {
                (Some(known), _) if known.prog_id == call.program_id => ProbeState::AlreadyInForce,
                (_, Some(reason)) => ProbeState::Refused { reason },
                (known, None) => {
                    planned.changed = true;
                    if known.is_none() {
                        planned.new.push(index);
                    }
                    ProbeState::Placed { addresses: Vec::new() }
                }
            });
        }
        planned.changed |= in_force.iter().any(|link| request.is_over(link));
        let links = CallLinks::of(request, existing, &planned);
        if !links.is_empty() {
            let before = sites.len();
            let mut search = Search::new(sites, existing);
            search.seen_elsewhere = planned.let_through.as_ref().map(|it| it.range.clone());
            for file in files.iter() {
                search.file(process, file, |number| links.wants(number));
            }
            planned.unguarded = search.unguarded.filter(|_| guarded);
            planned.coverage = Some(search.coverage);
            planned.known = search.known;
            planned.changed |= sites.len() > before;
        }
        planned
    }

    /// A site is given up.
    pub(crate) fn refuse(&mut self, site: &PlannedSite, reason: &str) {
        if let Some(call) = site.call {
            self.known.remove(&call.address);
        }
        if let (Some(call), Some(coverage)) = (site.call, &mut self.coverage)
            && !coverage.refused.iter().any(|(address, _)| *address == call.address)
        {
            coverage.patched = coverage.patched.saturating_sub(1);
            coverage.refused.push((call.address, reason.to_owned()));
        }
    }

    /// What became of each link of the request.
    pub(crate) fn outcomes(&self, request: &Request) -> Vec<ProbeOutcome> {
        let nothing = self.coverage.as_ref().is_none_or(|coverage| coverage.found == 0);
        let outcome = |(call, state): (&SystemCallRequest, &ProbeState)| {
            let state = match state {
                ProbeState::Placed { .. } if nothing => {
                    ProbeState::Refused { reason: "no system call was found in its code".to_owned() }
                }
                state => state.clone(),
            };
            ProbeOutcome { link_id: call.link_id, state }
        };
        request.system_calls.iter().zip(&self.states).map(outcome).collect()
    }
}

/// Bytes that probes have, or are to have.
struct Taken(BTreeMap<u64, u64>);

impl Taken {
    fn of(existing: Option<&Existing>) -> Taken {
        let sites = existing.into_iter().flat_map(|existing| &existing.sites);
        let sites = sites.filter(|site| site.link_count != 0 || site.flags & SiteRuntime::HOLE != 0);
        Taken(sites.map(|site| (site.address, site.address + u64::from(site.len))).collect())
    }

    /// The start of what has one of the `len` bytes at `start`.
    fn at(&self, start: u64, len: u64) -> Option<u64> {
        let (&first, &end) = self.0.range(..start + len).next_back()?;
        (end > start).then_some(first)
    }
}

/// The search for system calls in the files of a process.
struct Search<'a> {
    sites: &'a mut BTreeMap<u64, PlannedSite>,
    taken: Taken,
    existing: Option<&'a Existing>,
    coverage: CallCoverage,
    /// Why a guard would not see all calls that it has to.
    unguarded: Option<String>,
    /// Calls that are made from outside of this are seen in any case: they are dispatched.
    seen_elsewhere: Option<Range<u64>>,
    /// Calls with jumps around them.
    known: BTreeSet<u64>,
}

impl<'a> Search<'a> {
    fn new(sites: &'a mut BTreeMap<u64, PlannedSite>, existing: Option<&'a Existing>) -> Search<'a> {
        let coverage = CallCoverage::default();
        let taken = Taken::of(existing);
        let (unguarded, seen_elsewhere, known) = (None, None, BTreeSet::new());
        Search { sites, taken, existing, coverage, unguarded, seen_elsewhere, known }
    }

    /// A call is refused; with a number that blocks signals, or one that is not known, a guard does not see it.
    fn refuse(&mut self, address: u64, number: Option<u32>, reason: String) {
        let is_dispatched = self.seen_elsewhere.as_ref().is_some_and(|range| !range.contains(&address));
        if !is_dispatched && number.is_none_or(|number| is_guarded(number, false)) {
            let why = || {
                format!("the system call at {address:#x} can block signals and cannot be traced: {reason}")
            };
            self.unguarded.get_or_insert_with(why);
        }
        self.coverage.refused.push((address, reason));
    }

    fn file(&mut self, process: &Process, file: &MappedFile, wants: impl Fn(Option<u32>) -> bool) {
        if file.mappings.iter().any(is_ours) {
            return;
        }
        let binary = match file.binary(process) {
            Ok(binary) => binary,
            Err(reason) => {
                let name = file.mappings[0].name.clone();
                if self.seen_elsewhere.is_none() {
                    self.unguarded.get_or_insert_with(|| format!("{name} cannot be read: {reason}"));
                }
                self.coverage.unread.push((name, reason.to_owned()));
                return;
            }
        };
        let calls = binary.system_calls();
        for call in &calls.refused {
            // Returning from a signal handler is no call that a program makes by itself.
            let is_return = matches!(call.refusal, Refusal::SignalReturn { .. });
            let number = if is_return { Some(RT_SIGRETURN) } else { call.number };
            for address in binary.file_offset_of(call.vaddr).into_iter().flat_map(|at| file.addresses(at)) {
                self.coverage.found += 1;
                self.refuse(address, number, call.refusal.to_string());
            }
        }
        for site in &calls.sites {
            let Some(offset) = binary.file_offset_of(site.vaddr) else { continue };
            for address in file.addresses(offset) {
                self.coverage.found += 1;
                if self.is_patched(address, site) {
                    self.coverage.patched += 1;
                    self.known.insert(address);
                } else if self.has_begin(address, site) {
                    self.coverage.refused.push((address, END_UNSEEN.to_owned()));
                    self.known.insert(address);
                } else if !wants(site.number) {
                    self.coverage.unwanted += 1;
                } else {
                    self.enter(address, site);
                }
            }
        }
    }

    /// It was traced before, its begin and its end.
    fn is_patched(&self, address: u64, site: &SystemCallSite) -> bool {
        let exit = match &site.windows {
            Windows::Around { exit, .. } => exit.as_ref(),
            Windows::Over(_) => None,
        };
        let is_over = site.over.as_ref().is_some_and(|over| self.stands(address, site, over));
        is_over || self.has_begin(address, site) && exit.is_none_or(|exit| self.stands(address, site, exit))
    }

    fn has_begin(&self, address: u64, site: &SystemCallSite) -> bool {
        match &site.windows {
            Windows::Around { enter, .. } => self.stands(address, site, enter),
            Windows::Over(plan) => self.stands(address, site, plan),
        }
    }

    /// A jump for system calls is at this window.
    fn stands(&self, address: u64, site: &SystemCallSite, plan: &SitePlan) -> bool {
        let at = address.wrapping_add(plan.vaddr.wrapping_sub(site.vaddr));
        let mut known = self.existing.iter().flat_map(|existing| &existing.sites);
        known.any(|known| is_call_site(known) && known.address == at)
    }

    fn enter(&mut self, address: u64, site: &SystemCallSite) {
        let around = match &site.windows {
            Windows::Around { enter, exit } => {
                [Some(enter), exit.as_ref()].into_iter().flatten().collect::<Vec<_>>()
            }
            Windows::Over(plan) => vec![plan],
        };
        let over: Vec<&SitePlan> = site.over.iter().collect();
        let refused = self.collision(address, site, &around);
        let windows = match refused {
            None => around,
            Some(_) if !over.is_empty() && self.collision(address, site, &over).is_none() => over,
            Some(other) => {
                let reason = format!("the probe at {other:#x} has the bytes around it");
                self.refuse(address, site.number, reason);
                return;
            }
        };
        // In a stub's trailer this number says that there is none.
        let number = site.number.filter(|&number| number != u32::MAX);
        for plan in windows {
            let at = address.wrapping_add(plan.vaddr.wrapping_sub(site.vaddr));
            let mut planned = PlannedSite::new(at, plan.clone());
            planned.call = Some(PlannedCall { address, number, flags_dead: site.flags_dead });
            self.sites.insert(at, planned);
        }
        self.known.insert(address);
        self.coverage.patched += 1;
    }

    /// Where a probe stands, or is to stand, among the bytes of the windows.
    fn collision(&self, address: u64, site: &SystemCallSite, windows: &[&SitePlan]) -> Option<u64> {
        windows.iter().find_map(|plan| {
            let start = address.wrapping_add(plan.vaddr.wrapping_sub(site.vaddr));
            let end = start + plan.original.len() as u64;
            let planned = self.sites.range(..end).next_back().map(|(_, planned)| planned);
            let planned = planned.filter(|it| it.address + it.plan.original.len() as u64 > start);
            planned.map(|it| it.address).or_else(|| self.taken.at(start, end - start))
        })
    }
}

/// The link is a system call's.
fn is_call(link: &LinkRuntime) -> bool {
    link.flags & LinkRuntime::SYSTEM_CALL != 0
}

/// The number for which a link is; none for all.
fn number_of(link: &LinkRuntime) -> Option<u32> {
    link.semaphore.checked_sub(1).map(|number| number as u32)
}

/// The links of the system calls of a process, in the order in which they were made.
#[derive(Debug, Default)]
pub(crate) struct CallLinks {
    pub(crate) links: Vec<LinkRuntime>,
    /// The process is to have a guard, or has one.
    guarded: bool,
}

/// `rt_sigreturn`.
const RT_SIGRETURN: u32 = 15;
/// `prctl`.
const PRCTL: u64 = 157;

/// A guard has to know of calls with this number, before or behind them.
fn is_guarded(number: u32, is_exit: bool) -> bool {
    let number = u64::from(number);
    MASKING.contains(&number) || number == RT_SIGACTION || number == PRCTL && !is_exit
}

impl CallLinks {
    /// Those that are in force and have not ended, with their programs as they are to be now; then those that come in.
    pub(crate) fn of(request: &Request, existing: Option<&Existing>, planned: &PlannedCalls) -> CallLinks {
        let in_force = existing.map_or(&[][..], Existing::call_links);
        let mut links: Vec<LinkRuntime> =
            in_force.iter().filter(|link| is_call(link) && !request.is_over(link)).copied().collect();
        for link in &mut links {
            let wanted = request.system_calls.iter().zip(&planned.states);
            let mut wanted = wanted.filter(|(call, state)| {
                call.link_id == link.link_id && matches!(state, ProbeState::Placed { .. })
            });
            if let Some((call, _)) = wanted.next() {
                link.prog_id = call.program_id;
                link.flags = flags(request, call);
            }
        }
        links.extend(planned.new.iter().filter_map(|&index| {
            let call = request.system_calls.get(index)?;
            Some(LinkRuntime {
                cookie: call.cookie,
                link_id: call.link_id,
                prog_id: call.program_id,
                flags: flags(request, call),
                pid: call.pid.unwrap_or(0),
                semaphore: call.number.map_or(0, |number| u64::from(number) + 1),
                ..LinkRuntime::default()
            })
        }));
        let guarded = planned.guarded;
        if links.is_empty() && (guarded || !in_force.is_empty()) {
            // The sites that there are have one.
            links.push(LinkRuntime { link_id: LinkRuntime::OWN, ..LinkRuntime::default() });
        }
        CallLinks { links, guarded }
    }

    /// No program wants any call, nor does a guard.
    pub(crate) fn is_empty(&self) -> bool {
        !self.guarded && !self.links.iter().any(is_call)
    }

    /// A program wants calls with this number; `None`: with one that is not known.
    fn wants(&self, number: Option<u32>) -> bool {
        let mut calls = self.links.iter().filter(|link| is_call(link));
        let concerns = |number: u32| [false, true].iter().any(|&is_exit| self.concern_agent(number, is_exit));
        let always = number.is_none_or(concerns);
        self.guarded && always
            || calls.any(|link| always || number_of(link).is_none() || number_of(link) == number)
    }

    /// Indexes of the links whose programs run at a call with this number, before it or behind it.
    pub(crate) fn at(&self, number: u32, is_exit: bool) -> Vec<usize> {
        let number = Some(number).filter(|&number| (number as usize) < NUMBERS);
        self.running(is_exit, number).collect()
    }

    /// In the kernel's order: the tracepoints are before the function for the call, and behind it
    /// (`include/linux/entry-common.h`: `syscall_enter_from_user_mode`, `syscall_exit_to_user_mode`).
    fn running(&self, is_exit: bool, number: Option<u32>) -> impl Iterator<Item = usize> {
        let runs = move |link: &LinkRuntime| {
            let applies = number_of(link).is_none() || number_of(link) == number;
            is_call(link) && applies && (link.flags & LinkRuntime::RETURN != 0) == is_exit
        };
        let links = self.links.iter().enumerate().filter(move |(_, link)| runs(link));
        let (inner, outer): (Vec<_>, Vec<_>) =
            links.partition(|(_, link)| link.flags & LinkRuntime::REGISTERS != 0);
        let (first, last) = if is_exit { (inner, outer) } else { (outer, inner) };
        first.into_iter().chain(last).map(|(index, _)| index)
    }

    /// The agent has to know of these calls, whoever traces any: of those that make threads, before and, in the child, too, behind
    /// the call; of those that install a seccomp filter, before it is in force; and of those with which threads are set up.
    pub(crate) fn concern_agent(&self, number: u32, is_exit: bool) -> bool {
        let number = u64::from(number);
        let concerns = match is_exit {
            true => CLONES.contains(&number),
            false => [SHARING, FILTERING, REGISTERING].iter().any(|some| some.contains(&number)),
        };
        concerns && !self.is_empty() || self.guarded && is_guarded(number as u32, is_exit)
    }

    /// Bytes that the chains of all numbers take, at most.
    pub(crate) fn chains_len(&self) -> u64 {
        let asked: BTreeSet<Option<u32>> =
            self.links.iter().filter(|it| is_call(it)).map(number_of).collect();
        let numbers = asked.into_iter().chain([None]);
        numbers
            .flat_map(|number| [false, true].map(|is_exit| self.running(is_exit, number).count()))
            .map(|count| if count == 0 { 0 } else { chain_len_max(count) })
            .sum()
    }

    /// Entries in all lists together, at most.
    pub(crate) fn listed(&self) -> usize {
        let lists = self.lists(0);
        lists.addresses.len()
    }

    /// The lists, when the first link lies at `at`.
    pub(crate) fn lists(&self, at: u64) -> CallLists {
        let mut lists = CallLists { addresses: Vec::new(), entered: Vec::new(), left: Vec::new() };
        for is_return in [false, true] {
            // That of all numbers for which nobody asks in particular comes first.
            let rest = self.add(&mut lists, at, is_return, None);
            let of = (0..NUMBERS as u32).map(|number| {
                let asked = |link: &LinkRuntime| is_call(link) && number_of(link) == Some(number);
                if self.links.iter().any(asked) {
                    self.add(&mut lists, at, is_return, Some(number))
                } else {
                    rest
                }
            });
            let all: Vec<List> = of.chain([rest]).collect();
            if is_return { lists.left = all } else { lists.entered = all }
        }
        lists
    }

    fn add(&self, lists: &mut CallLists, at: u64, is_return: bool, number: Option<u32>) -> List {
        let first = lists.addresses.len() as u32;
        let running = self.running(is_return, number);
        lists.addresses.extend(running.map(|index| at + (index * LinkRuntime::LEN) as u64));
        List { first, count: lists.addresses.len() as u32 - first }
    }
}

/// What a new link's flags say, but for what its program needs.
fn flags(request: &Request, call: &SystemCallRequest) -> u32 {
    let program = request.programs.iter().find(|program| program.id == call.program_id);
    let context = match call.context {
        CallContext::Record => LinkRuntime::RECORD,
        CallContext::Raw => LinkRuntime::RAW,
        CallContext::Registers => LinkRuntime::REGISTERS,
    };
    let overrides = call.may_override && program.is_some_and(|program| program.may_override());
    context
        | if call.kind == ProbeKind::Return { LinkRuntime::RETURN } else { 0 }
        | if overrides { LinkRuntime::OVERRIDES } else { 0 }
        | if call.count_hits { LinkRuntime::COUNTS_HITS } else { 0 }
}

/// Who runs at which number.
#[derive(Debug)]
pub(crate) struct CallLists {
    /// Addresses of links, one list behind the other.
    pub(crate) addresses: Vec<u64>,
    entered: Vec<List>,
    left: Vec<List>,
}

impl CallLists {
    /// What is to be written to the process's [`SystemCalls`] at `at`, the addresses being at `links`: with the `code` for each number
    /// before and behind the call; and to hooks.
    pub(crate) fn tables(
        &self,
        at: u64,
        links: u64,
        code: [Vec<u64>; 2],
        hooks: Vec<(u64, Vec<u8>)>,
    ) -> CallTables {
        let [before, behind] = code;
        let word = |words: &[u64], index: usize| words.get(index).copied().unwrap_or_default();
        let code = |index: usize| CodeAt { before: word(&before, index), behind: word(&behind, index) };
        let bit = |address: u64, bit: u8| if address == 0 { 0 } else { bit };
        let wanted = |number: usize| {
            let CodeAt { before, behind } = code(number.min(NUMBERS));
            bit(before, SystemCalls::ENTER) | bit(behind, SystemCalls::EXIT)
        };
        let wanted: Vec<u8> = (0..WANTED_LEN).map(wanted).collect();
        let lists = |lists: &[List]| -> Vec<u8> { lists.iter().flat_map(Wire::to_bytes).collect() };
        let code: Vec<u8> = (0..=NUMBERS).flat_map(|index| code(index).to_bytes()).collect();
        let mut writes = hooks;
        writes.extend([
            (at + offset_of!(SystemCalls, wanted) as u64, wanted),
            (at + offset_of!(SystemCalls, code) as u64, code),
            (at + offset_of!(SystemCalls, links) as u64, links.to_bytes()),
            (at + offset_of!(SystemCalls, entered) as u64, lists(&self.entered)),
            (at + offset_of!(SystemCalls, left) as u64, lists(&self.left)),
        ]);
        CallTables { writes }
    }
}

/// Bytes to be written while the process stands still.
#[derive(Debug)]
pub(crate) struct CallTables {
    writes: Vec<(u64, Vec<u8>)>,
}

impl CallTables {
    pub(crate) fn write(&self, process: &Process) -> Result<(), RemoteError> {
        const PAGE: usize = beeline_abi::PAGE_SIZE as usize;
        for (address, bytes) in &self.writes {
            for (index, part) in bytes.chunks(PAGE).enumerate() {
                let at = address + (index * PAGE) as u64;
                // What is zero already need not become memory of its own.
                if process.memory().read_vec(at, part.len())? != part {
                    process.memory().write(at, part)?;
                }
            }
        }
        Ok(())
    }
}

/// What of the code of process `pid` is traced, or could be: system calls that programs can be run at. The process is neither
/// stopped nor changed.
///
/// # Errors
/// When there is no such process, or we may not look into it.
pub fn call_coverage(pid: i32) -> Result<CallCoverage, TargetRefused> {
    let process = Process::open(pid, false).map_err(|_| StoppedProcess::refusal(pid))?;
    let maps = process.maps().map_err(|error| target::remote(pid, error))?;
    let existing = match find(&process, &maps)? {
        Found::Agent(existing) => Some(existing),
        Found::Nothing | Found::Remains => None,
    };
    let existing = existing.as_deref();
    let links = existing.map_or(&[][..], Existing::call_links).iter().filter(|link| is_call(link));
    let links =
        CallLinks { links: links.copied().collect(), guarded: existing.is_some_and(|it| it.guard() != 0) };
    let mut sites = BTreeMap::new();
    let mut search = Search::new(&mut sites, existing);
    let files = MappedFiles::of(&maps);
    for file in files.iter() {
        search.file(&process, file, |number| links.wants(number));
    }
    let dispatched = existing.and_then(|existing| existing.dispatching?.counts(&process));
    let coverage = Some(CallCoverage { dispatched, ..search.coverage });
    let calls = PlannedCalls { coverage, ..PlannedCalls::default() };
    // Those that are not there: why they would be refused again.
    let mut planned = PlannedSites::of_calls(sites, calls);
    fit(&mut planned, &process, &files, existing, &Breakpoints::NotWanted);
    let PlannedSites { sites, mut calls, .. } = planned;
    for site in &sites {
        calls.refuse(site, NOT_PLACED);
    }
    Ok(calls.coverage.unwrap_or_default())
}
