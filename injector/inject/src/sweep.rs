//! Takes out what an earlier attach has mapped for libraries that are not there any more.
//!
//! What one attach adds is taken out as a whole, when nothing refers to any part of it: no site, link, program or table of the
//! process, and no thread. A thread that is in our code at the moment is a reason to leave it for another time.

use crate::detach::Slots;
use crate::error::TargetRefused;
use crate::existing::{Existing, Found, find};
use crate::generation::Generation;
use crate::stack::Stack;
use crate::target::remote;
use crate::wire::{Wire, region_offset};
use beeline_abi::process::Region;
use beeline_ptrace::{Registers, Stopped, StoppedProcess};
use beeline_remote::{Borrowed, Mappings, Process, RemoteError, SystemCall};

/// What one attach has mapped.
#[derive(Debug)]
pub(crate) struct Unit {
    regions: Vec<Region>,
    /// Tables for walking stacks are among it: a program that runs may be reading them.
    has_texts: bool,
}

impl Unit {
    pub(crate) fn new(generation: &Generation<'_>) -> Unit {
        let regions = generation.regions.clone();
        let has_texts = regions.iter().any(|region| region.start == generation.head.texts);
        Unit { regions, has_texts }
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

/// Takes out those of the units that nobody needs; the process stands still. `rings` are threads that wait for their follower's
/// answer: they are in our code, in a part of it that stays.
pub(crate) fn sweep(
    process: &Process,
    stopped: &mut StoppedProcess,
    units: &mut Vec<Unit>,
    waiting: &[i32],
) -> Result<(), TargetRefused> {
    let failed = |error: RemoteError| remote(process.pid(), error);
    let maps = process.maps().map_err(failed)?;
    let Found::Agent(existing) = find(process, &maps)? else { return Ok(()) };
    let existing = existing.without_gone(process, &maps);
    if units.iter().all(|unit| unit.is_referred_to(&existing)) {
        return Ok(());
    }
    let slots = Slots::read(process, &existing)?;
    let threads = Threads { process, maps: &maps, existing: &existing, slots: &slots, waiting };
    let mut free = Vec::new();
    let mut kept = Vec::new();
    for unit in units.drain(..) {
        let needed = unit.is_referred_to(&existing)
            || slots.returns(process).any(|entry| {
                [entry.site, entry.trampoline, entry.return_address].iter().any(|&at| unit.holds(at))
            })
            || stopped.threads().iter().any(|thread| threads.need(thread, &unit).unwrap_or(true));
        if needed { kept.push(unit) } else { free.push(unit) }
    }
    *units = kept;
    if free.is_empty() {
        return Ok(());
    }
    // Out of the list first: whatever comes to these addresses later must not be taken for ours.
    for (index, region) in existing.regions.iter().enumerate() {
        if region.len != 0 && free.iter().any(|unit| unit.regions.contains(region)) {
            let at = existing.block + region_offset(index);
            process.memory().write(at, &Region::default().to_bytes()).map_err(failed)?;
        }
    }
    let mut borrowed = Borrowed::begin(process, &maps, stopped, 0).map_err(failed)?;
    let regions = free.iter().flat_map(|unit| &unit.regions);
    let calls: Vec<SystemCall> = regions.map(|region| SystemCall::unmap(region.start, region.len)).collect();
    let result = borrowed.make_all(&calls);
    let ended = borrowed.end(stopped);
    result.and(ended).map_err(failed)
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
    /// The thread is in a unit, or will come back to it.
    fn need(&self, thread: &Stopped, unit: &Unit) -> Result<bool, TargetRefused> {
        let registers = thread.registers().map_err(|error| remote(self.process.pid(), error.into()))?;
        let waits = self.waiting.contains(&thread.tid());
        let runs = self.slots.link_that_runs(&registers);
        if runs.is_some_and(|link| unit.holds(link)) || (unit.has_texts && runs.is_some() && !waits) {
            return Ok(true);
        }
        if general(&registers).into_iter().any(|word| unit.holds(word)) {
            return Ok(true);
        }
        let stack = Stack::of(self.process, self.maps, &registers);
        let mut handlers = stack.handler_returns();
        let interrupted = handlers.any(|(pc, sp)| self.existing.owns(pc) || self.existing.owns(sp));
        // In the agent, which may have been called from anywhere.
        let inside = self.existing.owns(registers.rip) && !waits;
        Ok((interrupted || inside) && stack.words_in(0..u64::MAX).any(|word| unit.holds(word)))
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
