//! Owner words: who holds a slot or a lock in shared memory, and whether that thread still lives.
//!
//! An owner word ([`Access::owner`](beeline_abi::map::Access::owner)) is a thread id in the low half and the low 32 bits
//! of the thread's start time (clock ticks since boot, `proc(5)` stat field 22) in the high half, so that a reused thread
//! id is not mistaken for the owner. A start time of 0 means that it could not be read.

use crate::sys::{self, nr};
use beeline_abi::process::{OWNER_FOREIGN, ProcessBlock};

/// Start time of thread `tid` of any process in clock ticks since boot; `None` when it cannot be read.
fn start_ticks(tid: u32) -> Option<u64> {
    const START_TIME: usize = 22;
    let mut path = sys::Path::<32>::new();
    path.push(b"/proc/").push_number(tid).push(b"/stat");
    let mut stat = [0u8; 512];
    let len = sys::read_file(path.as_bytes(), &mut stat);
    sys::stat_field(stat.get(..len)?, START_TIME)
}

/// The owner word of the calling thread, whose id is `tid`.
pub fn current(process: Option<&ProcessBlock>, tid: u32) -> u64 {
    let start = start_ticks(tid).unwrap_or(0);
    let foreign = process.is_some_and(|block| block.flags & ProcessBlock::FLAG_FOREIGN_IDS != 0);
    u64::from(tid) | start << 32 | if foreign { OWNER_FOREIGN } else { 0 }
}

/// True unless it is certain that the thread of this owner word is gone.
///
/// `foreign`: the calling process itself lives in other namespaces than the store's, so it cannot tell of anybody.
pub fn is_alive(owner: u64, foreign: bool) -> bool {
    let tid = owner as u32;
    if foreign || owner & OWNER_FOREIGN != 0 || tid == 0 {
        return true;
    }
    // SAFETY: signal 0 sends nothing; kill(2) finds a process by the id of any of its threads.
    if unsafe { sys::call2(nr::KILL, u64::from(tid), 0) } == sys::NO_SUCH_PROCESS {
        return false;
    }
    let start = (owner >> 32) as u32;
    start == 0 || start_ticks(tid).is_none_or(|ticks| ticks as u32 == start)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn living_and_dead() {
        let here = current(None, sys::thread_id());
        assert_ne!(here >> 32, 0);
        assert!(is_alive(here, false));
        assert!(!is_alive(here ^ 1 << 40, false), "same id, other start time");
        let gone = std::thread::spawn(|| current(None, sys::thread_id())).join().unwrap();
        // The join returns when the kernel has cleared the thread's id, which it does before it takes the thread off
        // its tables: it may be seen for a moment.
        while is_alive(gone, false) {
            sys::yield_now();
        }
        assert!(is_alive(gone, true));
        assert!(is_alive(gone | OWNER_FOREIGN, false));
    }
}
