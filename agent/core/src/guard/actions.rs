//! What the process wants done with a guarded signal: recorded, while the guard's own handler stays in force.
//!
//! A version is written into an entry of its own before it becomes the newest; who reads one looks afterwards whether it still
//! stands there. So a handler on another thread, or on top of a thread that writes, sees one version or the other.

use super::kernel::{call, process_id, read, write};
use super::masks;
use beeline_abi::dispatch::{Dispatch, SIGSYS};
use beeline_abi::errno::EFAULT;
use beeline_abi::guard::{Action, GUARDED, Guard, RECORDED, RT_SIGACTION, Record, bit, own_flags};
use beeline_abi::process::ForkPage;
use beeline_abi::regs::PtRegs;
use core::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release};
use core::sync::atomic::fence;

/// How often a version is looked for that stays while it is read.
const LOOKS_MAX: usize = 64;
/// Flags that the kernel keeps (`UAPI_SA_FLAGS`, `SA_RESTORER`).
const FLAGS: u64 = 7 | 0x800 | Action::OWN | Action::RESTART | Action::RESET_HAND;
/// `SIGKILL`, `SIGSTOP`, which no mask keeps.
const NEVER: u64 = bit(9) | bit(19);
/// Bytes of a mask.
const MASK_LEN: u64 = 8;

/// Before `rt_sigaction(signal, action, old, size)`: its result, or none when the kernel is to answer, which then gets an action that
/// blocks no guarded signal.
pub(super) fn set(guard: &Guard, signals: u64, registers: &mut PtRegs) -> Option<i64> {
    let (signal, size) = (u64::from(registers.di as u32), registers.r10);
    if size != MASK_LEN || !(1..=64).contains(&signal) {
        return None;
    }
    let action = registers.si;
    let new = if action == 0 { None } else { Some(read(guard, action).map(from_words)) };
    if signals & bit(signal) != 0 {
        let record = record_of(guard, signal)?;
        return Some(answer(guard, record, signal, new, registers.dx));
    }
    let new = new.flatten()?;
    if new.mask & signals != 0 {
        let without = Action { mask: new.mask & !signals, ..new };
        masks::replace_action(guard, &mut registers.si, words(without), registers.sp);
    }
    None
}

/// Behind one that the kernel has answered, with the process's own arguments in `registers`: what it was, and is, in the masks of handlers.
pub(super) fn was_set(guard: &Guard, signals: u64, registers: &PtRegs) {
    let signal = u64::from(registers.di as u32);
    if registers.ax != 0 || signals & bit(signal) != 0 || !(1..=64).contains(&signal) {
        return;
    }
    let mut before = 0;
    for (record, guarded) in guard.records.iter().zip(GUARDED) {
        if signals & bit(guarded) != 0 && record.trimmed.load(Relaxed) & bit(signal) != 0 {
            before |= bit(guarded);
        }
    }
    let new: Option<Action> =
        if registers.si == 0 { None } else { read(guard, registers.si).map(from_words) };
    if before != 0
        && registers.dx != 0
        && let Some([handler, flags, restorer, mask]) = read(guard, registers.dx)
    {
        // It wrote there itself a moment ago.
        write(guard, registers.dx, [handler, flags, restorer, mask | before]);
    }
    if let Some(new) = new
        && is_own(guard)
    {
        trim(guard, signal, new.mask & signals);
    }
}

/// The record of a guarded signal.
pub(super) fn record_of(guard: &Guard, signal: u64) -> Option<&Record> {
    guard.records.iter().zip(GUARDED).find(|(_, guarded)| *guarded == signal).map(|(record, _)| record)
}

/// The handler of `signal` is without these guarded ones in its mask.
fn trim(guard: &Guard, signal: u64, without: u64) {
    for (record, guarded) in guard.records.iter().zip(GUARDED) {
        if without & bit(guarded) != 0 {
            record.trimmed.fetch_or(bit(signal), Relaxed);
        } else {
            record.trimmed.fetch_and(!bit(signal), Relaxed);
        }
    }
}

/// The call for a guarded signal (`kernel/signal.c`: `SYSCALL_DEFINE4(rt_sigaction`).
fn answer(guard: &Guard, record: &Record, signal: u64, new: Option<Option<Action>>, old: u64) -> i64 {
    let before = match new {
        Some(None) => return -EFAULT,
        // A child that shares the memory has actions of its own, which end with it when it executes.
        Some(Some(new)) if is_own(guard) => {
            // Where a handler in which the guard has gone on returns to is needed as long as that runs.
            let restorer = if new.restorer == 0 { newest(record).1.restorer } else { new.restorer };
            let new = Action { flags: new.flags & FLAGS, mask: new.mask & !NEVER, restorer, ..new };
            install(guard, signal, new.flags);
            make_newest(record, new)
        }
        _ => newest(record).1,
    };
    if old != 0 && !write(guard, old, words(before)) {
        return -EFAULT;
    }
    0
}

/// Puts the guard's handler in force: calls that it interrupts go on or not as the process wants it.
fn install(guard: &Guard, signal: u64, flags: u64) -> i64 {
    let flags = own_flags(signal, flags);
    let restorer = match dispatch_of(guard) {
        Some(dispatch) if signal == SIGSYS => dispatch.restorer,
        _ => guard.restorer,
    };
    let own = Action { handler: guard.handler, flags, restorer, mask: 0 };
    // SAFETY: handler and restorer are the guard's, which stays as long as the handler.
    unsafe { make(guard, signal, (&raw const own) as u64, 0) }
}

/// # Safety
///
/// The addresses are those of an action, or 0, or the kernel finds out that they are none.
unsafe fn make(guard: &Guard, signal: u64, action: u64, old: u64) -> i64 {
    // SAFETY: the caller's contract.
    unsafe { call(guard, RT_SIGACTION, [signal, action, old, MASK_LEN, 0, 0]) }
}

/// The version that holds, and its number.
pub(super) fn newest(record: &Record) -> (u64, Action) {
    for _ in 0..LOOKS_MAX {
        let version = record.newest.load(Acquire);
        if let Some(action) = at(record, version) {
            return (version, action);
        }
    }
    (0, Action::default())
}

/// The action of a version, while it still stands there.
fn at(record: &Record, version: u64) -> Option<Action> {
    let entry = record.actions.get(version as usize % RECORDED)?;
    if entry.version.load(Acquire) != version {
        return None;
    }
    let words = entry.words.each_ref().map(|word| word.load(Relaxed));
    fence(Acquire);
    (entry.version.load(Relaxed) == version).then(|| from_words(words))
}

/// Writes a version that is not the newest yet; its number.
fn write_version(record: &Record, action: Action) -> u64 {
    let version = record.claimed.fetch_add(1, Relaxed) + 1;
    if let Some(entry) = record.actions.get(version as usize % RECORDED) {
        entry.version.store(0, Relaxed);
        fence(Release);
        for (to, word) in entry.words.iter().zip(words(action)) {
            to.store(word, Relaxed);
        }
        entry.version.store(version, Release);
    }
    version
}

/// Makes an action the newest; the one before.
fn make_newest(record: &Record, action: Action) -> Action {
    let version = write_version(record, action);
    let before = record.newest.swap(version, AcqRel);
    at(record, before).unwrap_or_default()
}

/// A handler that was for once is taken (`SA_RESETHAND`), unless there is a newer version.
pub(super) fn reset(record: &Record, version: u64, action: Action) {
    let next = write_version(record, Action { handler: Action::DEFAULT, ..action });
    // A newer one is what the process wants.
    let _ = record.newest.compare_exchange(version, next, AcqRel, Relaxed);
}

/// Puts the default action in force, and raises the signal again: the process ends as it would have.
pub(super) fn end(guard: &Guard, signal: u64) {
    let default = Action::default();
    // SAFETY: the action is ours.
    unsafe { make(guard, signal, (&raw const default) as u64, 0) };
    super::kernel::raise(guard, signal);
}

fn fork_page(guard: &Guard) -> Option<&ForkPage> {
    // SAFETY: the injector mapped it, for as long as the guard.
    unsafe { (guard.fork_page as *const ForkPage).as_ref() }
}

/// The memory is this process's, not that of a parent that waits for it.
pub(super) fn is_own(guard: &Guard) -> bool {
    let owner = fork_page(guard).map_or(0, |page| page.owner.load(Relaxed));
    owner == 0 || i64::from(owner) == process_id(guard)
}

/// A call that may have made a child has returned 0. `may_clear`: it may have put the actions of all signals back. True when the guard's
/// handlers are in force.
pub(super) fn in_child(guard: &Guard, may_clear: bool) -> bool {
    let signals = guard.signals.load(Relaxed);
    if signals == 0 {
        return false;
    }
    if let Some(page) = fork_page(guard)
        && page.owner.load(Relaxed) == 0
    {
        // Its own memory, whose page a fork leaves empty.
        page.owner.store(process_id(guard) as u32, Relaxed);
    }
    let mut in_force = true;
    if may_clear {
        for (record, signal) in guard.records.iter().zip(GUARDED) {
            if signals & bit(signal) != 0 {
                in_force &= put_back(guard, record, signal);
            }
        }
    }
    in_force
}

/// Puts the guard's handler back in force where it is not; whether it is.
fn put_back(guard: &Guard, record: &Record, signal: u64) -> bool {
    let mut now = Action::default();
    // SAFETY: the kernel writes one action.
    let asked = unsafe { make(guard, signal, 0, (&raw mut now) as u64) };
    if asked != 0 || now.handler == guard.handler {
        return asked == 0;
    }
    let installed = install(guard, signal, Action::RESTART);
    if is_own(guard) && newest(record).1.handler != Action::IGNORE {
        make_newest(record, Action::default());
    }
    installed == 0
}

/// How calls are dispatched.
pub(super) fn dispatch_of(guard: &Guard) -> Option<&Dispatch> {
    // SAFETY: the injector mapped it, for as long as the guard.
    unsafe { (guard.dispatch.load(Acquire) as *const Dispatch).as_ref() }
}

fn from_words([handler, flags, restorer, mask]: [u64; 4]) -> Action {
    Action { handler, flags, restorer, mask }
}

fn words(action: Action) -> [u64; 4] {
    [action.handler, action.flags, action.restorer, action.mask]
}
