//! The code of a generation: stubs of sites, their links, and the programs that these call.

use super::{Builder, cpu_flag, link_flags};
use crate::agent::Own;
use crate::error::TargetRefused;
use crate::existing::is_call_site;
use crate::patch::{Patch, SiteJump, Write, inner, jump_to};
use crate::request::{ProbeKind, ProgramRequest};
use crate::sites::PlannedSite;
use crate::system_calls::PlannedCall;
use crate::wire::Wire;
use beeline_abi::code::{ProgramNeeds, Symbol};
use beeline_abi::guard::Breakpoint;
use beeline_abi::link::{LinkRuntime, LinkShared};
use beeline_abi::map::MapHandle;
use beeline_abi::process::{ForkPage, ProgramRuntime, SiteRuntime};
use beeline_abi::system_call::NUMBERS;
use beeline_remote::reach;
use beeline_stub::{
    Arena, ArenaError, CallContext, CallLink, CallStub, LinkCode, OnlyIn, ProgramUse, SiteCode,
    SystemCallCode, SystemCallTarget, hook,
};
use std::collections::HashMap;
use std::mem::offset_of;

/// Bytes of `syscall`.
const SYSCALL_LEN: u64 = 2;

/// Where the code is that hooks call: by the indexes of the links, whether it runs behind the call, and whether the agent has to know.
pub(super) type Chains = HashMap<(Vec<usize>, bool, bool), u64>;

impl Builder<'_> {
    /// The links of system calls, before the sites that have them.
    pub(super) fn link_calls(
        &mut self,
        arena: &mut Arena,
        entries: &mut HashMap<u32, u64>,
    ) -> Result<(), TargetRefused> {
        let mut links = std::mem::take(&mut self.calls.links);
        for link in &mut links {
            if link.shared == 0 {
                link.shared = self.link_pages.get(&link.link_id).copied().unwrap_or(0);
            }
            if let Ok(program) = self.given.program(link.prog_id) {
                link.entry = self.link_program(arena, program, entries)?;
                link.flags |= cpu_flag(&program.needs);
            }
        }
        let at = self.tables.links + (self.links_used * LinkRuntime::LEN) as u64;
        self.links_used += links.len();
        self.link_bytes.extend(links.iter().flat_map(Wire::to_bytes));
        self.call_links = (at, links.len() as u32);
        self.calls.links = links;
        for site in self.sites.iter_mut().filter(|site| is_call_site(site)) {
            // Without programs its stub finds nothing wanted; detach restores it.
            (site.links, site.link_count) = (at, self.call_links.1.max(1));
        }
        Ok(())
    }

    fn call_target(&self) -> SystemCallTarget {
        let own = self.agent.system_call;
        let [enter, exit, missed] =
            if self.guard == 0 { own } else { self.given.guard_image.system_call(self.guard) };
        SystemCallTarget { calls: self.system_calls, enter, exit, missed }
    }

    /// The code for each number: before the call, behind it.
    pub(super) fn link_numbers(
        &mut self,
        arena: &mut Arena,
        entries: &mut HashMap<u32, u64>,
        chains: &mut Chains,
    ) -> Result<(), TargetRefused> {
        for is_exit in [false, true] {
            let targets =
                (0..=NUMBERS as u32).map(|number| self.chain(arena, number, is_exit, entries, chains));
            let targets: Vec<Option<u64>> = targets.collect::<Result<_, _>>()?;
            self.call_code[usize::from(is_exit)] =
                targets.into_iter().map(Option::unwrap_or_default).collect();
        }
        Ok(())
    }

    /// The code at calls that the kernel hands to the process, where it does.
    pub(super) fn link_dispatched(&mut self, arena: &mut Arena) -> Result<(), TargetRefused> {
        if self.dispatching.is_some() {
            let made = arena.add_dispatched(&self.environment(), &self.call_target());
            self.dispatched = Some(made.map_err(|error| no_code("dispatched system calls", &error))?);
        }
        Ok(())
    }

    /// Whom a hook calls now, at a call with this number; none: it is no constant.
    fn hook_target(
        &mut self,
        arena: &mut Arena,
        number: Option<u32>,
        is_exit: bool,
        entries: &mut HashMap<u32, u64>,
        chains: &mut Chains,
    ) -> Result<Option<u64>, TargetRefused> {
        if let Some(number) = number {
            return self.chain(arena, number, is_exit, entries, chains);
        }
        // Where any call is traced, the ends of some are wanted.
        if !is_exit || self.calls.is_empty() {
            return Ok(None);
        }
        let made = arena.exit_dispatch(&self.environment(), &self.call_target());
        made.map(Some).map_err(|error| no_code("system calls", &error))
    }

    /// Whom hooks of calls with this number call; none when nobody wants them.
    fn chain(
        &mut self,
        arena: &mut Arena,
        number: u32,
        is_exit: bool,
        entries: &mut HashMap<u32, u64>,
        chains: &mut Chains,
    ) -> Result<Option<u64>, TargetRefused> {
        let wanted = self.calls.at(number, is_exit);
        let agent = self.calls.concern_agent(number, is_exit);
        if wanted.is_empty() && !agent {
            return Ok(None);
        }
        let key = (wanted, is_exit, agent);
        if let Some(&known) = chains.get(&key) {
            return Ok(Some(known));
        }
        let links = key.0.iter().map(|&index| self.call_link(arena, index, entries));
        let links: Vec<CallLink> = links.collect::<Result<_, _>>()?;
        let made = arena.add_chain(&self.environment(), &self.call_target(), &links, is_exit, agent);
        let made = made.map_err(|error| no_code(&format!("system call {number}"), &error))?;
        chains.insert(key, made);
        Ok(Some(made))
    }

    /// Whose chains may stand in the stub of a call with this number: before it, behind it.
    fn near(
        &mut self,
        arena: &mut Arena,
        number: Option<u32>,
        entries: &mut HashMap<u32, u64>,
    ) -> Result<[Vec<CallLink>; 2], TargetRefused> {
        let mut near = [Vec::new(), Vec::new()];
        let Some(number) = number else { return Ok(near) };
        for (links, is_exit) in near.iter_mut().zip([false, true]) {
            if !self.calls.concern_agent(number, is_exit) {
                let wanted = self.calls.at(number, is_exit).into_iter();
                *links =
                    wanted.map(|index| self.call_link(arena, index, entries)).collect::<Result<_, _>>()?;
            }
        }
        Ok(near)
    }

    /// A link of system calls as the code in `arena` runs it.
    fn call_link(
        &mut self,
        arena: &mut Arena,
        index: usize,
        entries: &mut HashMap<u32, u64>,
    ) -> Result<CallLink, TargetRefused> {
        let link = self.calls.links[index];
        let (mut entry, mut asks_registers) = (link.entry, true);
        if let Ok(program) = self.given.program(link.prog_id) {
            entry = self.link_program(arena, program, entries)?;
            asks_registers = program.asks_registers();
        }
        let (needs, uses) = (self.given.needs_of(&link), self.use_of(&link));
        let runtime = self.call_links.0 + (index * LinkRuntime::LEN) as u64;
        let code = self.link_code(&LinkRuntime { entry, ..link }, needs, uses, runtime);
        let context = match link.flags & LinkRuntime::SYSTEM_CALL {
            LinkRuntime::RECORD => CallContext::Record,
            LinkRuntime::RAW => CallContext::Raw,
            _ => CallContext::Registers,
        };
        Ok(CallLink { code, context, asks_registers })
    }

    /// Lets the hooks of earlier stubs in reach of `arena` call the programs as they are now.
    pub(super) fn link_hooks(
        &mut self,
        arena: &mut Arena,
        entries: &mut HashMap<u32, u64>,
        chains: &mut Chains,
    ) -> Result<(), TargetRefused> {
        for placed in std::mem::take(&mut self.hooks) {
            let wanted = match placed.number {
                Some(number) => {
                    !self.calls.at(number, placed.is_exit).is_empty()
                        || self.calls.concern_agent(number, placed.is_exit)
                }
                None => !self.calls.is_empty(),
            };
            if wanted && placed.at.abs_diff(arena.base()) >= reach::REACH {
                self.hooks.push(placed);
                continue;
            }
            let target = self.hook_target(arena, placed.number, placed.is_exit, entries, chains)?;
            match hook(placed.at, target) {
                Some(bytes) => self.hook_writes.push((placed.at, bytes.to_vec())),
                None => self.hooks.push(placed),
            }
        }
        Ok(())
    }

    /// Stub and table entry of a site at a system call. The inner error is the reason why it cannot be served.
    pub(super) fn add_call(
        &mut self,
        arena: &mut Arena,
        site: &PlannedSite,
        planned: &PlannedCall,
        entries: &mut HashMap<u32, u64>,
        chains: &mut Chains,
    ) -> Result<Result<Patch, String>, TargetRefused> {
        let mut hooked = [None; 2];
        for (chain, is_exit) in hooked.iter_mut().zip([false, true]) {
            *chain = self.hook_target(arena, planned.number, is_exit, entries, chains)?;
        }
        let code = SystemCallCode {
            plan: &site.plan,
            address: site.address,
            call: planned.address,
            number: planned.number,
            flags_dead: planned.flags_dead,
            hooked,
        };
        let target = self.call_target();
        let near = self.near(arena, planned.number, entries)?;
        let near = [near[0].as_slice(), near[1].as_slice()];
        let made = arena.add_system_call_with(&self.environment(), &target, &code, near);
        let CallStub { stub, behind } = match made {
            Ok(made) => made,
            Err(error) => return Ok(Err(error.to_string())),
        };
        let SiteJump { bytes, hole, mut runtime } = match jump_to(arena, &self.sites, site, &stub) {
            Ok(made) => made,
            Err(reason) => return Ok(Err(reason)),
        };
        let to_behind = planned.address + SYSCALL_LEN - site.address;
        let places = if behind == 0 { 0 } else { behind << 16 | (to_behind as u32) << 8 };
        (runtime.links, runtime.link_count) = self.call_links;
        runtime.flags = SiteRuntime::SYSTEM_CALL | places;
        let inner = inner(&site.plan, bytes.len());
        let expected = site.plan.original.clone();
        let mut writes = vec![Write { address: site.address, expected, bytes, moved: Some(stub), inner }];
        let mut entries = vec![self.enter(None, runtime)];
        if let Some(hole) = hole {
            entries.push(self.enter(hole.index, hole.runtime));
            writes.insert(0, hole.write);
        }
        let patch = Patch {
            address: site.address,
            writes,
            is_breakpoint: false,
            sees_seccomp: false,
            semaphores: Vec::new(),
            entries,
        };
        Ok(Ok(patch))
    }

    /// Stub, links and table entry of a site. The inner error is the reason why this one cannot be served.
    pub(super) fn add_site(
        &mut self,
        arena: &mut Arena,
        site: &PlannedSite,
        entries: &mut HashMap<u32, u64>,
    ) -> Result<Result<Patch, String>, TargetRefused> {
        let (links, codes) = self.links_of(arena, site, entries)?;
        let index = site.existing.unwrap_or(self.sites.len());
        let code = SiteCode {
            plan: &site.plan,
            address: site.address,
            site_runtime: self.tables.sites + (index * SiteRuntime::LEN) as u64,
            links: &codes,
        };
        let stub = match arena.add_stub(&self.environment(), &code) {
            Ok(stub) => stub,
            Err(error) => return Ok(Err(error.to_string())),
        };
        let SiteJump { bytes, hole, mut runtime } = match jump_to(arena, &self.sites, site, &stub) {
            Ok(made) => made,
            Err(reason) => return Ok(Err(reason)),
        };
        runtime.links = self.tables.links + (self.links_used * LinkRuntime::LEN) as u64;
        runtime.link_count = links.len() as u32;
        runtime.flags |= if site.plan.is_entry { SiteRuntime::ENTRY } else { 0 };
        let is_breakpoint = site.is_breakpoint();
        if is_breakpoint {
            self.breakpoints.retain(|known| known.address != site.address);
            let stub = stub.address + u64::from(stub.entry);
            self.breakpoints.push(Breakpoint { address: site.address, stub });
        }
        self.links_used += links.len();
        self.link_bytes.extend(links.iter().flat_map(Wire::to_bytes));
        let mut writes = Vec::new();
        match site.existing.map(|index| self.sites[index]) {
            // Its short jump stays as it is: what changes is in the hole.
            // So does a breakpoint: what changes is in the table.
            Some(known) if hole.is_some() || is_breakpoint => {
                (runtime.len, runtime.patched, runtime.original) = (known.len, known.patched, known.original);
            }
            known => {
                let expected = known.map_or_else(
                    || site.plan.original.clone(),
                    |known| known.patched[..known.len as usize].to_vec(),
                );
                // A site that is patched already has one instruction in these bytes: the jump.
                let inner = if known.is_some() { Vec::new() } else { inner(&site.plan, bytes.len()) };
                writes.push(Write { address: site.address, expected, bytes, moved: Some(stub), inner });
            }
        }
        let mut entries = vec![self.enter(site.existing, runtime)];
        if let Some(hole) = hole {
            entries.push(self.enter(hole.index, hole.runtime));
            // Nothing goes there before the site's own jump is written.
            writes.insert(0, hole.write);
        }
        let sees_seccomp = site.own.is_some_and(Own::sees_seccomp);
        let at = |index: usize| runtime.links + (index * LinkRuntime::LEN) as u64;
        let waiting = |link: &LinkRuntime| link.semaphore != 0 && link.flags & LinkRuntime::IN_SEMAPHORE == 0;
        let waiting = links.iter().enumerate().filter(|(_, link)| waiting(link));
        let semaphores = waiting.map(|(index, link)| (at(index), *link)).collect();
        Ok(Ok(Patch { address: site.address, writes, is_breakpoint, sees_seccomp, semaphores, entries }))
    }

    /// Enters a site or a hole into the table, in place of entry `index` or behind all; where it lies in the memory file, and
    /// what stands there when it is given up.
    fn enter(&mut self, index: Option<usize>, runtime: SiteRuntime) -> (u64, SiteRuntime) {
        // An entry without links is no site.
        let given_up = index.map_or(SiteRuntime::default(), |index| self.sites[index]);
        let at = index.unwrap_or(self.sites.len());
        match index {
            Some(index) => self.sites[index] = runtime,
            None => self.sites.push(runtime),
        }
        let address = self.tables.sites + (at * SiteRuntime::LEN) as u64;
        (self.tables_offset + (address - self.tables.start()), given_up)
    }

    /// The links of a site, those in force first.
    fn links_of(
        &mut self,
        arena: &mut Arena,
        site: &PlannedSite,
        entries: &mut HashMap<u32, u64>,
    ) -> Result<(Vec<LinkRuntime>, Vec<LinkCode>), TargetRefused> {
        let given = self.given;
        let mut links = match (given.existing, site.existing) {
            (Some(existing), Some(index)) => existing.links[index].clone(),
            _ => Vec::new(),
        };
        links.retain(|link| !given.request.is_over(link));
        if let Some(own) = site.own {
            let mut link = self.agent.own.link(own, site.address);
            if own == Own::Libraries {
                link.shared = self.bell;
            }
            // That of an earlier follower.
            links.retain(|known| known.link_id != LinkRuntime::OWN || known.entry != link.entry);
            links.push(link);
        }
        for probe in site.probes.iter().map(|&index| &given.request.probes[index]) {
            let program = given.program(probe.program_id)?;
            let entry = self.link_program(arena, program, entries)?;
            for half in halves(probe.kind) {
                let flags = half | cpu_flag(&program.needs) | link_flags(probe, program, &site.plan);
                let same = |link: &&mut LinkRuntime| {
                    link.link_id == probe.link_id && (link.flags ^ half) & LinkRuntime::RETURN == 0
                };
                if let Some(link) = links.iter_mut().find(same) {
                    // Another program in the same place, behind those that were before it and before those behind it.
                    let kept = link.flags & LinkRuntime::IN_SEMAPHORE;
                    *link = LinkRuntime { entry, prog_id: probe.program_id, flags: flags | kept, ..*link };
                    continue;
                }
                // A session counts once in its semaphore.
                let counted = half & LinkRuntime::SESSION == 0 || half & LinkRuntime::RETURN == 0;
                let semaphore = counted.then(|| given.semaphore_of(probe, site)).flatten();
                links.push(LinkRuntime {
                    shared: self.link_pages.get(&probe.link_id).copied().unwrap_or(0),
                    cookie: probe.cookie,
                    func_ip: site.function(),
                    entry,
                    link_id: probe.link_id,
                    prog_id: probe.program_id,
                    flags,
                    pid: probe.pid.unwrap_or(0),
                    semaphore: semaphore.unwrap_or(0),
                    hits: 0,
                    missed: 0,
                });
            }
        }
        let sessions = number_sessions(&links);
        let needs: Vec<ProgramNeeds> = links.iter().map(|link| given.needs_of(link)).collect();
        let uses: Vec<ProgramUse> = links.iter().map(|link| self.use_of(link)).collect();
        let first = self.tables.links + (self.links_used * LinkRuntime::LEN) as u64;
        let code = |(index, (link, needs)): (usize, (&LinkRuntime, &ProgramNeeds))| {
            let runtime = first + (index * LinkRuntime::LEN) as u64;
            LinkCode { session: sessions[index], ..self.link_code(link, *needs, uses[index], runtime) }
        };
        let codes = links.iter().zip(&needs).enumerate().map(code).collect();
        Ok((links, codes))
    }

    /// A link whose [`LinkRuntime`] lies at `runtime`, for a stub.
    fn link_code(&self, link: &LinkRuntime, needs: ProgramNeeds, uses: ProgramUse, runtime: u64) -> LinkCode {
        let fork_page = self.fork_page();
        LinkCode {
            uses,
            runtime,
            enabled: link.shared + offset_of!(LinkShared, enabled) as u64,
            entry: link.entry,
            needs,
            is_return: link.flags & LinkRuntime::RETURN != 0,
            session: None,
            only_in: (link.pid != 0 && fork_page != 0)
                .then(|| OnlyIn { pid: link.pid, word: fork_page + offset_of!(ForkPage, attached) as u64 }),
            counts_hits: link.flags & LinkRuntime::COUNTS_HITS != 0,
            overrides: link.flags & LinkRuntime::OVERRIDES != 0,
        }
    }

    /// The address of a program's entry for code in `arena`: a copy there, unless an earlier one is in reach.
    pub(super) fn link_program(
        &mut self,
        arena: &mut Arena,
        program: &ProgramRequest,
        entries: &mut HashMap<u32, u64>,
    ) -> Result<u64, TargetRefused> {
        if let Some(&entry) = entries.get(&program.id) {
            return Ok(entry);
        }
        let known = self.programs.iter().find(|known| known.id == program.id).map(|known| known.entry);
        if let Some(entry) = known.filter(|entry| entry.abs_diff(arena.base()) < reach::REACH) {
            entries.insert(program.id, entry);
            return Ok(entry);
        }
        let mut hosts = Vec::with_capacity(program.host_functions.len());
        for call in self.given.host_calls(program).map_err(|what| TargetRefused::BadRequest { what })? {
            let made = arena.add_host_call(&call);
            hosts.push(made.map_err(|error| TargetRefused::BadRequest { what: error.to_string() })?);
        }
        let resolve = |symbol| match symbol {
            Symbol::HostFunction(index) => hosts.get(index as usize).copied(),
            Symbol::MapHandle(index) => Some(self.handle_of(program, index)?.0),
            Symbol::MapData(index) => Some(self.handle_of(program, index)?.1.data),
            Symbol::Helper(id) => self.agent.helper(id),
            Symbol::Image => None,
        };
        let entry = arena.add_program(&program.code, &program.relocs, resolve).map_err(|error| {
            TargetRefused::BadRequest { what: format!("program {} cannot be linked: {error}", program.name) }
        })?;
        entries.insert(program.id, entry);
        if known.is_none() {
            // One that calls functions of the process is not to be reached by tail calls, from programs that own a CPU.
            let entry = if hosts.is_empty() { entry } else { 0 };
            self.programs.push(ProgramRuntime { id: program.id, flags: cpu_flag(&program.needs), entry });
        }
        Ok(entry)
    }

    /// The handle of a map of a program: its address and contents.
    fn handle_of(&self, program: &ProgramRequest, index: u32) -> Option<(u64, &MapHandle)> {
        let id = *program.maps.get(index as usize)?;
        let at = self.handles.iter().position(|handle| handle.id == id)?;
        Some((self.tables.maps + (at * MapHandle::LEN) as u64, &self.handles[at]))
    }

    /// What a program's machine code does to registers; of one that is not in the request nothing is known.
    fn use_of(&mut self, link: &LinkRuntime) -> ProgramUse {
        let request = self.given.request;
        let of = |id: u32| request.programs.iter().find(|program| program.id == id);
        *self.uses.entry(link.prog_id).or_insert_with(|| match of(link.prog_id) {
            Some(program) if link.link_id != LinkRuntime::OWN => ProgramUse::of(&program.code),
            _ => ProgramUse::UNKNOWN,
        })
    }
}

/// The flags of each part of a probe: at the entry, at the return.
fn halves(kind: ProbeKind) -> &'static [u32] {
    const SESSION: u32 = LinkRuntime::SESSION;
    match kind {
        ProbeKind::Entry => &[0],
        ProbeKind::Return => &[LinkRuntime::RETURN],
        ProbeKind::Session => &[SESSION, SESSION | LinkRuntime::RETURN],
    }
}

/// Numbers the sessions of a site in the order of their links: which number each link's is.
fn number_sessions(links: &[LinkRuntime]) -> Vec<Option<u32>> {
    let mut ids: Vec<u32> = Vec::new();
    let number = |link: &LinkRuntime| {
        if link.flags & LinkRuntime::SESSION == 0 {
            return None;
        }
        let known = ids.iter().position(|&id| id == link.link_id);
        let index = known.unwrap_or_else(|| {
            ids.push(link.link_id);
            ids.len() - 1
        });
        Some(index as u32)
    };
    links.iter().map(number).collect()
}

fn no_code(what: &str, error: &ArenaError) -> TargetRefused {
    TargetRefused::BadRequest { what: format!("no code for the programs of {what}: {error}") }
}
