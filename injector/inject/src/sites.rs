//! Where the probes of a request go in one process: decided before it is stopped.

use crate::agent::Own;
use crate::bell::FollowerBell;
use crate::dispatch::LetThrough;
use crate::existing::{Existing, is_call_site};
use crate::files::{MappedFile, MappedFiles, opened};
use crate::fit::fit;
use crate::report::{ProbeOutcome, ProbeState};
use crate::request::{ProbeKind, ProbeRequest, ProgramRequest, Request};
use crate::start::loader_hook;
use crate::system_calls::{CallsGiven, PlannedCall, PlannedCalls};
use beeline_abi::link::LinkRuntime;
use beeline_abi::thread::SESSIONS;
use beeline_remote::Process;
use beeline_site::{
    BREAKPOINT_WINDOW, Binary, Refusal, Room, SHORT_WINDOW, SitePlan, WINDOW_MIN, hides_unwinder, lacks_room,
    plan, plan_breakpoint, plan_hook, plan_return, plan_return_breakpoint, plan_returns, resolve,
    unwinder_entries,
};
use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::path::Path;

/// A place, and the probes that go there.
#[derive(Debug)]
pub(crate) struct PlannedSite {
    pub(crate) address: u64,
    pub(crate) plan: SitePlan,
    /// Indexes of the new probes in the request.
    pub(crate) probes: Vec<usize>,
    /// Index of the site in the process's list, when it is patched already.
    pub(crate) existing: Option<usize>,
    /// What the agent does here for itself.
    pub(crate) own: Option<Own>,
    /// Where the long jump of a new short site goes.
    pub(crate) hole: Option<PlannedHole>,
    /// The system call that it is there for.
    pub(crate) call: Option<PlannedCall>,
}

impl PlannedSite {
    pub(crate) fn new(address: u64, plan: SitePlan) -> PlannedSite {
        PlannedSite { address, plan, probes: Vec::new(), existing: None, own: None, hole: None, call: None }
    }

    /// The entry of the function whose return is probed here, where that is at a `ret`; else the place itself.
    pub(crate) fn function(&self) -> u64 {
        self.plan.leave.map_or(self.address, |leave| {
            self.address.wrapping_sub(self.plan.vaddr.wrapping_sub(leave.function))
        })
    }

    /// Its jump has two bytes.
    pub(crate) fn is_short(&self) -> bool {
        usize::from(self.plan.jump_len) == SHORT_WINDOW
    }

    /// It is an `int3`.
    pub(crate) fn is_breakpoint(&self) -> bool {
        usize::from(self.plan.jump_len) == BREAKPOINT_WINDOW
    }
}

/// A hole in the process.
#[derive(Clone, Debug)]
pub(crate) struct PlannedHole {
    /// The first byte that changes.
    pub(crate) address: u64,
    /// What stands there: as many bytes as change. The long jump is the last five.
    pub(crate) original: Vec<u8>,
    /// The window that gives the room, if it is no padding.
    pub(crate) neighbour: Option<SitePlan>,
}

/// Whether a place without room for a jump gets a breakpoint in this process.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Breakpoints {
    /// Nobody has asked for it.
    NotWanted,
    /// The process cannot have any, and why.
    Impossible(String),
    /// Where no jump fits.
    Wanted,
    /// At each new place, for tests.
    Everywhere,
}

impl Breakpoints {
    /// There can be one.
    pub(crate) fn are_possible(&self) -> bool {
        matches!(self, Breakpoints::Wanted | Breakpoints::Everywhere)
    }

    /// Why a place is refused for which there is room for a breakpoint only.
    pub(crate) fn refuse(&self, reason: &str) -> String {
        match self {
            Breakpoints::Impossible(why) => format!("{reason}; no breakpoint is possible: {why}"),
            _ => format!("{reason}; --breakpoints puts an int3 there"),
        }
    }
}

/// The probes of a request, sorted out.
#[derive(Debug)]
pub(crate) struct PlannedSites {
    /// In the order of their addresses.
    pub(crate) sites: Vec<PlannedSite>,
    /// Indexes in the process's list of sites that are restored: every link there has ended.
    pub(crate) restored: Vec<usize>,
    /// The programs at system calls.
    pub(crate) calls: PlannedCalls,
    /// What became of each probe so far; `Placed` with no address means that nothing is known against it.
    states: Vec<ProbeState>,
}

impl PlannedSites {
    /// Looks at every probe. `unusable` tells why a program cannot be linked.
    pub(crate) fn plan(
        process: &Process,
        files: &MappedFiles,
        request: &Request,
        existing: Option<&Existing>,
        bell: Option<&FollowerBell>,
        (breakpoints, guarded, let_through): (&Breakpoints, bool, Option<&LetThrough>),
        unusable: impl Fn(u32) -> Option<String>,
    ) -> PlannedSites {
        let in_force: HashSet<(u32, u64, u32)> =
            existing.iter().flat_map(|existing| existing.in_force()).collect();
        let mut sites: BTreeMap<u64, PlannedSite> = BTreeMap::new();
        let mut states = Vec::with_capacity(request.probes.len());
        for (index, probe) in request.probes.iter().enumerate() {
            // With another program it is replaced.
            let is_in_force = |address| in_force.contains(&(probe.link_id, address, probe.program_id));
            let planner = Planner { existing, breakpoints, overrides: overrides(request, probe) };
            let state = match places(process, files, probe, is_in_force, &planner) {
                Ok(places) => match unusable(probe.program_id) {
                    Some(reason) => ProbeState::Refused { reason },
                    None => enter(&mut sites, places, index),
                },
                Err(state) => state,
            };
            states.push(state);
        }
        let is_return = |site: &PlannedSite| {
            site.probes.iter().any(|&index| request.probes[index].kind != ProbeKind::Entry)
        };
        // An unwinder can be loaded when return probes are in force already.
        let has_returns =
            |it: &Existing| it.links.iter().flatten().any(|it| it.flags & LinkRuntime::RETURN != 0);
        if sites.values().any(is_return)
            && let Some(reason) = hidden_unwinder(process, files)
        {
            leave_out_returns(&mut sites, &mut states, request, &reason);
        }
        if sites.values().any(is_return) || existing.is_some_and(has_returns) {
            enter_unwinders(&mut sites, process, files, existing);
        }
        if !sites.is_empty() {
            enter_seccomp(&mut sites, process, files, existing);
        }
        if let Some(bell) = bell
            && (existing.is_some() || !sites.is_empty() || may_load(&states))
        {
            enter_hook(&mut sites, process, files, existing, bell);
        }
        let restored =
            existing.map_or_else(Vec::new, |it| leave_ended(&mut sites, process, files, request, it));
        let at_calls = |id: u32| {
            let calls_hosts = |it: &&ProgramRequest| it.id == id && !it.host_functions.is_empty();
            let program = request.programs.iter().find(calls_hosts)?;
            Some(format!("program {} calls host functions: it cannot run at system calls", program.name))
        };
        let not_at_calls = |id| at_calls(id).or_else(|| unusable(id));
        let given = CallsGiven { request, existing, guarded, let_through };
        let calls = PlannedCalls::plan(&mut sites, process, files, given, &not_at_calls);
        let mut planned = PlannedSites { sites: sites.into_values().collect(), restored, calls, states };
        planned.find_existing(existing);
        planned.leave_out_sessions(request, existing);
        fit(&mut planned, process, files, existing, breakpoints);
        planned
    }

    /// Places that are to get breakpoints, or have.
    pub(crate) fn breakpoints(&self) -> impl Iterator<Item = u64> {
        self.sites.iter().filter(|site| site.is_breakpoint()).map(|site| site.address)
    }

    /// Those of system calls alone.
    pub(crate) fn of_calls(sites: BTreeMap<u64, PlannedSite>, calls: PlannedCalls) -> PlannedSites {
        let sites = sites.into_values().collect();
        PlannedSites { sites, restored: Vec::new(), calls, states: Vec::new() }
    }

    fn find_existing(&mut self, existing: Option<&Existing>) {
        let Some(existing) = existing else { return };
        let mut other = Vec::new();
        for site in &mut self.sites {
            site.existing = existing.sites.iter().position(|known| {
                known.address == site.address && known.link_count != 0 && !is_call_site(known)
            });
            let known = site.existing.and_then(|index| existing.left_by(index));
            if site.existing.is_some() && known.is_some() != site.plan.leave.is_some() {
                other.push(site.address);
            }
        }
        for address in other {
            self.refuse(address, &shared_window(address));
        }
    }

    /// Refuses sessions beyond those that a site has room for; the rest of what goes there is served.
    fn leave_out_sessions(&mut self, request: &Request, existing: Option<&Existing>) {
        for site in &mut self.sites {
            let links = existing.zip(site.existing).map_or(&[][..], |(it, index)| &it.links[index]);
            let in_force =
                links.iter().filter(|it| it.flags & LinkRuntime::SESSION != 0 && !request.is_over(it));
            let mut sessions: BTreeSet<u32> = in_force.map(|link| link.link_id).collect();
            site.probes.retain(|&index| {
                let probe = &request.probes[index];
                let fits = probe.kind != ProbeKind::Session
                    || sessions.contains(&probe.link_id)
                    || sessions.len() < SESSIONS && sessions.insert(probe.link_id);
                if !fits {
                    let reason = format!("{SESSIONS} sessions are at {:#x} already", site.address);
                    self.states[index] = ProbeState::Refused { reason };
                }
                fits
            });
        }
    }

    /// Gives a site up.
    pub(crate) fn refuse(&mut self, address: u64, reason: &str) {
        let (states, calls) = (&mut self.states, &mut self.calls);
        let mut returns = BTreeSet::new();
        self.sites.retain(|site| {
            if site.address == address {
                calls.refuse(site, reason);
                for &probe in &site.probes {
                    states[probe] = ProbeState::Refused { reason: reason.to_owned() };
                }
                if site.plan.leave.is_some() {
                    returns.extend(site.probes.iter().copied());
                }
            }
            site.address != address
        });
        // A return that is not seen at one of the function's `ret`s is not seen at the others: what is counted is right, or nothing.
        for site in &mut self.sites {
            site.probes.retain(|probe| site.plan.leave.is_none() || !returns.contains(probe));
        }
        self.sites
            .retain(|site| site.plan.leave.is_none() || !site.probes.is_empty() || site.existing.is_some());
    }

    /// What became of each probe, when all sites that are left are patched.
    pub(crate) fn outcomes(&self, request: &Request) -> Vec<ProbeOutcome> {
        let mut places: Vec<Vec<u64>> = vec![Vec::new(); request.probes.len()];
        for site in &self.sites {
            for &probe in &site.probes {
                places[probe].push(site.address);
            }
        }
        let outcome = |((index, probe), addresses): ((usize, &ProbeRequest), Vec<u64>)| {
            // A probe that is placed once and refused elsewhere is in force.
            let state = if addresses.is_empty() {
                self.states[index].clone()
            } else {
                ProbeState::Placed { addresses }
            };
            ProbeOutcome { link_id: probe.link_id, state }
        };
        let probes = request.probes.iter().enumerate().zip(places).map(outcome);
        probes.chain(self.calls.outcomes(request)).collect()
    }
}

fn enter(sites: &mut BTreeMap<u64, PlannedSite>, places: Vec<(u64, SitePlan)>, probe: usize) -> ProbeState {
    let other = places.iter().find(|(address, plan)| {
        sites.get(address).is_some_and(|site| site.plan.leave.is_some() != plan.leave.is_some())
    });
    if let Some((address, _)) = other {
        return ProbeState::Refused { reason: shared_window(*address) };
    }
    for (address, plan) in places {
        sites.entry(address).or_insert_with(|| PlannedSite::new(address, plan)).probes.push(probe);
    }
    ProbeState::Placed { addresses: Vec::new() }
}

/// Why a `ret` and what stands before it cannot both have a probe.
fn shared_window(address: u64) -> String {
    format!("the window at {address:#x} is needed for a probe at a `ret` and for one before it")
}

/// Functions through which filters are installed, by their symbols.
const SECCOMP: [(&str, Own); 5] = [
    ("prctl", Own::Prctl),
    ("syscall", Own::Syscall),
    // Go 1.18 to 1.22, 1.23, later.
    ("runtime/internal/syscall.Syscall6", Own::GoSyscall),
    ("internal/runtime/syscall.Syscall6", Own::GoSyscall),
    ("internal/runtime/syscall/linux.Syscall6", Own::GoSyscall),
];

/// Enters the functions through which libraries and Go programs install seccomp filters.
fn enter_seccomp(
    sites: &mut BTreeMap<u64, PlannedSite>,
    process: &Process,
    files: &MappedFiles,
    existing: Option<&Existing>,
) {
    const AT_ENTRY: u64 = 9;
    let entry = process.auxiliary(AT_ENTRY).ok().flatten().unwrap_or(0);
    for file in files.iter() {
        let is_program = file.mappings.iter().any(|mapping| mapping.holds(entry));
        if !is_program && !file.is_libc() {
            continue;
        }
        let Ok(binary) = file.binary(process) else { continue };
        if is_program && binary.interpreter().is_some() && !binary.is_go() {
            continue;
        }
        for (name, own) in SECCOMP {
            for symbol in binary.symbols().named(name) {
                if let Ok(plan) = plan(binary, symbol.vaddr) {
                    enter_own(sites, file, &plan, own, existing);
                }
            }
        }
    }
}

/// One of the probed files is not mapped and can be loaded later: it is no program.
fn may_load(states: &[ProbeState]) -> bool {
    let is_program = |file: &Path| opened(file.to_owned()).is_ok_and(|binary| binary.is_program());
    let absent = states.iter().filter_map(|state| match state {
        ProbeState::NotMapped { file, .. } => Some(file.as_path()),
        _ => None,
    });
    let files: BTreeSet<&Path> = absent.collect();
    !files.into_iter().all(is_program)
}

/// Enters the function that the loader calls when libraries come and go, unless it rings this bell already.
fn enter_hook(
    sites: &mut BTreeMap<u64, PlannedSite>,
    process: &Process,
    files: &MappedFiles,
    existing: Option<&Existing>,
    bell: &FollowerBell,
) {
    let Some(hook) = loader_hook(process, files) else { return };
    let known = existing.iter().flat_map(|it| it.sites.iter().zip(&it.links));
    let mut links = known.filter(|(site, _)| site.address == hook.address).flat_map(|(_, links)| links);
    if links.any(|link| link.link_id == LinkRuntime::OWN && bell.is_at(process, link.shared)) {
        return;
    }
    if let Some(plan) = planned_at(process, files, hook.address, plan_hook) {
        let site = sites.entry(hook.address).or_insert_with(|| PlannedSite::new(hook.address, plan));
        site.own = Some(Own::Libraries);
    }
}

/// Why no return can be probed in the process: an exception would meet a return point, and nothing can be planted where it is thrown.
fn hidden_unwinder(process: &Process, files: &MappedFiles) -> Option<String> {
    let hides = |file: &&MappedFile| file.binary(process).is_ok_and(hides_unwinder);
    let file = files.iter().find(hides)?;
    let name = &file.mappings.first()?.name;
    Some(format!(
        "{name} throws exceptions with an unwinder of its own that has no name: they would not pass"
    ))
}

/// Refuses the return probes; the rest of what goes to the same sites is served.
fn leave_out_returns(
    sites: &mut BTreeMap<u64, PlannedSite>,
    states: &mut [ProbeState],
    request: &Request,
    reason: &str,
) {
    for site in sites.values_mut() {
        site.probes.retain(|&index| {
            let is_entry = request.probes[index].kind == ProbeKind::Entry;
            if !is_entry {
                states[index] = ProbeState::Refused { reason: reason.to_owned() };
            }
            is_entry
        });
    }
    sites.retain(|_, site| !site.probes.is_empty());
}

/// Enters the unwinders of all mapped files that the agent does not stand at yet.
fn enter_unwinders(
    sites: &mut BTreeMap<u64, PlannedSite>,
    process: &Process,
    files: &MappedFiles,
    existing: Option<&Existing>,
) {
    for file in files.iter() {
        let Ok(binary) = file.binary(process) else { continue };
        for plan in unwinder_entries(binary) {
            enter_own(sites, file, &plan, Own::Returns, existing);
        }
    }
}

/// Enters a site for the agent itself wherever it does not stand yet.
fn enter_own(
    sites: &mut BTreeMap<u64, PlannedSite>,
    file: &MappedFile,
    plan: &SitePlan,
    own: Own,
    existing: Option<&Existing>,
) {
    let stands_at = |address: u64| {
        existing.is_some_and(|existing| {
            let known = existing.sites.iter().zip(&existing.links);
            known
                .filter(|(site, _)| site.address == address)
                .any(|(_, links)| links.iter().any(|link| link.link_id == LinkRuntime::OWN))
        })
    };
    for address in file.addresses(plan.file_offset) {
        if !stands_at(address) {
            let site = sites.entry(address).or_insert_with(|| PlannedSite::new(address, plan.clone()));
            site.own = Some(own);
        }
    }
}

/// Sites at which links have ended: those that keep others are made anew without them, the rest are to be restored. What
/// cannot be planned stays as it is: its link is off.
fn leave_ended(
    sites: &mut BTreeMap<u64, PlannedSite>,
    process: &Process,
    files: &MappedFiles,
    request: &Request,
    existing: &Existing,
) -> Vec<usize> {
    let mut restored = Vec::new();
    for (index, (site, links)) in existing.sites.iter().zip(&existing.links).enumerate() {
        // The hole of a short jump would have to be given back as well: detach does that.
        let is_plain = site.link_count != 0 && site.len as usize >= WINDOW_MIN && !is_call_site(site);
        if !is_plain || !links.iter().any(|link| request.is_over(link)) || sites.contains_key(&site.address) {
            continue;
        }
        if links.iter().all(|link| request.is_over(link)) {
            restored.push(index);
        } else if let Some(plan) = planned_again(process, files, existing, index) {
            sites.insert(site.address, PlannedSite::new(site.address, plan));
        }
    }
    restored
}

/// The plan of the window of a site that is in place.
fn planned_again(
    process: &Process,
    files: &MappedFiles,
    existing: &Existing,
    index: usize,
) -> Option<SitePlan> {
    let address = existing.sites[index].address;
    let Some(function) = existing.left_by(index) else {
        return planned_at(process, files, address, plan);
    };
    let plans = planned_at(process, files, function, |binary, vaddr| plan_returns(binary, vaddr, Room::Any))?;
    plans.into_iter().find(|plan| {
        plan.leave
            .is_some_and(|leave| plan.vaddr.wrapping_sub(leave.function) == address.wrapping_sub(function))
    })
}

fn planned_at<P>(
    process: &Process,
    files: &MappedFiles,
    address: u64,
    plan: fn(&Binary, u64) -> Result<P, Refusal>,
) -> Option<P> {
    let file = files.at(address)?;
    let mapping = file.mappings.iter().find(|mapping| mapping.holds(address))?;
    let binary = file.binary(process).ok()?;
    plan(binary, binary.vaddr_of(address - mapping.start + mapping.offset)?).ok()
}

/// The probe's program may have the function skipped.
fn overrides(request: &Request, probe: &ProbeRequest) -> bool {
    request.programs.iter().any(|program| program.id == probe.program_id && program.overrides())
}

/// The addresses of a probe in the process at which it is not in force yet, each with the plan of its window.
fn places(
    process: &Process,
    files: &MappedFiles,
    probe: &ProbeRequest,
    is_in_force: impl Fn(u64) -> bool,
    planner: &Planner<'_>,
) -> Result<Vec<(u64, SitePlan)>, ProbeState> {
    let matching = files.matching(&probe.file, process);
    if matching.is_empty() {
        let file = probe.file.path.clone();
        return Err(ProbeState::NotMapped { other: files.has_name(&file), file });
    }
    let (mut all, mut in_force) = (Vec::new(), false);
    for file in matching {
        let refused = |reason| ProbeState::Refused { reason };
        file.check(&probe.file, process).map_err(refused)?;
        let (resolved, addresses) = addresses_in(process, file, probe).map_err(refused)?;
        let known = addresses.len();
        let new: Vec<u64> = addresses.into_iter().filter(|&address| !is_in_force(address)).collect();
        in_force |= new.len() < known;
        if new.is_empty() {
            continue;
        }
        for plan in planner.plan(process, file, probe, (resolved, &new)).map_err(refused)? {
            // Windows at a function's `ret`s lie behind its entry.
            let distance = plan.vaddr.wrapping_sub(resolved);
            let places = new.iter().map(|address| address.wrapping_add(distance));
            let (carried, free): (Vec<u64>, Vec<u64>) = places.partition(|&address| is_in_force(address));
            in_force |= !carried.is_empty();
            all.extend(free.into_iter().map(|address| (address, plan.clone())));
        }
    }
    if all.is_empty() && in_force {
        return Err(ProbeState::AlreadyInForce);
    }
    if all.is_empty() {
        let reason = "that part of the file is not mapped executable".to_owned();
        return Err(ProbeState::Refused { reason });
    }
    Ok(all)
}

/// Link-time address of a probe in a file, and where it is mapped.
fn addresses_in(
    process: &Process,
    file: &MappedFile,
    probe: &ProbeRequest,
) -> Result<(u64, Vec<u64>), String> {
    let binary = file.binary(process)?;
    let resolved = resolve(binary, &probe.location).map_err(|error| error.to_string())?;
    Ok((resolved.vaddr, file.addresses(resolved.file_offset)))
}

/// How the window of a probe is planned.
struct Planner<'a> {
    existing: Option<&'a Existing>,
    breakpoints: &'a Breakpoints,
    /// The probe's program may have the function skipped.
    overrides: bool,
}

impl Planner<'_> {
    /// Plans the windows of a probe at a link-time address that lies at these addresses in the process: several where a return is
    /// probed at the `ret`s of a function.
    fn plan(
        &self,
        process: &Process,
        file: &MappedFile,
        probe: &ProbeRequest,
        (vaddr, addresses): (u64, &[u64]),
    ) -> Result<Vec<SitePlan>, String> {
        let binary = file.binary(process)?;
        let plans = self.windows(binary, probe, vaddr, addresses)?;
        match (self.overrides, probe.kind) {
            (true, ProbeKind::Return | ProbeKind::Session) => {
                Err("the program skips functions: it can run at their entry only".to_owned())
            }
            (true, _) if !plans.iter().all(|plan| plan.is_entry) => {
                Err(format!("the program skips functions, and {vaddr:#x} is not the entry of one"))
            }
            _ => Ok(plans),
        }
    }

    fn windows(
        &self,
        binary: &Binary,
        probe: &ProbeRequest,
        vaddr: u64,
        addresses: &[u64],
    ) -> Result<Vec<SitePlan>, String> {
        // What stands there stays.
        let has = |found: fn(&Existing, u64) -> bool, distance: u64| {
            let here =
                |&address: &u64| self.existing.is_some_and(|it| found(it, address.wrapping_add(distance)));
            addresses.iter().any(here)
        };
        let everywhere = *self.breakpoints == Breakpoints::Everywhere && !has(Existing::has_site, 0);
        if everywhere || has(Existing::has_breakpoint, 0) {
            return planned(binary, probe.kind, vaddr, Room::Breakpoint)
                .map_err(|refusal| refusal.to_string());
        }
        let refusal = match planned(binary, probe.kind, vaddr, Room::Jump) {
            Ok(plans) => return Ok(plans),
            Err(refusal) if !lacks_room(&refusal) => return Err(refusal.to_string()),
            Err(refusal) => refusal,
        };
        let plans = planned(binary, probe.kind, vaddr, Room::Any).map_err(|_| refusal.to_string())?;
        let stands = |plan: &SitePlan| has(Existing::has_breakpoint, plan.vaddr.wrapping_sub(vaddr));
        let mut breakpoints = plans.iter().filter(|plan| usize::from(plan.jump_len) == BREAKPOINT_WINDOW);
        if self.breakpoints.are_possible() || breakpoints.all(stands) {
            return Ok(plans);
        }
        Err(self.breakpoints.refuse(&refusal.to_string()))
    }
}

fn planned(binary: &Binary, kind: ProbeKind, vaddr: u64, room: Room) -> Result<Vec<SitePlan>, Refusal> {
    let plan: Plan = match (kind, room) {
        (ProbeKind::Return, _) => return plan_returns(binary, vaddr, room),
        (ProbeKind::Entry, Room::Jump) => plan,
        (ProbeKind::Entry, _) => plan_breakpoint,
        (ProbeKind::Session, Room::Jump) => plan_return,
        (ProbeKind::Session, _) => plan_return_breakpoint,
    };
    plan(binary, vaddr).map(|plan| vec![plan])
}

type Plan = fn(&Binary, u64) -> Result<SitePlan, Refusal>;
