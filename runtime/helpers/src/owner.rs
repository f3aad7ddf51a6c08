//! Owner words: who holds a slot or a lock in shared memory. Whether it still lives, `beeline_maps::owner` says.
//!
//! An owner word ([`Access::owner`](beeline_abi::map::Access::owner)) is a thread id in the low half and the low 32 bits
//! of the thread's start time (clock ticks since boot, `proc(5)` stat field 22) in the high half, so that a reused thread
//! id is not mistaken for the owner. A start time of 0 means that it could not be read.

use crate::sys;
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

#[cfg(test)]
mod tests {
    use super::*;
    use beeline_abi::map::Access;
    use beeline_maps::owner::is_alive;

    #[test]
    fn living_and_dead() {
        let access = Access::default();
        let here = current(None, sys::thread_id());
        assert_ne!(here >> 32, 0);
        assert!(is_alive(&access, here));
        assert!(!is_alive(&access, here ^ 1 << 40), "same id, other start time");
        let gone = std::thread::spawn(|| current(None, sys::thread_id())).join().unwrap();
        // The join returns when the kernel has cleared the thread's id, which it does before it takes the thread off
        // its tables: it may be seen for a moment.
        while is_alive(&access, gone) {
            sys::yield_now();
        }
        assert!(is_alive(&access, gone | OWNER_FOREIGN));
    }
}
