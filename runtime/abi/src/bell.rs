//! The page by which a process tells its follower that libraries came or went.
//!
//! ```text
//! thread: takes a caller's word ─▶ rings += 1, wakes ─▶ waits until the word is not its own any more, a bounded time
//! follower: waits for rings ─▶ looks at the process of each caller ─▶ clears the word, wakes
//! ```
//!
//! The link's `enabled` word is a robust futex of the follower: when it dies, the stub does not come here any more, and who
//! waits sees it.

use crate::link::LinkShared;
use core::sync::atomic::{AtomicU32, AtomicU64};

/// Threads that can wait at the same time.
pub const CALLERS: usize = 64;

/// A wait ends after this time, to look whether the follower lives.
pub const WAIT_NS: u32 = 20_000_000;
/// Waits that end in that way before a thread goes on without an answer: five seconds.
pub const WAITS_MAX: u32 = 250;
/// Waits that signals may end before that.
pub const INTERRUPTIONS_MAX: u32 = 100_000;

/// Shared by a follower with everybody whom it follows.
#[repr(C)]
#[derive(Debug)]
pub struct Bell {
    /// Of the agent's own link at the loader's hook.
    pub link: LinkShared,
    /// A random number of this follower's bell, never 0.
    pub identity: u64,
    /// Grows when somebody has begun to wait.
    pub rings: AtomicU32,
    /// The last ticket that was given out.
    pub tickets: AtomicU32,
    /// Zero, to the end of a cache line.
    pub reserved: [u64; 6],
    /// Who waits: [`caller`]; 0 = free.
    pub callers: [AtomicU64; CALLERS],
}

const _: () = assert!(size_of::<Bell>() == 128 + 8 * CALLERS && size_of::<Bell>() <= 4096);
const _: () = assert!(core::mem::offset_of!(Bell, rings) == 72);
const _: () = assert!(core::mem::offset_of!(Bell, callers) == 128);

/// From a caller's word to the half of it that a thread waits on: the ticket (little-endian).
pub const TICKET_OFFSET: usize = 4;

/// The word of thread `tid`, by its id in its own pid namespace. The ticket is not 0.
pub const fn caller(ticket: u32, tid: u32) -> u64 {
    (ticket as u64) << 32 | tid as u64
}

/// The thread of a caller's word.
pub const fn thread_of(caller: u64) -> u32 {
    caller as u32
}

/// The ticket of a caller's word.
pub const fn ticket_of(caller: u64) -> u32 {
    (caller >> 32) as u32
}
