//! What is mapped comes in force: tables, threads in windows, jumps, semaphores. The process stands still.

use super::Prepared;
use crate::dispatch::known_code;
use crate::error::TargetRefused;
use crate::generation::Generation;
use crate::guard::Placed;
use crate::semaphore;
use crate::sites::PlannedSites;
use crate::wire::BlockHead;
use beeline_abi::link::LinkRuntime;
use beeline_abi::process::{ForkPage, ProcessBlock, Region};
use beeline_ptrace::{Registers, StoppedProcess};
use std::mem::offset_of;

impl Prepared<'_> {
    /// Makes the tables current, moves threads out of the way, writes the jumps.
    pub(super) fn put_in_force(
        &self,
        generation: &Generation<'_>,
        planned: &PlannedSites,
        head: &BlockHead,
        stopped: &StoppedProcess,
    ) -> Result<(), TargetRefused> {
        // The agent may have changed its block when it was started.
        let fork_page = self.read_fork_page(generation.block)?;
        let head = BlockHead { fork_page, flags: head.flags | ProcessBlock::FLAG_UNFINISHED, ..head.clone() };
        self.write_head_at(generation.block, &head)?;
        if fork_page != 0 {
            let pid = (self.process.pid() as u32).to_le_bytes();
            let at = fork_page + offset_of!(ForkPage, attached) as u64;
            self.process.memory().write(at, &pid).map_err(|error| self.failed(error))?;
        }
        for thread in stopped.threads() {
            let registers = thread.known_registers().map_err(|error| self.failed(error.into()))?;
            if let Some(rip) = moved(generation, registers.rip) {
                let registers = Registers { rip, ..registers };
                thread.set_registers(&registers).map_err(|error| self.failed(error.into()))?;
            }
        }
        self.leave_ended(&planned.restored)?;
        if let Some(tables) = &generation.call_tables {
            tables.write(self.process).map_err(|error| self.failed(error))?;
        }
        self.write_patches(generation, false)?;
        self.begin_dispatch(generation, planned, stopped)?;
        if let Some(placed) = Placed::at(self.process, head.guard) {
            placed.set_table(generation.breakpoints).map_err(|error| self.failed(error))?;
        }
        // By now the guard sees every call.
        self.write_patches(generation, true)?;
        self.enter_semaphores(generation)?;
        let flags = head.flags & !ProcessBlock::FLAG_UNFINISHED;
        self.write_head_at(generation.block, &BlockHead { flags, ..head })
    }

    /// Has calls dispatched that no jump is around. The handler is in force, and the guard sees what concerns it.
    fn begin_dispatch(
        &self,
        generation: &Generation<'_>,
        planned: &PlannedSites,
        stopped: &StoppedProcess,
    ) -> Result<(), TargetRefused> {
        let Some(made) = &generation.dispatch else { return Ok(()) };
        let (process, dispatching) = (self.process, &made.dispatching);
        let range = dispatching.range();
        let existing = self.existing.iter().flat_map(|existing| existing.regions.iter().copied());
        let ours: Vec<Region> = existing.chain(generation.regions.iter().copied()).collect();
        let known =
            known_code(planned.calls.known.iter().copied().filter(|call| !range.contains(call)), &ours);
        dispatching
            .lead(process, &made.code, (generation.known_code, &known))
            .and_then(|()| dispatching.serve_agent(process, generation.call_gate, true))
            .and_then(
                |()| if made.is_new { dispatching.unblock(process, &self.maps, stopped) } else { Ok(()) },
            )
            .and_then(|()| dispatching.begin(process, stopped))
            .map_err(|error| self.failed(error))
    }

    fn write_patches(&self, generation: &Generation<'_>, breakpoints: bool) -> Result<(), TargetRefused> {
        let patches = generation.patches.iter().filter(|patch| patch.is_breakpoint == breakpoints);
        for write in patches.flat_map(|patch| &patch.writes) {
            self.process.memory().write(write.address, &write.bytes).map_err(|error| self.failed(error))?;
        }
        Ok(())
    }

    /// Takes links that have ended out of their semaphores, and puts the original bytes back where nothing else is.
    fn leave_ended(&self, restored: &[usize]) -> Result<(), TargetRefused> {
        let Some(existing) = &self.existing else { return Ok(()) };
        for (index, (site, links)) in existing.sites.iter().zip(&existing.links).enumerate() {
            let has_ended = site.link_count != 0 && links.iter().any(|link| self.request.is_over(link));
            // Where our jump stands, the library with the semaphore is still mapped.
            if !has_ended || !existing.is_in_place(self.process, site) {
                continue;
            }
            semaphore::leave(self.process, site.links, links, |link| self.request.is_over(link))
                .map_err(|error| self.failed(error))?;
            if restored.contains(&index) {
                let original = &site.original[..site.len as usize];
                self.process.memory().write(site.address, original).map_err(|error| self.failed(error))?;
            }
        }
        Ok(())
    }

    /// Counts our links in the semaphores of their probes. If we are killed in between, a semaphore stays too high: its
    /// probe prepares arguments for nobody.
    fn enter_semaphores(&self, generation: &Generation<'_>) -> Result<(), TargetRefused> {
        for (at, link) in generation.patches.iter().flat_map(|patch| &patch.semaphores) {
            if semaphore::add(self.process, link.semaphore, 1).map_err(|error| self.failed(error))? {
                semaphore::mark(self.process, *at, link.flags | LinkRuntime::IN_SEMAPHORE)
                    .map_err(|error| self.failed(error))?;
            }
        }
        Ok(())
    }

    /// Undoes the jumps of an attempt that failed in the middle of writing them. Its mappings stay, as the block says:
    /// the next attach or detach takes them out.
    pub(super) fn take_back(&self, generation: &Generation<'_>, stopped: &StoppedProcess) {
        if let Some(made) = generation.dispatch.as_ref().filter(|made| made.is_new) {
            let _ = made.dispatching.end(self.process, stopped);
        }
        for write in generation.patches.iter().flat_map(|patch| patch.writes.iter().rev()) {
            // Whoever cannot be written now could not be before; nothing else is left to try.
            let _ = self.process.memory().write(write.address, &write.expected[..write.bytes.len()]);
        }
        for thread in stopped.threads() {
            let Ok(registers) = thread.known_registers() else { continue };
            let stubs = generation.patches.iter().flat_map(|patch| &patch.writes).flat_map(|w| &w.moved);
            let back = stubs.into_iter().find_map(|stub| stub.pc_in_original(registers.rip));
            if let Some(rip) = back {
                let _ = thread.set_registers(&Registers { rip, ..registers });
            }
        }
    }
}

/// Where a thread has to go on whose program counter is inside of a window.
fn moved(generation: &Generation<'_>, pc: u64) -> Option<u64> {
    let mut writes = generation.patches.iter().flat_map(|patch| &patch.writes);
    let inside = writes.find(|write| write.inner_addresses().any(|inner| inner == pc))?;
    inside.moved.as_ref()?.pc_in_stub(pc)
}
