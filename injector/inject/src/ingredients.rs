//! What the parts of an attach are made from: the process as it is, the request, and what earlier attaches left.

use crate::agent::AgentImage;
use crate::bell::FollowerBell;
use crate::error::TargetRefused;
use crate::existing::Existing;
use crate::files::MappedFiles;
use crate::guard::{GuardImage, Placed, is_breakpoint};
use crate::request::{MapRequest, ProbeKind, ProbeRequest, ProgramRequest, Request};
use crate::sites::{PlannedSite, PlannedSites};
use beeline_abi::code::{ContextUse, ProgramNeeds, Symbol};
use beeline_abi::guard::Breakpoint;
use beeline_abi::link::LinkRuntime;
use beeline_abi::regs::PtRegs;
use beeline_abi::thread::THREAD_SLOTS;
use beeline_remote::{Mappings, Process};
use beeline_stub::{HOST_CALL_MAX, ThreadKey};
use std::mem::offset_of;

/// About what a thread's scratch and return stack take; with a private stack, it is twice that.
const THREAD_MEMORY_LEN: u64 = 64 << 10;

/// What a generation is made from.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ingredients<'a> {
    pub(crate) process: &'a Process,
    pub(crate) maps: &'a Mappings,
    pub(crate) files: &'a MappedFiles,
    pub(crate) request: &'a Request,
    pub(crate) existing: Option<&'a Existing>,
    pub(crate) image: &'a AgentImage,
    pub(crate) guard_image: &'a GuardImage,
    pub(crate) thread_key: ThreadKey,
    pub(crate) small_stacks: bool,
    pub(crate) bell: Option<&'a FollowerBell>,
}

impl<'a> Ingredients<'a> {
    pub(crate) fn new_maps(&self) -> impl Iterator<Item = &'a MapRequest> + use<'a> {
        let known: Vec<u32> =
            self.existing.iter().flat_map(|existing| &existing.maps).map(|map| map.id).collect();
        self.request.maps.iter().filter(move |map| !known.contains(&map.id))
    }

    pub(crate) fn new_programs(&self) -> impl Iterator<Item = &'a ProgramRequest> + use<'a> {
        let known: Vec<u32> =
            self.existing.iter().flat_map(|e| &e.programs).map(|program| program.id).collect();
        let given = *self;
        let usable = move |program: &&ProgramRequest| given.unusable(program.id).is_none();
        self.request.programs.iter().filter(move |program| !known.contains(&program.id)).filter(usable)
    }

    /// Bytes that are mapped for the memory of threads: those that are there, as many to come, and some. Pages are taken
    /// when they are touched.
    pub(crate) fn reserve_len(&self) -> u64 {
        const SPARE: u64 = 64;
        let threads = beeline_ptrace::thread_ids(self.process.pid()).map_or(0, |ids| ids.len() as u64);
        (2 * threads.min(THREAD_SLOTS) + SPARE) * if self.small_stacks { 2 } else { 1 } * THREAD_MEMORY_LEN
    }

    /// Where the semaphore of a probe is in the process; none when it has none, or when it is not a private variable as
    /// semaphores are (the kernel's `valid_ref_ctr_vma`): the probe goes without then.
    pub(crate) fn semaphore_of(&self, probe: &ProbeRequest, site: &PlannedSite) -> Option<u64> {
        let address = probe.semaphore?.wrapping_sub(site.plan.vaddr).wrapping_add(site.address);
        let last = self.maps.at(address.checked_add(1)?)?;
        let mapping = self.maps.at(address).filter(|mapping| mapping.start == last.start)?;
        (mapping.write && !mapping.shared && mapping.inode != 0).then_some(address)
    }

    /// Why a program cannot be linked into the process.
    pub(crate) fn unusable(&self, id: u32) -> Option<String> {
        let Ok(program) = self.program(id) else { return Some(format!("its program {id} is not there")) };
        let has_map = |id: u32| {
            self.request.maps.iter().any(|map| map.id == id)
                || self.existing.is_some_and(|existing| existing.maps.iter().any(|map| map.id == id))
        };
        if !program.host_functions.is_empty()
            && let Err(reason) = self.host_calls(program)
        {
            return Some(reason);
        }
        let name = &program.name;
        program.relocs.iter().find_map(|reloc| match reloc.symbol {
            Symbol::Helper(id) if !self.image.has_helper(id) => {
                Some(format!("program {name} uses helper {id}, which the agent does not have"))
            }
            Symbol::MapHandle(index) | Symbol::MapData(index) => match program.maps.get(index as usize) {
                Some(&id) if has_map(id) => None,
                _ => Some(format!("program {name} uses a map with index {index}, which is not there")),
            },
            _ => None,
        })
    }

    pub(crate) fn map_count(&self) -> usize {
        self.request.maps.len() + self.existing.map_or(0, |existing| existing.maps.len())
    }

    pub(crate) fn program_count(&self) -> usize {
        self.request.programs.len() + self.existing.map_or(0, |existing| existing.programs.len())
    }

    pub(crate) fn site_count(&self, planned: &PlannedSites) -> usize {
        let new = planned.sites.iter().filter(|site| site.existing.is_none());
        // Site and hole.
        new.map(|site| 1 + usize::from(site.is_short())).sum::<usize>()
            + self.existing.map_or(0, |existing| existing.sites.len())
    }

    /// The breakpoints that the process has.
    pub(crate) fn breakpoints(&self) -> Vec<Breakpoint> {
        let Some(existing) = self.existing else { return Vec::new() };
        let mut known =
            Placed::at(self.process, existing.guard()).map_or_else(Vec::new, |it| it.breakpoints());
        known.retain(|breakpoint| existing.has_breakpoint(breakpoint.address));
        known
    }

    /// Breakpoints that the process can have afterwards, at most.
    pub(crate) fn breakpoint_count(&self, planned: &PlannedSites) -> usize {
        let known = self.existing.iter().flat_map(|it| &it.sites).filter(|site| is_breakpoint(site));
        planned.breakpoints().count() + known.count()
    }

    pub(crate) fn link_count(&self, site: &PlannedSite) -> usize {
        let old = match (self.existing, site.existing) {
            (Some(existing), Some(index)) => existing.links[index].len(),
            _ => 0,
        };
        // A session is two: one at the entry, one at the return.
        let sessions =
            site.probes.iter().filter(|&&index| self.request.probes[index].kind == ProbeKind::Session);
        old + site.probes.len() + sessions.count() + usize::from(site.own.is_some())
    }

    /// Bytes that all programs of the request take.
    pub(crate) fn programs_len(&self) -> u64 {
        let len = |program: &ProgramRequest| {
            let hosts = program.host_functions.len() as u64 * (HOST_CALL_MAX + 16);
            program.code.len() as u64 + 16 + slots_len(program) + hosts
        };
        self.request.programs.iter().map(len).sum()
    }

    pub(crate) fn program(&self, id: u32) -> Result<&'a ProgramRequest, TargetRefused> {
        self.request.programs.iter().find(|program| program.id == id).ok_or_else(|| {
            TargetRefused::BadRequest { what: format!("a probe refers to program {id}, which is not there") }
        })
    }

    /// What a program that is linked already needs; everything when nothing is known of it any more.
    pub(crate) fn needs_of(&self, link: &LinkRuntime) -> ProgramNeeds {
        match self.program(link.prog_id) {
            _ if link.link_id == LinkRuntime::OWN => {
                ProgramNeeds { context: OWN_CONTEXT, ..ProgramNeeds::default() }
            }
            Ok(program) => program.needs,
            Err(_) => ProgramNeeds {
                context: ContextUse::ALL,
                cpu: link.flags & LinkRuntime::NEEDS_CPU != 0,
                stack_bytes: 512,
                tail_calls: true,
            },
        }
    }
}

/// The registers that programs of the agent's own read: number and arguments of a system call.
const OWN_CONTEXT: ContextUse = ContextUse::NONE
    .with_access(offset_of!(PtRegs, ax) as u32, 8)
    .with_access(offset_of!(PtRegs, bx) as u32, 8)
    .with_access(offset_of!(PtRegs, cx) as u32, 8)
    .with_access(offset_of!(PtRegs, dx) as u32, 8)
    .with_access(offset_of!(PtRegs, si) as u32, 8)
    .with_access(offset_of!(PtRegs, di) as u32, 8);

/// Bytes of the jump slots that a program can want.
pub(crate) fn slots_len(program: &ProgramRequest) -> u64 {
    16 * program.relocs.iter().filter(|reloc| matches!(reloc.symbol, Symbol::Helper(_))).count() as u64
}
