//! A thread's outstanding return probes.
//!
//! The stub pushes and pops in the common case; it comes here when the top entry is not what it expects. That is the case
//! after `longjmp` or an exception (entries whose frames are gone), on other stacks (signal handlers, coroutines), at a
//! tail call (two entries on one stack word), and when the stack is full.
//!
//! An entry is *alive* as long as the stack word at its `sp` holds its trampoline: the function has not returned. A word
//! below the stack pointer may hold it still, so an entry that looks alive may be stale, but one whose word changed is
//! dead for certain. Only such entries are dropped; the rest goes when its word is overwritten. After a tail call the word
//! holds the younger trampoline, and the younger entry returns to the older one's: both are alive.
//!
//! A coroutine that has changed threads returns on another one than it was called on. Its entry is taken there: the one who sets the
//! entry's `sp` to 0 has it. The owner moves entries while others look for theirs; [`Sweeps::moving`] is odd then, and they look again.

use crate::{memory, process, slot_of};
use beeline_abi::errno::EFAULT;
use beeline_abi::link::LinkRuntime;
use beeline_abi::process::{ProcessBlock, SiteRuntime};
use beeline_abi::run::RunContext;
use beeline_abi::thread::{RETURN_SLOTS, ReturnSlot, SESSIONS, THREAD_SLOTS, ThreadSlot};
use beeline_helpers::{read, sys};
use core::cell::UnsafeCell;
use core::ptr::null_mut;
use core::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release};
use core::sync::atomic::{AtomicU64, AtomicUsize};

/// Bytes of an entry.
const ENTRY: u64 = size_of::<ReturnSlot>() as u64;

/// Entries from the top that are examined at every call that finds them out of order.
const EXAMINED_MAX: u32 = 8;

/// True when the entry's frame is still there, or that cannot be told: the kernel refuses to read for us.
unsafe fn is_alive(slot: *mut ThreadSlot, entry: *const ReturnSlot) -> bool {
    let mut word = 0u64;
    // SAFETY: the slot is the calling thread's; a bad address gives an error.
    unsafe {
        // No program runs: the registers of the last run may be on a stack that is gone.
        let mut run = RunContext { regs: 0, ..(*slot).run };
        match read::fetch(&raw mut run, (&raw mut word).cast(), 8, (*entry).sp) {
            0 => word == (*entry).trampoline,
            errno => errno != -EFAULT,
        }
    }
}

/// Entries on the thread's return stack.
unsafe fn count(slot: *const ThreadSlot) -> u64 {
    // SAFETY: the caller's slot.
    let (base, top) = unsafe { ((*slot).returns_base, (*slot).returns_top) };
    (top.wrapping_sub(base) / ENTRY).min(RETURN_SLOTS)
}

/// Entry `index` from the bottom.
unsafe fn entry(slot: *const ThreadSlot, index: u64) -> *mut ReturnSlot {
    // SAFETY: the caller's slot.
    unsafe { ((*slot).returns_base + index * ENTRY) as *mut ReturnSlot }
}

/// Makes room for one entry at `returns_top` for a function entered with stack pointer `sp`: 1, or 0 when there is none
/// and the return is missed.
///
/// # Safety
///
/// `slot` is the calling thread's.
pub unsafe extern "sysv64" fn room(slot: *mut ThreadSlot, sp: u64) -> u64 {
    // SAFETY: the caller's contract.
    unsafe {
        if !memory::provide(slot, (*slot).run.process as *mut ProcessBlock) {
            return 0;
        }
        drop_dead_top(slot, sp);
        if count(slot) < RETURN_SLOTS {
            return 1;
        }
        let sweeps = sweeps(slot);
        let top = (*entry(slot, RETURN_SLOTS - 1)).sp;
        if (*sweeps).top != top {
            (*sweeps).top = top;
            (*sweeps).lowest = (0..RETURN_SLOTS).map(|index| (*entry(slot, index)).sp).min().unwrap_or(0);
        }
        if !(*sweeps).is_due(sp) {
            return 0;
        }
        drop_dead(slot);
        let is_useful = count(slot) < RETURN_SLOTS;
        (*sweeps).made(is_useful);
        u64::from(is_useful)
    }
}

/// When the entries of a full return stack are looked at again.
///
/// A sweep takes a hundred microseconds, and a full stack has the agent called at every entry. Deep recursion goes below every
/// entry there is, in order: nothing is to be found then. Long chains of tail calls, and more coroutines than there are
/// entries, leave entries that are all alive: the more sweeps were in vain, the fewer are made.
#[repr(C)]
struct Sweeps {
    /// The lowest stack word of an entry, as long as the last entry is that for `top`.
    lowest: u64,
    /// The stack word of the last entry when `lowest` was found.
    top: u64,
    /// Calls to go without a sweep.
    pause: u32,
    /// Sweeps that found nothing, since the last that did and the last call from below every entry.
    vain: u32,
    /// Calls from below every entry since the last sweep.
    below: u64,
    /// Odd while the owner moves entries or gives them up.
    moving: AtomicU64,
}

const _: () = assert!(size_of::<Sweeps>() as u64 <= memory::RETURNS_LEN - (RETURN_SLOTS + 1) * ENTRY);

/// Calls without a sweep at most: what a sweep takes is not much in so many calls.
const PAUSE_MAX: u32 = 1024;

/// Sweeps in vain before there are pauses: what `longjmp` has left looks alive until its words are overwritten, call by call.
const VAIN_MAX: u32 = 64;

impl Sweeps {
    /// A call with stack pointer `sp` finds the stack full.
    fn is_due(&mut self, sp: u64) -> bool {
        if sp < self.lowest {
            // Unless this is another stack, and the entries are left over.
            self.below += 1;
            self.vain = 0;
            return self.below > u64::from(PAUSE_MAX);
        }
        let is_due = self.pause == 0;
        self.pause = self.pause.saturating_sub(1);
        is_due
    }

    /// A sweep found dead entries or did not.
    fn made(&mut self, useful: bool) {
        self.top = 0;
        self.below = 0;
        self.vain = if useful { 0 } else { (self.vain + 1).min(2 * VAIN_MAX) };
        let doublings = self.vain.saturating_sub(VAIN_MAX).min(PAUSE_MAX.ilog2());
        self.pause = (1 << doublings) - 1;
    }
}

/// The thread's [`Sweeps`]: behind the entries, in memory that was zero.
unsafe fn sweeps(slot: *const ThreadSlot) -> *mut Sweeps {
    // SAFETY: the caller's slot, which has its memory.
    unsafe { ((*slot).returns_base + (RETURN_SLOTS + 1) * ENTRY) as *mut Sweeps }
}

/// Drops dead entries from the top as long as they are not above `sp`.
unsafe fn drop_dead_top(slot: *mut ThreadSlot, sp: u64) {
    for _ in 0..EXAMINED_MAX {
        // SAFETY: the caller's slot.
        unsafe {
            let count = count(slot);
            if count == 0 {
                return;
            }
            let top = entry(slot, count - 1);
            if (*top).sp > sp || is_alive(slot, top) {
                return;
            }
            (*slot).returns_top = top as u64;
        }
    }
}

/// Drops every dead entry, keeping the order of the others.
unsafe fn drop_dead(slot: *mut ThreadSlot) {
    // SAFETY: the caller's slot.
    unsafe { keep_alive(slot, 0, 0) }
}

/// Keeps the entries before `kept`, and of those from `from` on the ones that are alive, behind them.
unsafe fn keep_alive(slot: *mut ThreadSlot, mut kept: u64, from: u64) {
    // SAFETY: the caller's slot; `kept <= from`, so that no entry is overwritten before it was looked at.
    unsafe {
        let end = count(slot);
        let mut alive = Alive::default();
        let mut behind = end;
        while behind > from {
            let many = (behind - from).min(BATCH as u64);
            behind -= many;
            alive.examine(slot, behind, many);
        }
        let moving = begin_moving(slot);
        for index in from..end {
            if alive.holds(index) && (index == kept || relocate(entry(slot, index), entry(slot, kept))) {
                kept += 1;
            }
        }
        (*slot).returns_top = (*slot).returns_base + kept * ENTRY;
        moving.fetch_add(1, Release);
    }
}

/// Others look again from now on for what they miss, until the word is even.
unsafe fn begin_moving<'a>(slot: *mut ThreadSlot) -> &'a AtomicU64 {
    // SAFETY: the slot is the calling thread's, and has its memory: there is an entry.
    unsafe {
        let moving = &(*sweeps(slot)).moving;
        // Odd already when a handler that interrupted us was left by `longjmp`.
        moving.fetch_or(1, AcqRel);
        moving
    }
}

/// Moves an entry; false when another thread has taken it.
unsafe fn relocate(from: *mut ReturnSlot, to: *mut ReturnSlot) -> bool {
    // SAFETY: both are entries of the calling thread's return stack.
    unsafe {
        let entry = from.read();
        to.write(entry);
        let moved = entry.sp != 0 && claim(from, entry.sp);
        if !moved {
            (*to).sp = 0;
        }
        moved
    }
}

/// Takes an entry away if it is still the one for `sp`. No return address lies at 0: its thread drops it as dead.
unsafe fn claim(entry: *mut ReturnSlot, sp: u64) -> bool {
    // SAFETY: an entry of the table's, in which others change the word only in the same way while it may be taken.
    unsafe { AtomicU64::from_ptr(&raw mut (*entry).sp).compare_exchange(sp, 0, AcqRel, Relaxed).is_ok() }
}

/// Entries that are looked at by one system call.
const BATCH: usize = read::WORDS_MAX;

/// Which entries are alive, found from the youngest to the oldest.
#[derive(Default)]
struct Alive {
    /// A bit for each entry.
    entries: [u64; RETURN_SLOTS.div_ceil(64) as usize],
    /// A bit for each hash of a stack word of such an entry: few have a younger one on their own word.
    words: [u64; 16],
}

impl Alive {
    /// The entry was found alive.
    fn holds(&self, index: u64) -> bool {
        self.entries.get(index as usize / 64).is_some_and(|bits| bits & 1 << (index % 64) != 0)
    }

    /// Place of a stack word in `words`.
    fn hash(sp: u64) -> (usize, u64) {
        /// 2^64 by the golden section.
        const GOLDEN: u64 = 0x9E37_79B9_7F4A_7C15;
        let hash = sp.wrapping_mul(GOLDEN) >> 54;
        (hash as usize / 64, 1 << (hash % 64))
    }

    fn enter(&mut self, index: u64, sp: u64) {
        if let Some(bits) = self.entries.get_mut(index as usize / 64) {
            *bits |= 1 << (index % 64);
        }
        let (word, bit) = Self::hash(sp);
        if let Some(bits) = self.words.get_mut(word) {
            *bits |= bit;
        }
    }

    /// Looks at `many` entries from `first` on, at most [`BATCH`], all younger ones having been looked at.
    unsafe fn examine(&mut self, slot: *mut ThreadSlot, first: u64, many: u64) {
        let mut sources = [0u64; BATCH];
        let mut words = [0u64; BATCH];
        // SAFETY: the slot is the calling thread's; both arrays hold as many as are asked for.
        unsafe {
            for (index, source) in sources.iter_mut().enumerate().take(many as usize) {
                *source = (*entry(slot, first + index as u64)).sp;
            }
            let mut run = RunContext { regs: 0, ..(*slot).run };
            let asked = sources.get(..many as usize).unwrap_or(&[]);
            let read = read::fetch_words(&raw mut run, &mut words, asked);
            for index in (0..many).rev() {
                let (at, number) = (first + index, index as usize);
                // What the kernel refuses to tell is taken for alive.
                let is_alive = read.is_none_or(|read| {
                    let word = words.get(number).copied().unwrap_or(0);
                    read & 1 << index != 0
                        && (word == (*entry(slot, at)).trampoline || self.leads_to(slot, at))
                });
                if is_alive {
                    self.enter(at, sources.get(number).copied().unwrap_or(0));
                }
            }
        }
    }

    /// After a tail call from its function: a younger entry on the same word returns to this one's trampoline.
    unsafe fn leads_to(&self, slot: *const ThreadSlot, index: u64) -> bool {
        // SAFETY: the caller's slot and an index in it.
        unsafe {
            let ReturnSlot { sp, trampoline, .. } = *entry(slot, index);
            let (word, bit) = Self::hash(sp);
            if self.words.get(word).is_none_or(|bits| bits & bit == 0) {
                return false;
            }
            let mut younger = (index + 1..count(slot)).filter(|&at| self.holds(at));
            let next = younger.find(|&at| (*entry(slot, at)).sp == sp);
            next.is_some_and(|at| (*entry(slot, at)).return_address == trampoline)
        }
    }
}

/// The entry for the stack word at `sp`, taken away and copied to where it stays readable for the moment. Younger entries
/// stay when they are alive: they may be those of a coroutine that waits on its own stack. The entry may have been made on
/// another thread, by a coroutine that moved; and that thread may have put the return address back for an unwinder. Null only when no thread
/// has one. `stub` is an address in the stub.
///
/// # Safety
///
/// `slot` is the calling thread's, or null when it has none: then only other threads' entries are looked at. `sp` is where the return point
/// stood when the function returned.
pub unsafe extern "sysv64" fn find(slot: *mut ThreadSlot, sp: u64, stub: u64) -> *mut ReturnSlot {
    /// No stub is longer.
    const STUB_MAX: u64 = 32 << 10;
    // SAFETY: the caller's contract; the block is that of the process.
    unsafe {
        if !slot.is_null()
            && let Some(index) = newest(slot, sp)
        {
            return take_own(slot, index, sp);
        }
        let block = if slot.is_null() { process::block() } else { (*slot).run.process as *mut ProcessBlock };
        if block.is_null() {
            return null_mut();
        }
        for round in 0..ROUNDS_MAX {
            match look_around(block, slot, sp) {
                Look::Found(entry) => return put_aside(slot, sp, &entry),
                Look::Nowhere => break,
                Look::Again if round < ROUNDS_YIELDING => sys::yield_now(),
                Look::Again => sys::sleep_ns(ROUND_NS),
            }
        }
        let word = (sp as *const u64).read_volatile();
        if word.abs_diff(stub) < STUB_MAX {
            return null_mut();
        }
        // No session's program runs: what it kept is gone.
        let session_flags = u64::from(RunContext::SESSION_SKIP) * ((1 << SESSIONS) - 1);
        put_aside(slot, sp, &ReturnSlot { return_address: word, sp, session_flags, ..ReturnSlot::EMPTY })
    }
}

/// Looks at the other threads' entries while one moves its own: five seconds, nearly all of it asleep.
const ROUNDS_MAX: u32 = 50_000;
const ROUNDS_YIELDING: u32 = 64;
const ROUND_NS: u32 = 100_000;

/// What was found on the other threads' return stacks.
enum Look {
    Found(ReturnSlot),
    Nowhere,
    /// A thread moves its entries.
    Again,
}

/// Looks for the newest entry for `sp` on every return stack but that of `slot`, and takes it.
unsafe fn look_around(block: *mut ProcessBlock, slot: *mut ThreadSlot, sp: u64) -> Look {
    let mut seen = Look::Nowhere;
    // SAFETY: the process's block, whose table has THREAD_SLOTS entries; an entry's memory stays where it is.
    unsafe {
        for number in 0..THREAD_SLOTS {
            let other = ((*block).threads as *mut ThreadSlot).add(number as usize);
            if other == slot || (*other).returns_base == 0 {
                continue;
            }
            let moving = &(*sweeps(other)).moving;
            let before = moving.load(Acquire);
            let place = newest(other, sp).map(|index| entry(other, index));
            let found = place.map(|place| (place, place.read()));
            let still = before & 1 == 0 && moving.load(Acquire) == before;
            match found {
                Some((place, entry)) if still && claim(place, sp) => return Look::Found(entry),
                None if still => {}
                _ => seen = Look::Again,
            }
        }
    }
    seen
}

/// A program of the agent's own, for the entries of unwinders: puts every outstanding return address of the thread back
/// where the function expects it, and forgets the entries. A walk over the stack, of an exception or a `backtrace()`, then
/// sees the stack as it is without return probes. Their programs do not run for these calls: each is a miss.
///
/// # Safety
///
/// `run` is that of the calling thread's slot, whose guard is set.
pub unsafe extern "sysv64" fn restore(_context: *mut u8, run: *mut RunContext) -> u64 {
    // SAFETY: the caller's contract. A word that holds an entry's trampoline was written by a stub of this thread, in a
    // frame that has not returned; from the top down, because tail calls stack entries on one word.
    unsafe {
        let slot = slot_of(run);
        if count(slot) == 0 {
            return 0;
        }
        let moving = begin_moving(slot);
        for index in (0..count(slot)).rev() {
            let place = entry(slot, index);
            let entry = place.read();
            let mut word = 0u64;
            let known = read::fetch(run, (&raw mut word).cast(), 8, entry.sp) == 0;
            // Unless a coroutine returns from it on another thread.
            if known && word == entry.trampoline && claim(place, entry.sp) {
                (entry.sp as *mut u64).write(entry.return_address);
                count_misses(entry.site as *const SiteRuntime);
            }
        }
        (*slot).returns_top = (*slot).returns_base;
        moving.fetch_add(1, Release);
    }
    0
}

/// Counts a miss on each return link of a site.
unsafe fn count_misses(site: *const SiteRuntime) {
    // SAFETY: sites and their links stay where they are while the agent is in the process.
    unsafe {
        for index in 0..(*site).link_count {
            let link = ((*site).links as *const LinkRuntime).add(index as usize);
            if (*link).flags & LinkRuntime::RETURN != 0 {
                process::count_miss(link);
            }
        }
    }
}

/// Index of the newest entry for `sp`.
unsafe fn newest(slot: *const ThreadSlot, sp: u64) -> Option<u64> {
    // SAFETY: a slot of the table.
    unsafe { (0..count(slot)).rev().find(|&index| (*entry(slot, index)).sp == sp) }
}

/// Entries that were taken away, until their stubs have read them: a few instructions later. Only for what is rare: a thread that is
/// preempted there reads another's entry when so many were drawn meanwhile.
struct Taken(UnsafeCell<[ReturnSlot; TAKEN]>);

/// More threads than can be between a [`find`] and the next instructions at once.
const TAKEN: usize = 256;

// SAFETY: every place is written by the one thread that drew its number, and drawn again only 256 draws later.
unsafe impl Sync for Taken {}

static PLACES: Taken = Taken(UnsafeCell::new([ReturnSlot::EMPTY; TAKEN]));
static DRAWN: AtomicUsize = AtomicUsize::new(0);

/// Takes an entry away from the calling thread's own return stack; where it can be read. Dead younger ones go with it, unless a handler
/// has interrupted us while they are moved.
unsafe fn take_own(slot: *mut ThreadSlot, index: u64, sp: u64) -> *mut ReturnSlot {
    // SAFETY: the caller's slot and an index in it.
    unsafe {
        let place = put_aside(slot, sp, entry(slot, index));
        (*entry(slot, index)).sp = 0;
        if (*sweeps(slot)).moving.load(Relaxed) & 1 == 0 || is_outermost(slot, sp) {
            keep_alive(slot, index, index + 1);
        }
        place
    }
}

/// No program runs below the return at this stack word: its stub has set the guard word.
unsafe fn is_outermost(slot: *const ThreadSlot, sp: u64) -> bool {
    /// From the stub's frame to the word, at most.
    const FRAME_MAX: u64 = 1024;
    // SAFETY: the caller's slot.
    unsafe { sp.wrapping_sub((*slot).guard.load(Relaxed)) < FRAME_MAX }
}

/// Copies an entry to where it stays readable until the stub has read it: behind the thread's own ones, or in [`PLACES`] where the thread
/// has none, or a handler has interrupted it, perhaps before it has read what lies there.
unsafe fn put_aside(slot: *const ThreadSlot, sp: u64, from: *const ReturnSlot) -> *mut ReturnSlot {
    // SAFETY: the caller's slot; the index is within bounds.
    unsafe {
        let place = if !slot.is_null() && (*slot).memory != 0 && is_outermost(slot, sp) {
            entry(slot, RETURN_SLOTS)
        } else {
            PLACES.0.get().cast::<ReturnSlot>().add(DRAWN.fetch_add(1, Relaxed) % TAKEN)
        };
        place.write(from.read());
        place
    }
}
