//! What has to go into a process: plain data and descriptors for an injector.

use crate::{Engine, EngineError, LinkEntry, ProgramEntry};
use beeline_abi::code::{ProgramNeeds, Reloc};
use beeline_abi::map::{MapShape, MapType};
use beeline_abi::process::TaskLayout;
use beeline_store::{HostFunction, LinkFile, MapEntry, ProbeKind, StoreError, Target};
use rustix::io::Errno;
use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::OwnedFd;

/// Which links are meant.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct PlanFilter {
    /// The process, where it is known: links of other processes are left out.
    pub pid: Option<u32>,
    /// Only links of these objects; empty means all.
    pub objects: Vec<String>,
    /// Only these links, by id; `None` means all.
    pub links: Option<Vec<u32>>,
}

/// Everything that an injector needs, in order of id.
#[derive(Debug)]
pub struct AttachPlan {
    /// The store's identity.
    pub store_uuid: [u64; 2],
    /// Possible CPUs: entries in the file of CPU slots.
    pub cpus: u32,
    /// The file of CPU slots.
    pub cpu_slots: OwnedFd,
    /// The file of the `trace_printk` log.
    pub trace: OwnedFd,
    /// How the programs see a `task_struct`.
    pub task_layout: TaskLayout,
    /// Maps that the programs use.
    pub maps: Vec<PlannedMap>,
    /// The programs of the probes, and those that they can tail-call.
    pub programs: Vec<PlannedProgram>,
    /// The links.
    pub probes: Vec<PlannedProbe>,
    /// Links that are left out, and why.
    pub left_out: Vec<LeftOut>,
    /// Ids of all links of the store: others have ended. `None` when not all of them could be read.
    pub alive: Option<Vec<u32>>,
}

/// A map of the plan.
#[derive(Debug)]
pub struct PlannedMap {
    /// Its id.
    pub id: u32,
    /// Its name.
    pub name: String,
    /// What it is.
    pub shape: MapShape,
    /// Its file.
    pub file: OwnedFd,
}

/// A program of the plan.
#[derive(Clone, Debug)]
pub struct PlannedProgram {
    /// Its id.
    pub id: u32,
    /// Its name.
    pub name: String,
    /// Machine code, its entry first.
    pub code: Vec<u8>,
    /// What has to be filled in.
    pub relocs: Vec<Reloc>,
    /// Map ids by the index that relocations use.
    pub map_ids: Vec<u32>,
    /// What the stub must provide.
    pub needs: ProgramNeeds,
    /// Functions of the process that it calls, by the index that relocations use.
    pub host_functions: Vec<HostFunction>,
}

/// A probe of the plan.
#[derive(Debug)]
pub struct PlannedProbe {
    /// The link's id.
    pub link_id: u32,
    /// `OBJECT/LINK`, for reports.
    pub name: String,
    /// The program's id.
    pub prog_id: u32,
    /// When it runs.
    pub kind: ProbeKind,
    /// Where.
    pub target: Target,
    /// Only in the process with this id.
    pub pid: Option<u32>,
    /// Hits are counted.
    pub count_hits: bool,
    /// Its program may skip and change system calls.
    pub may_override: bool,
    /// The link's file; its first page is the shared one.
    pub shared: OwnedFd,
}

/// A link that cannot go into a process together with the others.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LeftOut {
    /// `OBJECT/LINK`.
    pub link: String,
    /// Why.
    pub reason: String,
}

impl Engine {
    /// Collects what has to go into a process.
    ///
    /// # Errors
    /// When the store cannot be read, or what a link needs is damaged.
    pub fn attach_plan(&self, filter: &PlanFilter) -> Result<AttachPlan, EngineError> {
        /// Loads and unloads by others that may come between two of our looks at the store.
        const RETRIES_MAX: u32 = 20;
        for _ in 0..RETRIES_MAX {
            match self.attach_plan_once(filter) {
                Err(EngineError::NoProgram { .. } | EngineError::NoMap { .. }) => {}
                result => return result,
            }
        }
        self.attach_plan_once(filter)
    }

    fn attach_plan_once(&self, filter: &PlanFilter) -> Result<AttachPlan, EngineError> {
        let (links, task_layout, left_out) = self.selected_links(filter)?;
        let programs = by_id(self.programs()?.items, |entry| entry.program.id);
        let maps = by_id(self.maps()?.maps, |entry| entry.file.id());
        let mut reach =
            Reach { programs: &programs, maps: &maps, found: BTreeSet::new(), used: BTreeSet::new() };
        for entry in &links {
            reach.program(entry.file.link.prog_id)?;
        }
        let (found, used) = (reach.found, reach.used);
        let store = self.store();
        Ok(AttachPlan {
            store_uuid: store.uuid(),
            cpus: store.cpus(),
            cpu_slots: store.cpu_slots()?,
            trace: store.trace_log()?,
            task_layout,
            maps: used.iter().map(|id| plan_map(&maps[id])).collect::<Result<_, _>>()?,
            programs: found.iter().map(|id| plan_program(&programs[id])).collect(),
            probes: links.iter().map(plan_probe).collect::<Result<_, _>>()?,
            left_out,
            alive: self.alive()?,
        })
    }

    fn alive(&self) -> Result<Option<Vec<u32>>, EngineError> {
        let links = self.links()?;
        let ids = links.items.iter().map(|entry| entry.file.link.id).collect();
        Ok(links.damaged.is_empty().then_some(ids))
    }

    /// How a program sees a `task_struct`: as its object was relocated.
    pub(crate) fn task_layout_of(&self, program: u32) -> Result<TaskLayout, EngineError> {
        let programs = self.programs()?.items;
        let object = programs.into_iter().find(|entry| entry.program.id == program).map(|entry| entry.object);
        let objects = self.objects()?.items;
        Ok(objects
            .into_iter()
            .find(|info| Some(&info.name) == object.as_ref())
            .map_or(NO_TASK, |info| info.task_layout))
    }

    /// The links that the filter lets through, and the one view of a `task_struct` that they share: a process has one.
    fn selected_links(
        &self,
        filter: &PlanFilter,
    ) -> Result<(Vec<LinkEntry>, TaskLayout, Vec<LeftOut>), EngineError> {
        let mut layouts = BTreeMap::new();
        for info in self.objects()?.items {
            layouts.insert(info.name, info.task_layout);
        }
        let mut chosen: Option<(String, TaskLayout)> = None;
        let (mut links, mut left_out) = (Vec::new(), Vec::new());
        for entry in self.links()?.items {
            let other_process = entry.file.link.pid.is_some() && entry.file.link.pid != filter.pid;
            let other_object = !filter.objects.is_empty() && !filter.objects.contains(&entry.object);
            let other_link = filter.links.as_ref().is_some_and(|links| !links.contains(&entry.file.link.id));
            if other_process || other_object || other_link {
                continue;
            }
            let Some(layout) = layouts.get(&entry.object) else { continue };
            match &chosen {
                Some((first, other)) if other != layout => left_out.push(LeftOut {
                    link: format!("{}/{}", entry.object, entry.file.link.name),
                    reason: format!(
                        "{} was relocated against another kernel's BTF than {first}",
                        entry.object
                    ),
                }),
                Some(_) => links.push(entry),
                None => {
                    chosen = Some((entry.object.clone(), *layout));
                    links.push(entry);
                }
            }
        }
        Ok((links, chosen.map_or(NO_TASK, |(_, layout)| layout), left_out))
    }
}

/// A task of which nothing is known.
const NO_TASK: TaskLayout = beeline_store::NO_TASK_LAYOUT;

type ProgramsById = BTreeMap<u32, ProgramEntry>;
type MapsById = BTreeMap<u32, MapEntry>;

/// Programs and maps that can be reached from the probes: a program's maps, and the programs in its prog arrays, or that may be put
/// there while they run.
pub(crate) struct Reach<'a> {
    programs: &'a ProgramsById,
    maps: &'a MapsById,
    found: BTreeSet<u32>,
    used: BTreeSet<u32>,
}

impl Reach<'_> {
    /// What can be reached from one program.
    pub(crate) fn from_program(engine: &Engine, id: u32) -> Result<(ProgramsById, MapsById), EngineError> {
        let mut programs = by_id(engine.programs()?.items, |entry| entry.program.id);
        let mut maps = by_id(engine.maps()?.maps, |entry| entry.file.id());
        let mut reach =
            Reach { programs: &programs, maps: &maps, found: BTreeSet::new(), used: BTreeSet::new() };
        reach.program(id)?;
        let (found, used) = (reach.found, reach.used);
        programs.retain(|id, _| found.contains(id));
        maps.retain(|id, _| used.contains(id));
        Ok((programs, maps))
    }

    fn program(&mut self, first: u32) -> Result<(), EngineError> {
        let mut ahead = vec![first];
        while let Some(id) = ahead.pop() {
            if !self.found.insert(id) {
                continue;
            }
            let entry = self.programs.get(&id).ok_or(EngineError::NoProgram { id })?;
            for &map in &entry.program.map_ids {
                ahead.extend(self.map(map, entry.program.prog_type)?);
            }
        }
        Ok(())
    }

    /// Adds a map; of a prog array the programs in it, and those of its objects that fit into it: a process that has them goes on in
    /// them as soon as somebody puts them there.
    fn map(&mut self, id: u32, prog_type: u32) -> Result<Vec<u32>, EngineError> {
        let entry = self.maps.get(&id).ok_or(EngineError::NoMap { id })?;
        if !self.used.insert(id) || entry.file.shape().map_type != MapType::PROG_ARRAY {
            return Ok(Vec::new());
        }
        let values = (0..entry.file.shape().max_entries)
            .filter_map(|index| entry.file.lookup(&index.to_ne_bytes()).ok().flatten());
        let ids = values.filter_map(|value| Some(u32::from_ne_bytes(value.get(..4)?.try_into().ok()?)));
        // What somebody put there by hand may be gone by now: a tail call to it fails, as it should.
        let inside = ids.filter(|id| self.programs.contains_key(id));
        let fits =
            |it: &ProgramEntry| it.program.prog_type == prog_type && entry.objects.contains(&it.object);
        let fitting = self.programs.iter().filter(|(_, it)| fits(it)).map(|(&id, _)| id);
        Ok(inside.chain(fitting).collect())
    }
}

fn by_id<T>(items: Vec<T>, id: impl Fn(&T) -> u32) -> BTreeMap<u32, T> {
    items.into_iter().map(|item| (id(&item), item)).collect()
}

fn plan_map(entry: &MapEntry) -> Result<PlannedMap, EngineError> {
    let file = entry.file.descriptor().map_err(descriptors)?;
    Ok(PlannedMap { id: entry.file.id(), name: entry.name.clone(), shape: entry.file.shape(), file })
}

fn plan_program(entry: &ProgramEntry) -> PlannedProgram {
    let program = entry.program.clone();
    PlannedProgram {
        id: program.id,
        name: program.name,
        code: program.code,
        relocs: program.relocs,
        map_ids: program.map_ids,
        needs: program.needs,
        host_functions: program.host_functions,
    }
}

fn plan_probe(entry: &LinkEntry) -> Result<PlannedProbe, EngineError> {
    let link = entry.file.link.clone();
    Ok(PlannedProbe {
        link_id: link.id,
        name: format!("{}/{}", entry.object, link.name),
        prog_id: link.prog_id,
        kind: link.kind,
        target: link.target,
        pid: link.pid,
        count_hits: link.count_hits,
        may_override: link.may_override,
        shared: shared(&entry.file)?,
    })
}

fn shared(file: &LinkFile) -> Result<OwnedFd, EngineError> {
    file.descriptor().map_err(descriptors)
}

fn descriptors(error: std::io::Error) -> EngineError {
    let source = Errno::from_io_error(&error).unwrap_or(Errno::MFILE);
    EngineError::Store(StoreError::Io {
        action: "duplicate the descriptor",
        path: "a store file".into(),
        source,
    })
}
