//! The guard of a process that has breakpoints, or whose calls are dispatched: made, put in force, taken out.
//!
//! ```text
//! attach    block with the record of what the process wants ▸ handler ▸ sites at calls ▸ table ▸ the first int3
//! detach    the last int3 ▸ nobody is on the way from one ▸ handler ▸ sites at calls
//! ```
//!
//! If we are killed in between, the handler does what the process wants: it stays until somebody comes who takes out the rest.

mod image;
mod obstacles;

pub(crate) use image::GuardImage;
pub(crate) use obstacles::{blocking, is_at_guarded_call};

use crate::dispatch::Dispatching;
use crate::existing::Existing;
use crate::patch::Patch;
use crate::wire::Wire;
use beeline_abi::guard::{
    Action, Breakpoint, Breakpoints, GUARD_MAGIC, GUARDED, Guard, MASKED, Masked, RECORDED, Record, Recorded,
    SIGTRAP, bit, own_flags,
};
use beeline_abi::process::{ForkPage, SiteRuntime};
use beeline_ptrace::{Registers, Stopped, StoppedProcess, read_status};
use beeline_remote::{Borrowed, Process, RemoteError, SystemCall};
use std::mem::offset_of;

/// Signals that there are.
const SIGNALS: u64 = 64;
/// Entries of a table of breakpoints that are believed.
const BREAKPOINTS_MAX: u64 = 1 << 20;

/// Bytes of the block.
pub(crate) const GUARD_LEN: u64 = size_of::<Guard>() as u64;

/// What of the agent's a guard has to know. Addresses are the process's.
#[derive(Clone, Copy, Debug)]
pub(crate) struct GuardParts {
    pub(crate) call_gate: u64,
    /// The agent's functions before and behind a system call, and when no program can run there.
    pub(crate) system_call: [u64; 3],
    pub(crate) handler: u64,
    pub(crate) restorer: u64,
    pub(crate) fork_page: u64,
}

impl GuardParts {
    /// The head of a block, to begin with.
    pub(crate) fn head(&self) -> Vec<u8> {
        let mut bytes = vec![0; offset_of!(Guard, records)];
        let [enter, exit, missed] = self.system_call;
        for (offset, word) in [
            (offset_of!(Guard, magic), GUARD_MAGIC),
            (offset_of!(Guard, call_gate), self.call_gate),
            (offset_of!(Guard, enter), enter),
            (offset_of!(Guard, exit), exit),
            (offset_of!(Guard, missed), missed),
            (offset_of!(Guard, handler), self.handler),
            (offset_of!(Guard, restorer), self.restorer),
            (offset_of!(Guard, fork_page), self.fork_page),
        ] {
            word.put(&mut bytes[offset..]);
        }
        bytes
    }
}

/// The bytes of a table of breakpoints.
pub(crate) fn table(breakpoints: &[Breakpoint]) -> Vec<u8> {
    let mut sorted = breakpoints.to_vec();
    sorted.sort_unstable_by_key(|it| it.address);
    let words = sorted.iter().flat_map(|it| [it.address, it.stub]);
    [sorted.len() as u64].into_iter().chain(words).flat_map(u64::to_le_bytes).collect()
}

/// Bytes that a table of so many takes.
pub(crate) fn table_len(count: usize) -> usize {
    size_of::<Breakpoints>() + count * size_of::<Breakpoint>()
}

/// The guard of a process.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Placed<'a> {
    process: &'a Process,
    /// Address of its block.
    block: u64,
}

impl<'a> Placed<'a> {
    /// The one whose block is at this address, when there is one.
    pub(crate) fn at(process: &'a Process, block: u64) -> Option<Placed<'a>> {
        let placed = Placed { process, block };
        (block != 0 && placed.word(offset_of!(Guard, magic)).ok()? == GUARD_MAGIC).then_some(placed)
    }

    fn word(&self, offset: usize) -> Result<u64, RemoteError> {
        self.process.memory().read_u64(self.block + offset as u64)
    }

    fn set_word(&self, offset: usize, word: u64) -> Result<(), RemoteError> {
        self.process.memory().write_u64(self.block + offset as u64, word)
    }

    /// The signals for which its handler is in force.
    pub(crate) fn signals(&self) -> Result<u64, RemoteError> {
        self.word(offset_of!(Guard, signals))
    }

    /// Its handler is in force for this one.
    pub(crate) fn keeps(&self, signal: u64) -> bool {
        self.signals().is_ok_and(|signals| signals & bit(signal) != 0)
    }

    /// Its handler is in force for any.
    pub(crate) fn is_active(&self) -> bool {
        self.signals().is_ok_and(|signals| signals != 0)
    }

    /// Address of the agent's gate of system calls.
    pub(crate) fn call_gate(&self) -> Result<u64, RemoteError> {
        self.word(offset_of!(Guard, call_gate))
    }

    /// Lets it find how calls are dispatched; 0: they are not.
    pub(crate) fn set_dispatch(&self, block: u64) -> Result<(), RemoteError> {
        self.set_word(offset_of!(Guard, dispatch), block)
    }

    /// The breakpoints that it knows.
    pub(crate) fn breakpoints(&self) -> Vec<Breakpoint> {
        let Ok(table) = self.word(offset_of!(Guard, breakpoints)) else { return Vec::new() };
        let memory = self.process.memory();
        let count = if table == 0 { 0 } else { memory.read_u64(table).unwrap_or(0) };
        if count > BREAKPOINTS_MAX {
            return Vec::new();
        }
        let start = table + size_of::<Breakpoints>() as u64;
        let bytes = memory.read_vec(start, count as usize * size_of::<Breakpoint>()).unwrap_or_default();
        let words = bytes.as_chunks::<16>().0.iter();
        words.map(|it| Breakpoint { address: u64::get(it), stub: u64::get(&it[8..]) }).collect()
    }

    /// Lets the handler find the breakpoints of this table.
    pub(crate) fn set_table(&self, table: u64) -> Result<(), RemoteError> {
        self.set_word(offset_of!(Guard, breakpoints), table)
    }

    /// Puts the handler in force for these signals. What the process wants done with them is recorded before; its other handlers do not
    /// block them any more. `inner_pid` is the process's id as it knows it.
    pub(crate) fn install(
        &self,
        borrowed: &mut Borrowed<'_>,
        signals: u64,
        inner_pid: u32,
    ) -> Result<(), RemoteError> {
        if signals == 0 {
            return Ok(());
        }
        let fork_page = self.word(offset_of!(Guard, fork_page))?;
        if fork_page != 0 {
            let owner = fork_page + offset_of!(ForkPage, owner) as u64;
            self.process.memory().write(owner, &inner_pid.to_le_bytes())?;
        }
        let before = self.actions(borrowed)?;
        let mut actions = before.clone();
        let own = self.word(offset_of!(Guard, handler))?;
        for (index, guarded) in GUARDED.into_iter().enumerate().filter(|(_, it)| signals & bit(*it) != 0) {
            let wanted = action_of(&before, guarded);
            if wanted.handler != own {
                self.record(index, wanted)?;
            }
            let trimmed = trim(&mut actions, guarded);
            let at = record_field(index, offset_of!(Record, trimmed));
            self.set_word(at, self.word(at)? | trimmed)?;
            set_action(&mut actions, guarded, self.own_action(guarded, wanted)?);
        }
        // Before: if we are killed while the borrowed thread works through its calls, it comes to their end.
        self.set_word(offset_of!(Guard, signals), self.signals()? | signals)?;
        self.make_current(borrowed, &before, &actions)
    }

    /// The guard's own action for a signal with which the process wants this one.
    fn own_action(&self, signal: u64, wanted: Action) -> Result<Action, RemoteError> {
        let flags = match wanted.handler {
            Action::DEFAULT | Action::IGNORE => Action::RESTART,
            _ => wanted.flags,
        };
        let restorer = match Dispatching::read(self.process, self.block) {
            Ok(Some(dispatching)) if signal != SIGTRAP => dispatching.restorer(),
            _ => self.word(offset_of!(Guard, restorer))?,
        };
        let handler = self.word(offset_of!(Guard, handler))?;
        // What a handler of the process blocks the guard blocks itself, before it goes on in it.
        Ok(Action { handler, flags: own_flags(signal, flags), restorer, mask: 0 })
    }

    /// Puts everything back to what the process wants with these signals, unless somebody else has a handler in force meanwhile.
    pub(crate) fn uninstall(&self, borrowed: &mut Borrowed<'_>, signals: u64) -> Result<(), RemoteError> {
        let before = self.actions(borrowed)?;
        let mut actions = before.clone();
        let own = self.word(offset_of!(Guard, handler))?;
        let meant = || GUARDED.into_iter().enumerate().filter(|(_, it)| signals & bit(*it) != 0);
        for (index, guarded) in meant() {
            if action_of(&before, guarded).handler == own {
                set_action(&mut actions, guarded, self.wanted(index)?);
            }
            let trimmed = self.word(record_field(index, offset_of!(Record, trimmed)))?;
            for (signal, action) in (1..).zip(&mut actions) {
                if trimmed & bit(signal) != 0 && action.handler != Action::DEFAULT && action.handler != own {
                    action.mask |= bit(guarded);
                }
            }
        }
        self.make_current(borrowed, &before, &actions)?;
        for (index, _) in meant() {
            self.set_word(record_field(index, offset_of!(Record, trimmed)), 0)?;
        }
        self.set_word(offset_of!(Guard, signals), self.signals()? & !signals)
    }

    /// Sets the actions that have changed.
    fn make_current(
        &self,
        borrowed: &mut Borrowed<'_>,
        before: &[Action],
        actions: &[Action],
    ) -> Result<(), RemoteError> {
        let changed = (1..).zip(actions).zip(before).filter(|((_, action), before)| action != before);
        let calls = changed.map(|((signal, action), _)| self.setting(signal, *action));
        borrowed.make_all(&calls.collect::<Result<Vec<_>, _>>()?)
    }

    /// What is to be done with each signal now, from signal 1 on.
    fn actions(&self, borrowed: &mut Borrowed<'_>) -> Result<Vec<Action>, RemoteError> {
        let calls = (1..=SIGNALS).map(|signal| SystemCall::signal_action(signal, 0, self.scratch(signal)));
        borrowed.make_all(&calls.collect::<Vec<_>>())?;
        let len = (SIGNALS as usize) * Action::LEN;
        let bytes = self.process.memory().read_vec(self.scratch(1), len)?;
        Ok(bytes.chunks_exact(Action::LEN).map(Action::get).collect())
    }

    /// The call that sets an action, which is written to where the call finds it.
    fn setting(&self, signal: u64, action: Action) -> Result<SystemCall, RemoteError> {
        self.process.memory().write(self.scratch(signal), &action.to_bytes())?;
        Ok(SystemCall::signal_action(signal, self.scratch(signal), 0))
    }

    fn scratch(&self, signal: u64) -> u64 {
        self.block + (offset_of!(Guard, scratch) + (signal as usize - 1) * Action::LEN) as u64
    }

    /// Records what the process wants, as the first version.
    fn record(&self, index: usize, action: Action) -> Result<(), RemoteError> {
        const VERSION: u64 = 1;
        let at = record_field(index, version_field(VERSION));
        let words = self.block + (at + offset_of!(Recorded, words)) as u64;
        self.process.memory().write(words, &action.to_bytes())?;
        self.set_word(at + offset_of!(Recorded, version), VERSION)?;
        self.set_word(record_field(index, offset_of!(Record, claimed)), VERSION)?;
        self.set_word(record_field(index, offset_of!(Record, newest)), VERSION)
    }

    /// What the process wants done with a signal.
    fn wanted(&self, index: usize) -> Result<Action, RemoteError> {
        let newest = self.word(record_field(index, offset_of!(Record, newest)))?;
        let at = record_field(index, version_field(newest));
        let words = self.block + (at + offset_of!(Recorded, words)) as u64;
        Ok(Action::get(&self.process.memory().read_vec(words, Action::LEN)?))
    }

    /// Where the guard's handlers return to, and where handlers of the process for the same signal do.
    pub(crate) fn restorers(&self) -> Result<Vec<Restorer>, RemoteError> {
        let own = self.word(offset_of!(Guard, restorer))?;
        let in_tail = Dispatching::read(self.process, self.block).ok().flatten().map(|it| it.restorer());
        let mut found = Vec::new();
        for (index, signal) in GUARDED.into_iter().enumerate() {
            let theirs = self.wanted(index)?.restorer;
            found.extend([Some(own), in_tail].into_iter().flatten().map(|ours| Restorer {
                signal,
                ours,
                theirs,
            }));
        }
        Ok(found)
    }

    /// A thread that has met a breakpoint, and whose signal is still to be delivered.
    pub(crate) fn in_flight(&self, stopped: &StoppedProcess) -> Option<i32> {
        let breakpoints = self.breakpoints();
        let found = stopped.threads().iter().find(|thread| has_met(&breakpoints, thread));
        found.map(|thread| thread.tid())
    }

    /// The registers of a thread in a call that has an argument of ours, with the process's own in its place; the kernel may make the
    /// call again with them. None when it has none.
    pub(crate) fn without_copies(&self, registers: &Registers) -> Option<Registers> {
        let mut own = *registers;
        let mut changed = false;
        let it = &mut own;
        for register in [&mut it.rdi, &mut it.rsi, &mut it.rdx, &mut it.r10, &mut it.r8, &mut it.r9] {
            let start = self.block + offset_of!(Guard, masked) as u64;
            let index = register.wrapping_sub(start) / size_of::<Masked>() as u64;
            if *register < start || index >= MASKED as u64 {
                continue;
            }
            let entry = start + index * size_of::<Masked>() as u64;
            let memory = self.process.memory();
            let sp = memory.read_u64(entry + offset_of!(Masked, sp) as u64);
            let original = memory.read_u64(entry + offset_of!(Masked, original) as u64);
            if let (Ok(1..), Ok(original)) = (sp, original) {
                *register = original;
                changed = true;
            }
        }
        changed.then_some(own)
    }
}

/// Where handlers of a signal return to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Restorer {
    pub(crate) signal: u64,
    /// Those of the guard, and those of the process in which it goes on.
    pub(crate) ours: u64,
    /// Those of the process without a guard; 0: none was set.
    pub(crate) theirs: u64,
}

/// Offset in the block of a field of a record.
fn record_field(index: usize, field: usize) -> usize {
    offset_of!(Guard, records) + index * size_of::<Record>() + field
}

/// Offset in a record of the entry of a version.
fn version_field(version: u64) -> usize {
    offset_of!(Record, actions) + (version as usize % RECORDED) * size_of::<Recorded>()
}

/// Takes a signal out of the masks of all others' handlers; of which it was one.
fn trim(actions: &mut [Action], guarded: u64) -> u64 {
    let mut trimmed = 0;
    for (signal, action) in (1..).zip(actions).filter(|(signal, _)| *signal != guarded) {
        if action.mask & bit(guarded) != 0 {
            trimmed |= bit(signal);
            action.mask &= !bit(guarded);
        }
    }
    trimmed
}

/// The thread has met one of the breakpoints, and its signal is still to be delivered.
fn has_met(breakpoints: &[Breakpoint], thread: &Stopped) -> bool {
    let at = |pc: u64| breakpoints.binary_search_by_key(&pc.wrapping_sub(1), |it| it.address).is_ok();
    thread.known_registers().is_ok_and(|registers| at(registers.rip))
        && read_status(thread.tid()).is_ok_and(|status| status.pending & bit(SIGTRAP) != 0)
}

fn set_action(actions: &mut [Action], signal: u64, action: Action) {
    if let Some(place) = actions.get_mut(signal as usize - 1) {
        *place = action;
    }
}

fn action_of(actions: &[Action], signal: u64) -> Action {
    actions.get(signal as usize - 1).copied().unwrap_or_default()
}

/// The site is a breakpoint.
pub(crate) fn is_breakpoint(site: &SiteRuntime) -> bool {
    site.link_count != 0 && site.flags & SiteRuntime::BREAKPOINT != 0
}

/// Places that get breakpoints now.
pub(crate) fn new_breakpoints(patches: &[Patch]) -> impl Iterator<Item = u64> {
    patches.iter().filter(|patch| patch.is_breakpoint && !patch.writes.is_empty()).map(|patch| patch.address)
}

/// There are some.
pub(crate) fn has_breakpoints(patches: &[Patch]) -> bool {
    new_breakpoints(patches).next().is_some()
}

impl Existing {
    /// Address of the guard's block, 0 = there is none.
    pub(crate) fn guard(&self) -> u64 {
        self.head.guard
    }

    /// A probe of ours stands at the address.
    pub(crate) fn has_site(&self, address: u64) -> bool {
        self.sites.iter().any(|site| site.address == address && site.link_count != 0)
    }

    /// A breakpoint of ours stands at the address.
    pub(crate) fn has_breakpoint(&self, address: u64) -> bool {
        self.sites.iter().any(|site| site.address == address && is_breakpoint(site))
    }
}
