//! The engine's plans as the injector's requests. The two do not know each other; this is all that stands between them.

use crate::args::Optional;
use crate::commands::load::place_name;
use crate::context::Context;
use crate::output::warn;
use anyhow::{Result, bail};
use beeline_engine::{
    AttachPlan, CallContext, Engine, HostFunction, LinkOutcome, PlanFilter, PlannedMap, PlannedProbe,
    PlannedProgram, ProbeKind, RefusedPlace, Target, TargetForm,
};
use beeline_inject::{
    Attached, FileIdentity, HostFunctionRequest, Location, MapRequest, ProbeOutcome, ProbeRequest,
    ProbeState, ProgramRequest, Request, SystemCallRequest, TargetRefused,
};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

/// A request, and the names of the links in it for reports.
pub(crate) struct Bridged {
    /// What the injector is asked for.
    pub(crate) request: Arc<Request>,
    /// Of its links.
    pub(crate) names: Names,
}

/// `OBJECT/LINK` by id of the link, and what the places of those with several are called, by their offset in the file.
#[derive(Clone, Default)]
pub(crate) struct Names(BTreeMap<u32, (String, BTreeMap<u64, String>)>);

impl Names {
    /// Name of a link for a report.
    fn of(&self, link_id: u32) -> String {
        self.0.get(&link_id).map_or_else(|| format!("link {link_id}"), |(name, _)| name.clone())
    }

    /// Name of a place, where the link has others.
    fn place(&self, link_id: u32, location: &Location) -> Option<String> {
        let Location::FileOffset(offset) = location else { return None };
        self.0.get(&link_id)?.1.get(offset).cloned()
    }

    fn of_probes(probes: &[PlannedProbe]) -> Names {
        let places = |probe: &PlannedProbe| {
            let places = probe.target.places.iter().filter(|_| probe.target.places.len() > 1);
            places.map(|place| (place.file_offset, place_name(place))).collect()
        };
        let names = probes.iter().map(|probe| (probe.link_id, (probe.name.clone(), places(probe))));
        Names(names.collect())
    }

    /// Takes those of another request in.
    pub(crate) fn add(&mut self, others: Names) {
        self.0.extend(others.0);
    }
}

impl Bridged {
    /// The plan for a process (or for one that does not exist yet), as a request.
    pub(crate) fn plan(
        context: &Context,
        engine: &Engine,
        filter: &PlanFilter,
        optional: Optional,
    ) -> Result<Bridged> {
        let plan = engine.attach_plan(filter)?;
        for left_out in &plan.left_out {
            crate::output::warn(format_args!("{} is left out: {}", left_out.link, left_out.reason));
        }
        if plan.probes.is_empty() {
            if engine.store().object_names()?.is_empty() {
                return Err(context.nothing_loaded());
            }
            if !filter.objects.is_empty() {
                bail!("object {} has no links that apply here", filter.objects.join(", "));
            }
            bail!("no loaded program has a place to go to; see `beeline load --attach`");
        }
        Ok(Bridged::of(plan, optional))
    }

    /// The plan for a program that is to run, also when nothing has a place to go to.
    pub(crate) fn plan_to_start(context: &Context, engine: &Engine, optional: Optional) -> Result<Bridged> {
        let plan = engine.attach_plan(&PlanFilter::default())?;
        if !plan.probes.is_empty() || engine.store().object_names()?.is_empty() {
            return Bridged::plan(context, engine, &PlanFilter::default(), optional);
        }
        warn(
            "no loaded program has a place to go to (see `beeline link list`); the command runs without probes",
        );
        Ok(Bridged::of(plan, optional))
    }

    /// The plan for a process that is followed, from what the store holds now.
    pub(crate) fn plan_again(
        engine: &Engine,
        pid: i32,
        objects: &[String],
        optional: Optional,
    ) -> Result<Bridged> {
        let filter = PlanFilter { pid: u32::try_from(pid).ok(), objects: objects.to_vec(), links: None };
        Ok(Bridged::of(engine.attach_plan(&filter)?, optional))
    }

    /// What brings a process to what its links are now: those that have ended are taken out, those with another program
    /// get it. No link comes in.
    fn resync(engine: &Engine, attached: &Attached) -> Result<Arc<Request>> {
        let filter = PlanFilter {
            pid: u32::try_from(attached.pid).ok(),
            objects: Vec::new(),
            links: Some(attached.links()),
        };
        Ok(Bridged::of(engine.attach_plan(&filter)?, Optional::default()).request)
    }

    fn of(plan: AttachPlan, optional: Optional) -> Bridged {
        let names = Names::of_probes(&plan.probes);
        let (calls, placed): (Vec<_>, Vec<_>) = plan
            .probes
            .into_iter()
            .partition(|probe| matches!(probe.target.form, TargetForm::SystemCall { .. }));
        let system_calls = calls.into_iter().filter_map(system_call).collect();
        let request = Request {
            store_uuid: plan.store_uuid,
            cpu_slots: plan.cpu_slots,
            cpus: plan.cpus,
            trace: plan.trace,
            task_layout: plan.task_layout,
            maps: plan.maps.into_iter().map(map).collect(),
            programs: plan.programs.into_iter().map(program).collect(),
            probes: placed.into_iter().flat_map(probes).collect(),
            system_calls,
            breakpoints: optional.breakpoint_use(),
            complete: optional.complete,
            alive: plan.alive.map(|alive| alive.into_iter().collect()),
        };
        Bridged { request: Arc::new(request), names }
    }
}

fn map(map: PlannedMap) -> MapRequest {
    MapRequest { id: map.id, name: map.name, file: map.file }
}

fn program(program: PlannedProgram) -> ProgramRequest {
    ProgramRequest {
        id: program.id,
        name: program.name,
        code: program.code,
        relocs: program.relocs,
        maps: program.map_ids,
        needs: program.needs,
        host_functions: program.host_functions.into_iter().map(host_function).collect(),
    }
}

fn host_function(function: HostFunction) -> HostFunctionRequest {
    let place = function.target.places.first();
    HostFunctionRequest {
        location: Location::FileOffset(place.map_or(0, |place| place.file_offset)),
        name: function.name,
        file: file_identity(function.target),
        args: function.args,
        returns: function.returns,
    }
}

fn file_identity(target: Target) -> FileIdentity {
    FileIdentity {
        path: target.path,
        device: target.device,
        inode: target.inode,
        build_id: (!target.build_id.is_empty()).then_some(target.build_id),
    }
}

/// A link at system calls.
fn system_call(probe: PlannedProbe) -> Option<SystemCallRequest> {
    let TargetForm::SystemCall { number, context } = probe.target.form else { return None };
    Some(SystemCallRequest {
        link_id: probe.link_id,
        program_id: probe.prog_id,
        kind: probe_kind(probe.kind),
        context: match context {
            CallContext::Record => beeline_inject::CallContext::Record,
            CallContext::Raw => beeline_inject::CallContext::Raw,
            CallContext::Registers => beeline_inject::CallContext::Registers,
        },
        number,
        cookie: probe.target.places.first().map_or(0, |place| place.cookie),
        pid: probe.pid,
        count_hits: probe.count_hits,
        may_override: probe.may_override,
        shared: Arc::new(probe.shared),
    })
}

fn probe_kind(kind: ProbeKind) -> beeline_inject::ProbeKind {
    match kind {
        ProbeKind::Entry => beeline_inject::ProbeKind::Entry,
        ProbeKind::Return => beeline_inject::ProbeKind::Return,
        ProbeKind::Session => beeline_inject::ProbeKind::Session,
    }
}

/// A probe for each place of a link.
fn probes(probe: PlannedProbe) -> impl Iterator<Item = ProbeRequest> {
    let mut target = probe.target;
    let places = std::mem::take(&mut target.places);
    let file = file_identity(target);
    let shared = Arc::new(probe.shared);
    places.into_iter().map(move |place| ProbeRequest {
        link_id: probe.link_id,
        program_id: probe.prog_id,
        kind: probe_kind(probe.kind),
        file: file.clone(),
        location: Location::FileOffset(place.file_offset),
        cookie: place.cookie,
        semaphore: place.semaphore,
        pid: probe.pid,
        count_hits: probe.count_hits,
        shared: Arc::clone(&shared),
    })
}

/// What came of bringing processes to what their links are.
#[derive(Default)]
pub(crate) struct Resynced {
    /// Those that are there.
    pub(crate) done: Vec<i32>,
    /// Those that are as they were.
    pub(crate) left: Vec<i32>,
}

/// Brings the processes that carry one of these links (`None`: any of this store) to what the links are now. A process
/// that cannot be brought there is said: the links themselves are off or on as they are told.
pub(crate) fn resync(engine: &Engine, links: Option<&[u32]>) -> Resynced {
    let ours = engine.store().uuid();
    let carries = |it: &Attached| {
        it.store_uuid == ours && links.is_none_or(|links| it.links().iter().any(|id| links.contains(id)))
    };
    let mut resynced = Resynced::default();
    for attached in beeline_inject::attached_processes().into_iter().filter(carries) {
        let pid = attached.pid;
        match bring_up_to_date(engine, &attached) {
            Ok(()) => resynced.done.push(pid),
            // It has ended.
            Err(_) if !carries_probes(pid) => {}
            Err(error) => {
                resynced.left.push(pid);
                warn(format_args!("process {pid} is left as it is: {error:#}"));
            }
        }
    }
    resynced
}

/// One process, by its follower where it has one: that brings it to what the whole store is now.
fn bring_up_to_date(engine: &Engine, attached: &Attached) -> Result<()> {
    if beeline_inject::renew_followed(attached.pid, engine.store().uuid())?.is_some() {
        return Ok(());
    }
    let request = Bridged::resync(engine, attached)?;
    let report = beeline_inject::attach(attached.pid, &request)?;
    keep(engine, attached.pid, &request, &report.probes);
    Ok(())
}

fn carries_probes(pid: i32) -> bool {
    beeline_inject::inspect(pid).is_ok_and(|attached| attached.is_some())
}

/// Keeps in the store what became of a request's probes in a process, for `link show`. Whatever prevents that is said, and
/// changes nothing about the probes.
pub(crate) fn keep(engine: &Engine, pid: i32, request: &Request, outcomes: &[ProbeOutcome]) {
    let mut links: BTreeMap<u32, LinkOutcome> = BTreeMap::new();
    for (location, outcome) in locations(request).zip(outcomes) {
        let link = entry(&mut links, outcome.link_id);
        match &outcome.state {
            ProbeState::Placed { .. } | ProbeState::AlreadyInForce => link.in_force += 1,
            ProbeState::NotMapped { .. } => link.not_mapped += 1,
            ProbeState::Refused { reason } => {
                let file_offset = match location {
                    Some(Location::FileOffset(offset)) => Some(*offset),
                    _ => None,
                };
                link.refused.push(RefusedPlace { file_offset, reason: reason.clone() });
            }
        }
    }
    note(engine, pid, links);
}

/// Keeps in the store that a process as a whole was refused.
pub(crate) fn keep_refusal(engine: &Engine, pid: i32, request: &Request, reason: &TargetRefused) {
    let mut links = BTreeMap::new();
    for probe in &request.probes {
        let refused = RefusedPlace { file_offset: None, reason: reason.to_string() };
        entry(&mut links, probe.link_id).refused = vec![refused];
    }
    note(engine, pid, links);
}

fn entry(links: &mut BTreeMap<u32, LinkOutcome>, link_id: u32) -> &mut LinkOutcome {
    links.entry(link_id).or_insert_with(|| LinkOutcome { link_id, ..LinkOutcome::default() })
}

fn note(engine: &Engine, pid: i32, links: BTreeMap<u32, LinkOutcome>) {
    let noted = engine.store().note_process(pid.unsigned_abs(), links.into_values().collect());
    if let Err(error) = noted {
        warn(format_args!("what became of the probes in process {pid} is not kept: {error}"));
    }
}

/// What became of the probes of a request in one process.
#[derive(Default)]
pub(crate) struct Placement {
    /// Placed just now.
    pub(crate) placed: usize,
    /// In force before.
    pub(crate) already: usize,
    /// Files that the process has not mapped.
    pub(crate) not_mapped: Vec<PathBuf>,
    /// Those in the place of which it has mapped another file.
    pub(crate) others: Vec<PathBuf>,
    /// Places that were refused.
    pub(crate) refused: Vec<Refused>,
}

/// A place of a link that was refused.
#[derive(Clone)]
pub(crate) struct Refused {
    /// The link's name.
    pub(crate) link: String,
    /// What the place is called, where the link has others.
    pub(crate) place: Option<String>,
    /// Why.
    pub(crate) reason: String,
}

/// Where each outcome of a request was to be: behind those of probes come those of system calls, which have no place.
fn locations(request: &Request) -> impl Iterator<Item = Option<&Location>> {
    request.probes.iter().map(|probe| Some(&probe.location)).chain(std::iter::repeat(None))
}

impl Placement {
    /// Counts the outcomes of a report.
    pub(crate) fn of(names: &Names, request: &Request, outcomes: &[ProbeOutcome]) -> Placement {
        let mut placement = Placement::default();
        for (location, outcome) in locations(request).zip(outcomes) {
            match &outcome.state {
                ProbeState::Placed { .. } => placement.placed += 1,
                ProbeState::AlreadyInForce => placement.already += 1,
                ProbeState::NotMapped { file, .. } if placement.not_mapped.contains(file) => {}
                ProbeState::NotMapped { file, other } => {
                    placement.not_mapped.push(file.clone());
                    placement.others.extend(other.then(|| file.clone()));
                }
                ProbeState::Refused { reason } => {
                    let place = location.and_then(|location| names.place(outcome.link_id, location));
                    let link = names.of(outcome.link_id);
                    placement.refused.push(Refused { link, place, reason: reason.clone() });
                }
            }
        }
        placement
    }

    /// Probes that run at a hit.
    pub(crate) fn in_force(&self) -> usize {
        self.placed + self.already
    }
}
