//! Takes out what earlier attaches have mapped and nobody needs any more: its library is not there, its links have ended or have
//! other programs.
//!
//! What one attach adds is a *unit*: all of it is made of one memory file. A unit is taken out as a whole, when nothing refers to any
//! part of it:
//!
//! ```text
//! block ─▶ tables ─▶ sites, links, programs, maps       what is in force
//! return stacks ─▶ stubs                                what was, and is still to run: with the units that it runs
//! thread ─▶ code, stack, links                          the same: a stub that was replaced ─▶ its links ─▶ programs, maps
//! ```
//!
//! The process stands still. A thread in the way is a reason to leave its units for another time.

use crate::detach::Slots;
use crate::error::TargetRefused;
use crate::existing::{Existing, Found, find, is_ours};
use crate::request::Request;
use crate::sequences;
use crate::stack::Stack;
use crate::target::{self, remote};
use crate::wire::{Wire, region_offset};
use beeline_abi::link::LinkRuntime;
use beeline_abi::process::Region;
use beeline_ptrace::{Registers, StoppedProcess};
use beeline_remote::{Borrowed, Mappings, Process, RemoteError, SystemCall};

/// What one attach has mapped.
#[derive(Debug)]
struct Unit {
    regions: Vec<Region>,
    /// Ranges of addresses in which words refer to other units.
    tables: Vec<Region>,
    /// Tables for walking stacks are among it: a program that runs may be reading them.
    has_texts: bool,
}

impl Unit {
    /// All of them, the first attach's aside: that stays as long as the agent.
    fn all(existing: &Existing, maps: &Mappings) -> Vec<Unit> {
        let mut files: Vec<((u64, u64), Unit)> = Vec::new();
        for &region in existing.regions.iter().filter(|region| region.len != 0) {
            let Some(mapping) = maps.at(region.start).filter(|mapping| is_ours(mapping)) else { continue };
            let file = (mapping.device, mapping.inode);
            let unit = match files.iter_mut().find(|(known, _)| *known == file) {
                Some((_, unit)) => unit,
                None => {
                    let unit = Unit { regions: Vec::new(), tables: Vec::new(), has_texts: false };
                    files.push((file, unit));
                    let Some((_, unit)) = files.last_mut() else { continue };
                    unit
                }
            };
            unit.regions.push(region);
            unit.has_texts |= mapping.read && !mapping.write && !mapping.execute;
            if mapping.write && !mapping.execute {
                unit.tables.push(region);
            }
        }
        let units = files.into_iter().map(|(_, unit)| unit);
        units.filter(|unit| !unit.holds(existing.block)).collect()
    }

    fn holds(&self, address: u64) -> bool {
        self.regions.iter().any(|region| address.wrapping_sub(region.start) < region.len)
    }

    /// Something that the process has refers to a part of it.
    fn is_referred_to(&self, existing: &Existing) -> bool {
        let head = &existing.head;
        let tables = [
            existing.block,
            head.cpu_slots,
            head.threads,
            head.maps,
            head.programs,
            head.sites,
            head.trace,
            head.texts,
            head.system_calls,
            head.guard,
            head.fork_page,
            head.task,
            head.pool,
            head.reserve,
        ];
        let sites = existing.sites.iter().flat_map(|site| [site.stub, site.links]);
        let links = existing.links.iter().flatten().flat_map(|link| [link.shared, link.entry]);
        let programs = existing.programs.iter().map(|program| program.entry);
        let maps = existing.maps.iter().flat_map(|map| [map.base, map.data]);
        let rows = existing.texts.iter().map(|text| text.rows);
        let mut all = tables.into_iter().chain(sites).chain(links).chain(programs).chain(maps).chain(rows);
        all.any(|address| self.holds(address))
    }
}

/// Takes out the units that nobody needs; the process stands still. `waiting` are threads that wait for their follower's answer:
/// they are in our code, in a part of it that stays.
pub(crate) fn sweep(
    process: &Process,
    stopped: &mut StoppedProcess,
    waiting: &[i32],
) -> Result<(), TargetRefused> {
    let failed = |error: RemoteError| remote(process.pid(), error);
    let maps = process.maps().map_err(failed)?;
    let Found::Agent(existing) = find(process, &maps)? else { return Ok(()) };
    let existing = existing.without_gone(process, &maps);
    let units = Unit::all(&existing, &maps);
    let mut in_force: Vec<bool> = units.iter().map(|unit| unit.is_referred_to(&existing)).collect();
    if in_force.iter().all(|&referred| referred) || !existing.knows_its_programs() {
        return Ok(());
    }
    let hooked = existing.hooked(process);
    for (unit, referred) in units.iter().zip(&mut in_force) {
        *referred |= hooked.iter().any(|&chain| unit.holds(chain));
    }
    let slots = Slots::read(process, &existing)?;
    let threads = Threads { process, maps: &maps, existing: &existing, slots: &slots, waiting };
    let Some(in_use) = threads.in_use(stopped, &units)? else { return Ok(()) };
    let in_use = with_what_they_use(process, &units, in_use).map_err(failed)?;
    let free: Vec<&Unit> = units
        .iter()
        .zip(in_force.iter().zip(&in_use))
        .filter(|(_, (in_force, in_use))| !**in_force && !**in_use)
        .map(|(unit, _)| unit)
        .collect();
    if free.is_empty() {
        return Ok(());
    }
    let Some(index) = target::borrowable(process, stopped) else { return Ok(()) };
    // Out of the list first: whatever comes to these addresses later must not be taken for ours.
    for (index, region) in existing.regions.iter().enumerate() {
        if region.len != 0 && free.iter().any(|unit| unit.regions.contains(region)) {
            let at = existing.block + region_offset(index);
            process.memory().write(at, &Region::default().to_bytes()).map_err(failed)?;
        }
    }
    let goes = |word: u64| free.iter().any(|unit| unit.holds(word));
    sequences::forget(process, stopped, &slots, goes).map_err(failed)?;
    let mut borrowed = Borrowed::begin(process, &maps, stopped, index).map_err(failed)?;
    let regions = free.iter().flat_map(|unit| &unit.regions);
    let calls: Vec<SystemCall> = regions.map(|region| SystemCall::unmap(region.start, region.len)).collect();
    let result = borrowed.make_all(&calls);
    let ended = borrowed.end(stopped);
    result.and(ended).map_err(failed)
}

/// The units that are used, and those that their tables refer to, and so on.
fn with_what_they_use(
    process: &Process,
    units: &[Unit],
    mut in_use: Vec<bool>,
) -> Result<Vec<bool>, RemoteError> {
    let mut ahead: Vec<usize> = (0..units.len()).filter(|&index| in_use[index]).collect();
    while let Some(index) = ahead.pop() {
        for table in &units[index].tables {
            let bytes = process.memory().read_vec(table.start, table.len as usize)?;
            for word in bytes.chunks_exact(8).map(u64::get) {
                let other = units.iter().position(|unit| unit.holds(word));
                if let Some(other) = other.filter(|&other| !in_use[other]) {
                    in_use[other] = true;
                    ahead.push(other);
                }
            }
        }
    }
    Ok(in_use)
}

impl Existing {
    /// Every program in force stands in the table of programs, and so do the maps that it uses in theirs. Else one was to be
    /// replaced and could not be, and what it uses is not known.
    fn knows_its_programs(&self) -> bool {
        let known = |id: u32| self.programs.iter().any(|program| program.id == id);
        self.links.iter().flatten().all(|link| link.link_id == LinkRuntime::OWN || known(link.prog_id))
    }

    /// The same without programs and maps that no probe has any more, when the request is all that the process is to carry.
    pub(crate) fn without_unused(mut self, request: &Request) -> Existing {
        let has = |id: u32| {
            request.probes.iter().any(|probe| probe.link_id == id)
                || request.system_calls.iter().any(|call| call.link_id == id)
        };
        let stays = |link: &&LinkRuntime| link.link_id != LinkRuntime::OWN && !request.is_over(link);
        if self.links.iter().flatten().filter(stays).all(|link| has(link.link_id)) {
            self.programs.retain(|known| request.programs.iter().any(|program| program.id == known.id));
            self.maps.retain(|known| request.maps.iter().any(|map| map.id == known.id));
        }
        self
    }
}

/// The threads of a process that stands still.
struct Threads<'a> {
    process: &'a Process,
    maps: &'a Mappings,
    existing: &'a Existing,
    slots: &'a Slots,
    waiting: &'a [i32],
}

impl Threads<'_> {
    /// Which units the threads are in, or will come back to; none when that cannot be told.
    fn in_use(&self, stopped: &StoppedProcess, units: &[Unit]) -> Result<Option<Vec<bool>>, TargetRefused> {
        let mut in_use = vec![false; units.len()];
        let mut mark = |address: u64| {
            for (unit, used) in units.iter().zip(&mut in_use) {
                *used |= unit.holds(address);
            }
        };
        for entry in self.slots.returns(self.process) {
            [entry.site, entry.trampoline, entry.return_address].into_iter().for_each(&mut mark);
        }
        let mut reads_texts = false;
        for thread in stopped.threads() {
            let failed = |error: RemoteError| remote(self.process.pid(), error);
            let registers = thread.known_registers().map_err(|error| failed(error.into()))?;
            general(&registers).into_iter().for_each(&mut mark);
            let waits = self.waiting.contains(&thread.tid());
            let runs = self.slots.link_that_runs(&registers);
            runs.into_iter().for_each(&mut mark);
            reads_texts |= runs.is_some() && !waits;
            let stack = Stack::of(self.process, self.maps, &registers);
            let owns = |address| self.existing.owns(address);
            let restorer = self.existing.dispatching.map(|dispatching| dispatching.restorer());
            if stack.handler_returns_but(restorer).any(|(pc, sp)| owns(pc) || owns(sp)) {
                return Ok(None);
            }
            // In the agent, which may have been called from anywhere, or in a function that a program has called.
            if (owns(registers.rip) || runs.is_some()) && !waits {
                stack.words_in(0..u64::MAX).for_each(&mut mark);
            }
        }
        for (unit, used) in units.iter().zip(&mut in_use) {
            *used |= unit.has_texts && reads_texts;
        }
        Ok(Some(in_use))
    }
}

/// What a thread has in its registers.
fn general(registers: &Registers) -> [u64; 17] {
    let it = registers;
    [
        it.rip, it.rsp, it.rax, it.rbx, it.rcx, it.rdx, it.rsi, it.rdi, it.rbp, it.r8, it.r9, it.r10, it.r11,
        it.r12, it.r13, it.r14, it.r15,
    ]
}
