//! Everything that one attach adds to a process, made outside of it: addresses, contents, patches.
//!
//! ```text
//! home area (first attach):    image text | image data | gap | block, threads, task, tables | fork page
//! table area (later attach):   tables
//! arena area, for each group of sites within reach:   programs | stubs | jump slots
//! guard area (with the first breakpoint):   the guard's image | its block
//! dispatch area (with --complete):   the block of dispatched calls
//! shared area:   guard page | CPU slots, trace (first attach) | maps | links
//!
//! tables:   map handles | programs | sites | links | breakpoints | known code
//! ```
//!
//! The tables of a later attach hold everything, old and new, and replace the earlier ones by one write of the block's
//! head. Earlier tables stay: programs hold addresses of map handles, stubs those of links.

mod code;
mod mapping;
mod tables;

use crate::agent::{AgentImage, LinkedAgent, Own};
use crate::dispatch::{DISPATCH_LEN, Dispatching, LetThrough};
use crate::error::TargetRefused;
use crate::existing::{Existing, PlacedHook};
use crate::group::{Group, groups};
use crate::guard::{self, GUARD_LEN, GuardParts};
use crate::ingredients::Ingredients;
use crate::maps::{SharedFile, map_handle};
use crate::patch::Patch;
use crate::request::{ProbeKind, ProbeRequest, ProgramRequest};
use crate::sites::{PlannedSite, PlannedSites};
use crate::space::{MemoryFile, Space};
use crate::system_calls::{CallLinks, CallTables};
use crate::texts::{self, Texts};
use crate::wire::{BLOCK_LEN, BlockHead, Wire, region_offset};
use beeline_abi::code::ProgramNeeds;
use beeline_abi::guard::Breakpoint;
use beeline_abi::link::LinkRuntime;
use beeline_abi::map::MapHandle;
use beeline_abi::process::{ProcessBlock, ProgramRuntime, REGIONS_MAX, Region, SiteRuntime};
use beeline_abi::system_call::SystemCalls;
use beeline_abi::thread::{THREAD_SLOTS, ThreadSlot};
use beeline_remote::{Mapping, Mappings, reach};
use beeline_site::SitePlan;
use beeline_stub::{
    ARENA_OVERHEAD, Arena, DISPATCHED_MAX, DispatchedCode, Environment, ProgramUse, SYSTEM_CALL_GATES_MAX,
    SYSTEM_CALL_STUB_MAX, ThreadKey, stub_len_max,
};
use std::collections::HashMap;
use std::ops::Range;
use tables::{Counts, Tables};

const PAGE: u64 = beeline_abi::PAGE_SIZE;

/// Room for the jump slots of an arena.
const SLOTS_LEN: u64 = 4096;
/// Bytes of files of the store that are mapped near the code, where they are reached by shorter instructions.
const NEAR_LEN_MAX: u64 = 64 << 20;
/// Where others are mapped in a process without libraries: nothing needs them near.
const SHARED_RANGE: Range<u64> = 0x3000_0000_0000..0x5000_0000_0000;
/// Elsewhere this far below the libraries: what is loaded later, and code for it, comes nearer to them.
const SHARED_APART: u64 = 8 << 30;
/// Above it the kernel places libraries.
const LIBRARIES: u64 = 0x7000_0000_0000;
/// A page without rights between image and block: a mapping begins with the block, where it is looked for.
const GAP: u64 = PAGE;

/// A part of our memory file, mapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Piece {
    pub(crate) address: u64,
    pub(crate) len: u64,
    /// `PROT_*`.
    pub(crate) protection: i32,
    /// Where in the memory file.
    pub(crate) offset: u64,
}

/// A range of addresses of ours.
#[derive(Debug)]
pub(crate) struct Area {
    pub(crate) region: Region,
    /// Where in the memory file the whole range begins.
    pub(crate) offset: u64,
    /// What stands in it, but for shared files and the fork page.
    pub(crate) pieces: Vec<Piece>,
}

/// What an attach adds.
#[derive(Debug)]
pub(crate) struct Generation<'a> {
    pub(crate) memory: MemoryFile,
    pub(crate) areas: Vec<Area>,
    pub(crate) shared: Vec<SharedFile<'a>>,
    /// Where the fork page is, on the first attach.
    pub(crate) fork_page: Option<u64>,
    pub(crate) block: u64,
    /// The block's head when everything is in place.
    pub(crate) head: BlockHead,
    /// Regions that this attach adds, to be entered from `existing.region_count` on.
    pub(crate) regions: Vec<Region>,
    pub(crate) init: u64,
    /// Address of the agent's function that claims a thread's slot.
    pub(crate) claim_slot: u64,
    /// Address of the agent's function behind a system call.
    pub(crate) system_call_exit: u64,
    /// Address of the agent's gate of system calls.
    pub(crate) call_gate: u64,
    pub(crate) patches: Vec<Patch>,
    /// Address of the table of breakpoints.
    pub(crate) breakpoints: u64,
    /// What is to be written of the programs at system calls, when it has changed.
    pub(crate) call_tables: Option<CallTables>,
    /// How calls are dispatched, where they are to be.
    pub(crate) dispatch: Option<MadeDispatch>,
    /// Address of the table of code whose calls have jumps around them.
    pub(crate) known_code: u64,
}

/// How calls are dispatched, and where they go on.
#[derive(Clone, Copy, Debug)]
pub(crate) struct MadeDispatch {
    pub(crate) dispatching: Dispatching,
    pub(crate) code: DispatchedCode,
    /// This attach brings it.
    pub(crate) is_new: bool,
}

/// The addresses of a first attach's block and what goes with it, by offset in its piece.
const THREADS: u64 = BLOCK_LEN.next_multiple_of(64);
const TASK: u64 = THREADS + THREAD_SLOTS * size_of::<ThreadSlot>() as u64;

impl<'a> Generation<'a> {
    /// Leaves a patch out. Possible until the memory file is mapped.
    pub(crate) fn give_up(&mut self, address: u64) -> Result<(), TargetRefused> {
        let Some(index) = self.patches.iter().position(|patch| patch.address == address) else {
            return Ok(());
        };
        for (offset, site) in self.patches.swap_remove(index).entries {
            self.memory.write(offset, &site.to_bytes())?;
        }
        Ok(())
    }

    /// Makes the generation; sites that cannot be served are refused in `planned`.
    pub(crate) fn build(
        ingredients: Ingredients<'a>,
        planned: &mut PlannedSites,
    ) -> Result<Generation<'a>, TargetRefused> {
        Builder::new(ingredients, planned)?.build(planned)
    }
}

struct Builder<'a> {
    given: Ingredients<'a>,
    memory: MemoryFile,
    areas: Vec<Area>,
    groups: Vec<Group>,
    shared: Vec<SharedFile<'a>>,
    agent: LinkedAgent,
    block: u64,
    fork_page: Option<u64>,
    /// Memory for threads, on the first attach.
    reserve: Range<u64>,
    /// Where the tables' bytes go: their address, and the offset of that address in the memory file.
    tables: Tables,
    tables_offset: u64,
    handles: Vec<MapHandle>,
    programs: Vec<ProgramRuntime>,
    links_used: usize,
    link_bytes: Vec<u8>,
    sites: Vec<SiteRuntime>,
    cpu_slots: u64,
    trace: u64,
    link_pages: HashMap<u32, u64>,
    calls: CallLinks,
    /// Hooks of earlier stubs that do not know their programs yet.
    hooks: Vec<PlacedHook>,
    /// What is to be written there.
    hook_writes: Vec<(u64, Vec<u8>)>,
    /// The code for each number: before the call, behind it.
    call_code: [Vec<u64>; 2],
    /// Address of the process's `SystemCalls`, 0 = it has none.
    system_calls: u64,
    /// Where the links of system calls are, and how many.
    call_links: (u64, u32),
    /// Address of the guard's block, 0 = the process has none.
    guard: u64,
    dispatching: Option<Dispatching>,
    /// Where calls that are dispatched go on.
    dispatched: Option<DispatchedCode>,
    breakpoints: Vec<Breakpoint>,
    texts: Texts,
    /// Address of the follower's bell, where there is a new one.
    bell: u64,
    /// What programs do, by id.
    uses: HashMap<u32, ProgramUse>,
}

impl<'a> Builder<'a> {
    /// Chooses all addresses.
    fn new(given: Ingredients<'a>, planned: &PlannedSites) -> Result<Builder<'a>, TargetRefused> {
        let mut space = Space::new(given.process, given.maps);
        let mut memory = MemoryFile::new()?;
        let mut areas = Vec::new();
        let mut groups = groups(given.maps, &planned.sites);
        if groups.is_empty() {
            // Programs alone, for tail calls: anywhere near the agent.
            let near = given.existing.map_or(0x7000_0000_0000, |existing| existing.block);
            groups.push(Group {
                sites: 0..0,
                reach: reach::around(near, 1 << 30),
                region: Region::default(),
            });
        }
        let calls = CallLinks::of(given.request, given.existing, &planned.calls);
        let hooks = given.existing.map_or_else(Vec::new, |existing| existing.hooks(given.process));
        let chains_len =
            if calls.is_empty() { 0 } else { calls.chains_len() + SYSTEM_CALL_GATES_MAX + DISPATCHED_MAX };
        let mut waiting = if calls.is_empty() { Vec::new() } else { hooks.clone() };
        let mut index = 0;
        while let Some(group) = groups.get_mut(index) {
            index += 1;
            let sites = &planned.sites[group.sites.clone()];
            let probed = || sites.iter().filter(|site| site.call.is_none());
            let stubs: u64 = probed().map(|site| stub_len_max(given.link_count(site))).sum();
            let copies = sites.iter().filter(|site| site.is_short()).count() as u64 * stub_len_max(0);
            let len = given.programs_len()
                + stubs
                + copies
                + ARENA_OVERHEAD
                + SLOTS_LEN
                + calls_len(sites)
                + chains_len;
            group.region = space.take(len, group.reach.clone(), "probe code")?;
            let offset = memory.add(group.region.len)?;
            areas.push(whole(group.region, offset, libc::PROT_READ | libc::PROT_EXEC));
            let region = group.region;
            waiting.retain(|hook| !serves(&region, hook));
            if let (Some(hook), true) = (waiting.first(), index == groups.len()) {
                // One more for the stubs that no other serves.
                let reach = reach::around(hook.at, 1 << 30);
                groups.push(Group { sites: 0..0, reach, region: Region::default() });
            }
        }
        let near = reach::serving(groups[0].region.start..groups[0].region.start + groups[0].region.len);
        let probed = planned.sites.iter().filter(|site| site.call.is_none());
        let link_count = probed.map(|site| given.link_count(site)).sum::<usize>() + calls.links.len();
        let counts = Counts {
            maps: given.map_count(),
            programs: given.program_count(),
            sites: given.site_count(planned),
            links: link_count,
            listed: calls.listed(),
            breakpoints: given.breakpoint_count(planned),
            known_code: match planned.calls.let_through {
                Some(_) => planned.calls.known.len() + REGIONS_MAX,
                None => 0,
            },
        };
        let tables_len = Tables::at(0, counts).len;
        let mut builder = Builder {
            given,
            memory,
            areas,
            groups,
            shared: Vec::new(),
            agent: given.image.at(0),
            block: 0,
            fork_page: None,
            reserve: 0..0,
            tables: Tables::default(),
            tables_offset: 0,
            handles: Vec::new(),
            programs: Vec::new(),
            links_used: 0,
            link_bytes: Vec::new(),
            sites: Vec::new(),
            cpu_slots: 0,
            trace: 0,
            link_pages: HashMap::new(),
            calls,
            hooks,
            hook_writes: Vec::new(),
            call_code: [Vec::new(), Vec::new()],
            system_calls: given.existing.map_or(0, |existing| existing.head.system_calls),
            call_links: (0, 0),
            guard: given.existing.map_or(0, Existing::guard),
            dispatching: given.existing.and_then(|existing| existing.dispatching),
            dispatched: None,
            breakpoints: given.breakpoints(),
            texts: Texts::default(),
            bell: 0,
            uses: HashMap::new(),
        };
        let start = match given.existing {
            None => builder.place_home(&mut space, near, tables_len)?,
            Some(existing) => builder.place_tables(&mut space, near, tables_len, existing)?,
        };
        builder.tables = Tables::at(start, counts);
        if builder.guard == 0 && planned.calls.guarded {
            builder.place_guard(&mut space, start)?;
        }
        if builder.dispatching.is_none()
            && let Some(let_through) = &planned.calls.let_through
        {
            builder.place_dispatch(&mut space, let_through)?;
        }
        if builder.system_calls == 0 && !builder.calls.links.is_empty() {
            builder.place_system_calls(&mut space, start)?;
        }
        builder.place_shared(&mut space, planned, start)?;
        builder.place_texts(&mut space)?;
        Ok(builder)
    }

    /// Image, block, threads, task, tables, fork page. Returns where the tables begin.
    fn place_home(
        &mut self,
        space: &mut Space<'_>,
        near: Range<u64>,
        tables_len: u64,
    ) -> Result<u64, TargetRefused> {
        let image = self.given.image;
        let tables = (TASK + self.given.request.task_layout.memory_len()).next_multiple_of(64);
        let reserve = (tables + tables_len).next_multiple_of(PAGE);
        let data_len = reserve + self.given.reserve_len();
        let region = space.take(image.len() + GAP + data_len + PAGE, near, "the agent")?;
        let offset = self.memory.add(region.len)?;
        let mut pieces: Vec<Piece> = Vec::new();
        for segment in image.segments() {
            // Constants may lie on executable pages: it saves a call in the stopped process.
            let writable = segment.protection & libc::PROT_WRITE != 0;
            let protection = if writable { segment.protection } else { libc::PROT_READ | libc::PROT_EXEC };
            let address = region.start + segment.start;
            match pieces.last_mut() {
                Some(last) if last.protection == protection && last.address + last.len == address => {
                    last.len += segment.len;
                }
                _ => pieces.push(Piece {
                    address,
                    len: segment.len,
                    protection,
                    offset: offset + segment.start,
                }),
            }
        }
        self.block = region.start + image.len() + GAP;
        let data_offset = offset + image.len() + GAP;
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        pieces.push(Piece { address: self.block, len: data_len, protection, offset: data_offset });
        self.fork_page = Some(self.block + data_len);
        self.reserve = self.block + reserve..self.block + data_len;
        self.agent = image.at(region.start);
        self.memory.write(offset, &self.agent.bytes)?;
        self.tables_offset = data_offset + tables;
        self.areas.push(Area { region, offset, pieces });
        Ok(self.block + tables)
    }

    /// The tables of a later attach. Returns where they begin.
    fn place_tables(
        &mut self,
        space: &mut Space<'_>,
        near: Range<u64>,
        tables_len: u64,
        existing: &Existing,
    ) -> Result<u64, TargetRefused> {
        let region = space.take(tables_len.max(1), near, "tables")?;
        self.tables_offset = self.memory.add(region.len)?;
        self.areas.push(whole(region, self.tables_offset, libc::PROT_READ | libc::PROT_WRITE));
        self.block = existing.block;
        self.agent = self.given.image.at(agent_base(self.given.image, existing));
        Ok(region.start)
    }

    /// The tables that stubs at system calls look at.
    fn place_system_calls(&mut self, space: &mut Space<'_>, near: u64) -> Result<(), TargetRefused> {
        let len = size_of::<SystemCalls>() as u64;
        let region = space.take(len, reach::around(near, 1 << 30), "the table of system calls")?;
        let offset = self.memory.add(region.len)?;
        self.areas.push(whole(region, offset, libc::PROT_READ | libc::PROT_WRITE));
        self.system_calls = region.start;
        Ok(())
    }

    /// The guard: its image, and its block.
    fn place_guard(&mut self, space: &mut Space<'_>, near: u64) -> Result<(), TargetRefused> {
        let image = self.given.guard_image;
        let region = space.take(image.len() + GUARD_LEN, reach::around(near, 1 << 30), "the guard")?;
        let offset = self.memory.add(region.len)?;
        let block = region.start + image.len();
        let parts = GuardParts {
            call_gate: self.agent.call_gate,
            system_call: self.agent.system_call,
            handler: image.handler(block),
            restorer: image.restorer(block),
            fork_page: self.fork_page(),
        };
        self.memory.write(offset, &image.for_block(block))?;
        self.memory.write(offset + image.len(), &parts.head())?;
        let piece = |address: u64, len: u64, protection: i32| Piece {
            address,
            len,
            protection,
            offset: offset + (address - region.start),
        };
        let pieces = vec![
            piece(region.start, image.len(), libc::PROT_READ | libc::PROT_EXEC),
            piece(block, region.len - image.len(), libc::PROT_READ | libc::PROT_WRITE),
        ];
        self.areas.push(Area { region, offset, pieces });
        self.guard = block;
        Ok(())
    }

    /// The block of dispatched calls, in reach of the slots.
    fn place_dispatch(
        &mut self,
        space: &mut Space<'_>,
        let_through: &LetThrough,
    ) -> Result<(), TargetRefused> {
        let near = reach::around(let_through.range.end, 1 << 30);
        let region = space.take(DISPATCH_LEN, near, "dispatched calls")?;
        let offset = self.memory.add(region.len)?;
        let dispatching = let_through.head(region.start).ok_or_else(|| TargetRefused::NoRoom {
            pid: self.given.process.pid(),
            what: "dispatched calls".to_owned(),
        })?;
        self.memory.write(offset, &dispatching.to_bytes())?;
        self.areas.push(whole(region, offset, libc::PROT_READ | libc::PROT_WRITE));
        self.dispatching = Some(dispatching);
        Ok(())
    }

    /// Files of the store.
    fn place_shared(
        &mut self,
        space: &mut Space<'_>,
        planned: &PlannedSites,
        near: u64,
    ) -> Result<(), TargetRefused> {
        let request = self.given.request;
        let mut files = Vec::new();
        let mut len = PAGE;
        let mut add = |mut file: SharedFile<'a>| {
            file.address = len;
            len += file.mapped_len();
            files.push(file);
        };
        let first = self.given.existing.is_none();
        if first {
            add(SharedFile::cpu_slots(request)?);
            add(SharedFile::trace(request)?);
        }
        let bell = self.given.bell.filter(|_| planned.sites.iter().any(|it| it.own == Some(Own::Libraries)));
        if let Some(bell) = bell {
            add(bell.file());
        }
        for map in self.given.new_maps() {
            add(SharedFile::map(map)?);
        }
        let mut placed: Vec<usize> =
            planned.sites.iter().flat_map(|site| site.probes.iter().copied()).collect();
        // One file for each link, however many places it has.
        placed.sort_unstable_by_key(|&index| request.probes[index].link_id);
        placed.dedup_by_key(|index| request.probes[*index].link_id);
        let placed = || placed.iter().map(|&index| &request.probes[index]);
        let calls = || planned.calls.new.iter().map(|&index| &request.system_calls[index]);
        let links = || {
            let probes = placed().map(|probe| (probe.link_id, &probe.shared));
            probes.chain(calls().map(|call| (call.link_id, &call.shared)))
        };
        for (id, shared) in links() {
            add(SharedFile::link(id, shared)?);
        }
        let what = "the store's maps";
        let elsewhere = shared_range(self.given.maps);
        let region = match len <= NEAR_LEN_MAX {
            true => space.take(len, reach::around(near, 1 << 30), what),
            false => space.take(len, elsewhere.clone(), what),
        };
        let region = region.or_else(|_| space.take(len, elsewhere, what))?;
        let offset = self.memory.add(PAGE)?;
        for file in &mut files {
            file.address += region.start;
        }
        let mut addresses = files.iter().map(|file| file.address);
        if first {
            self.cpu_slots = addresses.next().unwrap_or(0);
            self.trace = addresses.next().unwrap_or(0);
        }
        if bell.is_some() {
            self.bell = addresses.next().unwrap_or(0);
        }
        let handle = |map| map_handle(map, addresses.next().unwrap_or(0));
        let mut handles: Vec<MapHandle> = self.given.new_maps().map(handle).collect::<Result<_, _>>()?;
        self.link_pages = links().map(|(id, _)| id).zip(addresses).collect();
        handles.extend(self.given.existing.iter().flat_map(|existing| existing.maps.iter().copied()));
        handles.sort_unstable_by_key(|handle| handle.id);
        self.handles = handles;
        self.shared = files;
        self.areas.push(Area { region, offset, pieces: Vec::new() });
        Ok(())
    }

    /// Tables for walking stacks.
    fn place_texts(&mut self, space: &mut Space<'_>) -> Result<(), TargetRefused> {
        self.texts = match texts::make(&self.given, space, &mut self.memory, shared_range(self.given.maps))? {
            Err(known) => known,
            Ok(new) => {
                self.areas.push(whole(new.region, new.offset, libc::PROT_READ));
                new.texts
            }
        };
        Ok(())
    }

    /// Fills everything in.
    fn build(mut self, planned: &mut PlannedSites) -> Result<Generation<'a>, TargetRefused> {
        self.programs = self.given.existing.map_or_else(Vec::new, |existing| existing.programs.clone());
        self.sites = self.given.existing.map_or_else(Vec::new, |existing| existing.sites.clone());
        let mut patches = Vec::new();
        let mut refusals = Vec::new();
        for index in 0..self.groups.len() {
            let mut arena = Arena::new(self.groups[index].region.start, self.groups[index].region.len);
            let mut entries = HashMap::new();
            if index == 0 {
                // Programs that only tail calls reach need one place each.
                for program in self.given.new_programs() {
                    self.link_program(&mut arena, program, &mut entries)?;
                }
                self.link_calls(&mut arena, &mut entries)?;
            }
            let mut chains = HashMap::new();
            if index == 0 && !self.calls.is_empty() {
                self.link_numbers(&mut arena, &mut entries, &mut chains)?;
                self.link_dispatched(&mut arena)?;
            }
            self.link_hooks(&mut arena, &mut entries, &mut chains)?;
            for site in &planned.sites[self.groups[index].sites.clone()] {
                let added = match &site.call {
                    Some(call) => self.add_call(&mut arena, site, call, &mut entries, &mut chains)?,
                    None => self.add_site(&mut arena, site, &mut entries)?,
                };
                match added {
                    Ok(patch) => patches.push(patch),
                    Err(reason) => refusals.push((site.address, reason)),
                }
            }
            self.memory.write(self.areas[index].offset, arena.bytes())?;
        }
        if let Some(hook) = self.hooks.first() {
            let what = format!("the programs of the system call at {:#x}", hook.at);
            return Err(TargetRefused::NoRoom { pid: self.given.process.pid(), what });
        }
        for (address, reason) in refusals {
            planned.refuse(address, &reason);
        }
        self.finish(patches, &planned.restored)
    }

    fn environment(&self) -> Environment {
        let threads = self.given.existing.map_or(self.block + THREADS, |existing| existing.head.threads);
        Environment {
            block: self.block,
            threads,
            thread_key: self.given.thread_key,
            agent: self.agent.symbols,
            small_stacks: self.given.small_stacks,
            cpu_slots: self.given.existing.map_or(self.cpu_slots, |existing| existing.head.cpu_slots),
            cpus: self.given.existing.map_or(self.given.request.cpus, |existing| existing.head.cpus),
            fork_page: self.fork_page(),
        }
    }

    /// Where the fork page is.
    fn fork_page(&self) -> u64 {
        self.fork_page.unwrap_or_else(|| self.given.existing.map_or(0, |it| it.head.fork_page))
    }

    /// Writes the tables and the block.
    fn finish(mut self, patches: Vec<Patch>, restored: &[usize]) -> Result<Generation<'a>, TargetRefused> {
        for &index in restored {
            // An entry without links is no site.
            self.sites[index].link_count = 0;
        }
        self.programs.sort_unstable_by_key(|program| program.id);
        let tables = &self.tables;
        let offset = |address: u64| self.tables_offset + (address - tables.start());
        self.memory.write(offset(tables.maps), &bytes_of(&self.handles))?;
        self.memory.write(offset(tables.programs), &bytes_of(&self.programs))?;
        self.memory.write(offset(tables.sites), &bytes_of(&self.sites))?;
        self.memory.write(offset(tables.links), &self.link_bytes)?;
        self.memory.write(offset(tables.breakpoints), &guard::table(&self.breakpoints))?;
        let (hooks, code) = (std::mem::take(&mut self.hook_writes), std::mem::take(&mut self.call_code));
        let lists = self.calls.lists(self.call_links.0);
        self.memory.write(offset(tables.call_lists), &bytes_of(&lists.addresses))?;
        let call_tables =
            (self.system_calls != 0).then(|| lists.tables(self.system_calls, tables.call_lists, code, hooks));
        let regions: Vec<Region> = self.areas.iter().map(|area| area.region).collect();
        let known = self.given.existing.map_or(0, |existing| existing.regions.len());
        let free = self.given.existing.map_or(0, |existing| existing.free_regions().count());
        if known - free + regions.len() > REGIONS_MAX {
            let what = "more mappings of ours; detach and attach again".to_owned();
            return Err(TargetRefused::NoRoom { pid: self.given.process.pid(), what });
        }
        let head = self.head(known + regions.len());
        if self.given.existing.is_none() {
            self.write_block(&head, &regions)?;
        }
        let existing = self.given.existing.and_then(|existing| existing.dispatching);
        let dispatch = self.dispatching.zip(self.dispatched).map(|(dispatching, code)| MadeDispatch {
            dispatching,
            code,
            is_new: existing.is_none(),
        });
        Ok(Generation {
            memory: self.memory,
            areas: self.areas,
            shared: self.shared,
            fork_page: self.fork_page,
            block: self.block,
            head,
            regions,
            init: self.agent.init,
            claim_slot: self.agent.symbols.claim_slot,
            system_call_exit: self.agent.system_call[1],
            call_gate: self.agent.call_gate,
            patches,
            call_tables,
            breakpoints: self.tables.breakpoints,
            dispatch,
            known_code: self.tables.known_code,
        })
    }

    fn head(&self, region_count: usize) -> BlockHead {
        let tables = &self.tables;
        let request = self.given.request;
        let base = match self.given.existing {
            Some(existing) => existing.head.clone(),
            None => BlockHead {
                locator: 0,
                store_uuid: request.store_uuid,
                flags: if self.given.small_stacks { ProcessBlock::FLAG_SMALL_STACKS } else { 0 },
                cpus: request.cpus,
                cpu_slots: self.cpu_slots,
                threads: self.block + THREADS,
                trace: self.trace,
                texts: 0,
                text_count: 0,
                fork_page: self.fork_page.unwrap_or(0),
                task: self.block + TASK,
                task_len: request.task_layout.memory_len() as u32,
                task_layout: request.task_layout,
                vdso_clock_gettime: 0,
                rseq_offset: 0,
                tid_offset: 0,
                map_count: 0,
                maps: 0,
                programs: 0,
                program_count: 0,
                site_count: 0,
                sites: 0,
                region_count: 0,
                pool: 0,
                reserve: self.reserve.start,
                reserve_end: self.reserve.end,
                system_calls: 0,
                guard: 0,
            },
        };
        BlockHead {
            locator: match self.given.thread_key {
                ThreadKey::FsSelf => beeline_abi::process::Locator::FS_SELF,
                ThreadKey::FsBase => beeline_abi::process::Locator::FS_BASE,
            },
            maps: tables.maps,
            map_count: self.handles.len() as u32,
            programs: tables.programs,
            program_count: self.programs.len() as u32,
            sites: tables.sites,
            site_count: self.sites.len() as u32,
            texts: self.texts.address,
            text_count: self.texts.count,
            region_count: region_count as u32,
            system_calls: self.system_calls,
            guard: self.guard,
            ..base
        }
    }

    /// The block as it stands in the memory file: unfinished, but with every region in it.
    fn write_block(&self, head: &BlockHead, regions: &[Region]) -> Result<(), TargetRefused> {
        let home = &self.areas[self.groups.len()];
        let offset = home.offset + (self.block - home.region.start);
        let unfinished = BlockHead { flags: head.flags | ProcessBlock::FLAG_UNFINISHED, ..head.clone() };
        self.memory.write(offset, &unfinished.to_bytes())?;
        self.memory.write(offset + region_offset(0), &bytes_of(regions))
    }
}

/// Bytes that the sites at system calls want of an arena.
fn calls_len(sites: &[PlannedSite]) -> u64 {
    let count = sites.iter().filter(|site| site.call.is_some()).count() as u64;
    count * SYSTEM_CALL_STUB_MAX
}

/// The hook can call what lies in the region.
fn serves(region: &Region, hook: &PlacedHook) -> bool {
    hook.at.abs_diff(region.start).max(hook.at.abs_diff(region.start + region.len)) < reach::REACH
}

/// Where files of the store are mapped. Below the libraries, as what `mmap` finds room for: ThreadSanitizer ends a program in which
/// something lies anywhere else when it starts (`CheckAndProtect` of its runtime).
fn shared_range(maps: &Mappings) -> Range<u64> {
    let is_code = |mapping: &&Mapping| mapping.execute && mapping.inode != 0 && mapping.start >= LIBRARIES;
    match maps.iter().filter(is_code).map(|mapping| mapping.start).min() {
        Some(lowest) => reach::around(lowest - SHARED_APART, 1 << 40),
        None => SHARED_RANGE,
    }
}

/// An area that is one piece.
fn whole(region: Region, offset: u64, protection: i32) -> Area {
    let piece = Piece { address: region.start, len: region.len, protection, offset };
    Area { region, offset, pieces: vec![piece] }
}

/// Where the image of an existing agent begins: its block lies right behind.
pub(crate) fn agent_base(image: &AgentImage, existing: &Existing) -> u64 {
    existing.block.wrapping_sub(image.len() + GAP)
}

/// What a link's flags say of its kind and of its program.
fn link_flags(probe: &ProbeRequest, program: &ProgramRequest, plan: &SitePlan) -> u32 {
    let overrides = probe.kind == ProbeKind::Entry && plan.is_entry && program.may_override();
    (if overrides { LinkRuntime::OVERRIDES } else { 0 })
        | if probe.count_hits { LinkRuntime::COUNTS_HITS } else { 0 }
}

fn cpu_flag(needs: &ProgramNeeds) -> u32 {
    if needs.cpu { LinkRuntime::NEEDS_CPU } else { 0 }
}

fn bytes_of<T: Wire>(items: &[T]) -> Vec<u8> {
    items.iter().flat_map(Wire::to_bytes).collect()
}
