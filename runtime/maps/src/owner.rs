//! Whether the thread that left its owner word somewhere is still alive.
//!
//! Always conservative: who cannot be known counts as alive. Taking a word from a living thread would break things,
//! leaving a dead one's only costs what it held.

use crate::pool::ANONYMOUS;
use crate::system;
use beeline_abi::map::Access;
use beeline_abi::process::OWNER_FOREIGN;

/// Bits of a thread id (`PID_MAX_LIMIT` is 2^22).
const TID_BITS: u32 = 22;
/// Bits of the start time that a digest keeps.
const START_BITS: u32 = 9;

/// An owner word in 32 bits: thread id, the low bits of its start time, and whether it is foreign.
pub fn digest(owner: u64) -> u32 {
    let tid = owner as u32 & ((1 << TID_BITS) - 1);
    let start = (owner >> 32) as u32 & ((1 << START_BITS) - 1);
    tid | start << TID_BITS | (owner as u32 & OWNER_FOREIGN as u32)
}

/// False when it is certain that the thread with this owner word is gone.
pub fn is_alive(access: &Access, owner: u64) -> bool {
    if owner == 0 {
        return false;
    }
    if owner >= ANONYMOUS || !is_knowable(access, owner) {
        return true;
    }
    thread_lives(owner as u32, (owner >> 32) as u32, u32::MAX)
}

/// [`is_alive`] for a [`digest`].
pub(crate) fn is_digest_alive(access: &Access, digest: u32) -> bool {
    if digest == self::digest(ANONYMOUS) || !is_knowable(access, u64::from(digest)) {
        return true;
    }
    let mask = (1 << START_BITS) - 1;
    thread_lives(digest & ((1 << TID_BITS) - 1), digest >> TID_BITS & mask, mask)
}

/// False when the caller cannot tell whether an owner lives: one of them is in other namespaces, or the caller makes
/// no system calls.
pub(crate) fn is_knowable(access: &Access, owner: u64) -> bool {
    (owner | access.owner) & OWNER_FOREIGN == 0 && access.flags & Access::NO_SYSTEM_CALLS == 0
}

/// The thread exists, is no zombie, and started then. A start of 0 is one that could not be read.
fn thread_lives(tid: u32, start: u32, mask: u32) -> bool {
    if tid == 0 {
        return true;
    }
    if !system::thread_exists(tid) {
        return false;
    }
    match system::thread_start(tid) {
        system::ThreadState::Started(now) => start == 0 || now as u32 & mask == start,
        system::ThreadState::Dead => false,
        system::ThreadState::Unknown => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOBODY: Access = Access { owner: 0, cpu: 0, flags: 0 };

    #[test]
    fn digests_keep_what_identifies() {
        let owner = 0x0000_0123_003f_ffff_u64;
        assert_eq!(digest(owner), 0x3f_ffff | 0x123 << 22);
        assert_eq!(digest(owner | OWNER_FOREIGN), 0x3f_ffff | 0x123 << 22 | 1 << 31);
    }

    #[test]
    fn who_cannot_be_known_is_alive() {
        // Thread 0x3fffff does not exist: the largest possible id is never given out.
        let gone = 0x003f_ffff;
        assert!(!is_alive(&NOBODY, gone));
        assert!(!is_digest_alive(&NOBODY, digest(gone)));
        assert!(!is_alive(&NOBODY, 0));
        assert!(is_alive(&NOBODY, gone | OWNER_FOREIGN));
        assert!(is_digest_alive(&NOBODY, digest(gone | OWNER_FOREIGN)));
        assert!(is_alive(&Access { owner: OWNER_FOREIGN | 5, ..NOBODY }, gone));
        assert!(is_alive(&Access { flags: Access::NO_SYSTEM_CALLS, ..NOBODY }, gone));
        assert!(is_alive(&NOBODY, ANONYMOUS) && is_digest_alive(&NOBODY, digest(ANONYMOUS)));
    }
}
