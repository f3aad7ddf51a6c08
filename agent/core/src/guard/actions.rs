//! What the process wants done with a guarded signal: recorded, while the guard's own handler stays in force.
//!
//! A version is written into an entry of its own before it becomes the newest; who reads one looks afterwards whether it still
//! stands there. So a handler on another thread, or on top of a thread that writes, sees one version or the other.

use super::kernel::{call, process_id, read, write};
use beeline_abi::calls::NOT_MADE;
use beeline_abi::errno::EFAULT;
use beeline_abi::guard::{Action, Guard, RECORDED, RT_SIGACTION, SIGTRAP, bit};
use beeline_abi::process::ForkPage;
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

/// `rt_sigaction(signal, action, old, size)`: its result, or none when the kernel is to answer.
pub(super) fn set(guard: &Guard, signals: u64, [signal, action, old, size]: [u64; 4]) -> Option<i64> {
    let signal = u64::from(signal as u32);
    if size != MASK_LEN || !(1..=64).contains(&signal) {
        return None;
    }
    let new = if action == 0 { None } else { Some(read(guard, action).map(from_words)) };
    if signals & bit(signal) != 0 {
        return Some(answer(guard, signal, new, old));
    }
    let new = new.flatten()?;
    if new.mask & signals == 0 {
        guard.trimmed.fetch_and(!bit(signal), Relaxed);
        return None;
    }
    let without = Action { mask: new.mask & !signals, ..new };
    // SAFETY: the kernel checks `old`; the action is ours.
    let result = unsafe { make(guard, signal, (&raw const without) as u64, old) };
    if result == 0 && is_own(guard) {
        guard.trimmed.fetch_or(bit(signal), Relaxed);
    }
    (result != NOT_MADE).then_some(result)
}

/// The call for a guarded signal (`kernel/signal.c`: `SYSCALL_DEFINE4(rt_sigaction`).
fn answer(guard: &Guard, signal: u64, new: Option<Option<Action>>, old: u64) -> i64 {
    let before = match new {
        Some(None) => return -EFAULT,
        // A child that shares the memory has actions of its own, which end with it when it executes.
        Some(Some(new)) if is_own(guard) => {
            let new = Action { flags: new.flags & FLAGS, mask: new.mask & !NEVER, ..new };
            install(guard, signal, new.flags);
            record(guard, new)
        }
        _ => newest(guard).1,
    };
    if old != 0 && !write(guard, old, words(before)) {
        return -EFAULT;
    }
    0
}

/// Puts the guard's handler in force: calls that it interrupts go on or not as the process wants it.
fn install(guard: &Guard, signal: u64, flags: u64) -> i64 {
    let flags = Action::OWN | flags & Action::RESTART;
    let own = Action { handler: guard.handler, flags, restorer: guard.restorer, mask: 0 };
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
pub(super) fn newest(guard: &Guard) -> (u64, Action) {
    for _ in 0..LOOKS_MAX {
        let version = guard.newest.load(Acquire);
        if let Some(action) = at(guard, version) {
            return (version, action);
        }
    }
    (0, Action::default())
}

/// The action of a version, while it still stands there.
fn at(guard: &Guard, version: u64) -> Option<Action> {
    let entry = guard.actions.get(version as usize % RECORDED)?;
    if entry.version.load(Acquire) != version {
        return None;
    }
    let words = entry.words.each_ref().map(|word| word.load(Relaxed));
    fence(Acquire);
    (entry.version.load(Relaxed) == version).then(|| from_words(words))
}

/// Writes a version that is not the newest yet; its number.
fn write_version(guard: &Guard, action: Action) -> u64 {
    let version = guard.claimed.fetch_add(1, Relaxed) + 1;
    if let Some(entry) = guard.actions.get(version as usize % RECORDED) {
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
fn record(guard: &Guard, action: Action) -> Action {
    let version = write_version(guard, action);
    let before = guard.newest.swap(version, AcqRel);
    at(guard, before).unwrap_or_default()
}

/// A handler that was for once is taken (`SA_RESETHAND`), unless there is a newer version.
pub(super) fn reset(guard: &Guard, version: u64, action: Action) {
    let next = write_version(guard, Action { handler: Action::DEFAULT, ..action });
    // A newer one is what the process wants.
    let _ = guard.newest.compare_exchange(version, next, AcqRel, Relaxed);
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
fn is_own(guard: &Guard) -> bool {
    let owner = fork_page(guard).map_or(0, |page| page.owner.load(Relaxed));
    owner == 0 || i64::from(owner) == process_id(guard)
}

/// A call that may have made a child has returned 0. `may_clear`: it may have put the actions of all signals back.
pub(super) fn in_child(guard: &Guard, may_clear: bool) {
    let signals = guard.signals.load(Relaxed);
    if signals == 0 {
        return;
    }
    if let Some(page) = fork_page(guard)
        && page.owner.load(Relaxed) == 0
    {
        // Its own memory, whose page a fork leaves empty.
        page.owner.store(process_id(guard) as u32, Relaxed);
    }
    if !may_clear {
        return;
    }
    let mut now = Action::default();
    // SAFETY: the kernel writes one action.
    let asked = unsafe { make(guard, SIGTRAP, 0, (&raw mut now) as u64) };
    if asked != 0 || now.handler == guard.handler {
        return;
    }
    install(guard, SIGTRAP, Action::RESTART);
    if is_own(guard) && newest(guard).1.handler != Action::IGNORE {
        record(guard, Action::default());
    }
}

fn from_words([handler, flags, restorer, mask]: [u64; 4]) -> Action {
    Action { handler, flags, restorer, mask }
}

fn words(action: Action) -> [u64; 4] {
    [action.handler, action.flags, action.restorer, action.mask]
}
