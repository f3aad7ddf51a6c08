//! What needs the machine: the pair compare-and-swap, and the system calls of rare paths (memory for a growing map,
//! whether an owner is alive, waiting).

use beeline_abi::call_by_gate;
use beeline_abi::calls::{CallGate, NOT_MADE};
use beeline_abi::map::Access;
use core::arch::asm;
use core::mem::MaybeUninit;
use core::slice;
use core::sync::atomic::{AtomicU32, AtomicU64};

const READ: u64 = 0;
const OPEN: u64 = 2;
const CLOSE: u64 = 3;
const SCHED_YIELD: u64 = 24;
const MADVISE: u64 = 28;
const KILL: u64 = 62;
const FUTEX: u64 = 202;

const MADV_POPULATE_WRITE: u64 = 23;
const O_CLOEXEC: u64 = 0o2000000;
const FUTEX_WAIT: u64 = 0;
const FUTEX_WAKE: u64 = 1;
const EINVAL: i64 = -22;
const ESRCH: i64 = -3;

/// Allocates the pages of a mapping without writing to them. False when there is no memory.
///
/// Kernels before 5.14 do not know how (`EINVAL`): there the first touch must do.
pub(crate) fn populate(start: u64, len: u64) -> bool {
    // SAFETY: MADV_POPULATE_WRITE changes no byte.
    let result = unsafe { call3(MADVISE, start, len, MADV_POPULATE_WRITE) };
    result == 0 || result == EINVAL
}

/// One round of waiting for another thread: spins at first, then yields the CPU.
pub(crate) fn pause(access: &Access, round: u32) {
    if round < 16 || access.flags & Access::NO_SYSTEM_CALLS != 0 {
        for _ in 0..32 {
            core::hint::spin_loop();
        }
    } else {
        // SAFETY: touches no memory.
        unsafe { call3(SCHED_YIELD, 0, 0, 0) };
    }
}

/// False when there is no such thread (a zombie exists).
pub(crate) fn thread_exists(tid: u32) -> bool {
    // SAFETY: signal 0 is not delivered.
    unsafe { call3(KILL, u64::from(tid), 0, 0) != ESRCH }
}

/// What `/proc/TID/stat` says.
pub(crate) enum ThreadState {
    /// It started so many clock ticks after boot.
    Started(u64),
    /// It is gone, or a zombie.
    Dead,
    /// It could not be read.
    Unknown,
}

/// Reads a thread's state and start time.
pub(crate) fn thread_start(tid: u32) -> ThreadState {
    let mut path = StatPath(MaybeUninit::uninit());
    path.write(tid);
    let mut buffer = MaybeUninit::<[u8; 512]>::uninit();
    // SAFETY: the path ends with a zero byte; the buffer is writable for its length, and the kernel has written what it
    // says it has.
    unsafe {
        let fd = call3(OPEN, path.0.as_ptr() as u64, O_CLOEXEC, 0);
        if fd < 0 {
            // No procfs, or one that hides other users' processes.
            return ThreadState::Unknown;
        }
        let len = call3(READ, fd as u64, buffer.as_mut_ptr() as u64, 512);
        call3(CLOSE, fd as u64, 0, 0);
        match len {
            ESRCH => ThreadState::Dead,
            1..=512 => parse_stat(slice::from_raw_parts(buffer.as_ptr().cast(), len as usize)),
            _ => ThreadState::Unknown,
        }
    }
}

/// `/proc/TID/stat` with a zero byte behind it. Written byte by byte and in place: an initialiser or a move
/// would take a vector register.
struct StatPath(MaybeUninit<[u8; 24]>);

impl StatPath {
    fn write(&mut self, tid: u32) {
        let mut len = self.push(0, b"/proc/");
        let mut unit = 1_000_000_000;
        while unit > 1 && tid < unit {
            unit /= 10;
        }
        while unit > 0 {
            len = self.push(len, &[b'0' + ((tid / unit) % 10) as u8]);
            unit /= 10;
        }
        self.push(len, b"/stat\0");
    }

    /// Appends to the first `len` bytes; returns how many there are now.
    fn push(&mut self, mut len: usize, text: &[u8]) -> usize {
        for byte in text.iter().take(24_usize.saturating_sub(len)) {
            // SAFETY: less than 24, so in bounds.
            unsafe { self.0.as_mut_ptr().cast::<u8>().add(len).write_volatile(*byte) };
            len += 1;
        }
        len
    }
}

/// Fields 3 (state) and 22 (start time) of a stat line; the name before them may contain anything.
fn parse_stat(text: &[u8]) -> ThreadState {
    let Some(end) = text.iter().rposition(|&b| b == b')') else { return ThreadState::Unknown };
    let mut fields = text.get(end + 1..).unwrap_or(&[]).split(|&b| b == b' ').filter(|f| !f.is_empty());
    if let Some([b'Z' | b'X' | b'x', ..]) = fields.next() {
        return ThreadState::Dead;
    }
    let Some(field) = fields.nth(18) else { return ThreadState::Unknown };
    let mut ticks = 0u64;
    for digit in field {
        ticks = ticks.wrapping_mul(10).wrapping_add(u64::from(digit.wrapping_sub(b'0')));
    }
    ThreadState::Started(ticks)
}

/// Sleeps while the word, shared with other processes, is `expected`; at most `timeout_ns`.
pub(crate) fn futex_wait(word: &AtomicU32, expected: u32, timeout_ns: u64) {
    let timeout = [timeout_ns / 1_000_000_000, timeout_ns % 1_000_000_000];
    // SAFETY: the kernel reads the word and the timeout.
    unsafe { call4(FUTEX, word.as_ptr() as u64, FUTEX_WAIT, u64::from(expected), timeout.as_ptr() as u64) };
}

/// Wakes all that sleep on the word.
pub(crate) fn futex_wake(word: &AtomicU32) {
    // SAFETY: the kernel uses the address as a name only.
    unsafe { call3(FUTEX, word.as_ptr() as u64, FUTEX_WAKE, i32::MAX as u64) };
}

/// # Safety
/// What the system call does to memory must be permitted.
unsafe fn call3(number: u64, a: u64, b: u64, c: u64) -> i64 {
    // SAFETY: passed on.
    unsafe { call4(number, a, b, c, 0) }
}

/// The system calls that may be made in this process: none that a seccomp filter could object to.
pub static CALL_GATE: CallGate = CallGate::new();

/// # Safety
/// What the system call does to memory must be permitted.
#[inline(never)]
unsafe fn call4(number: u64, a: u64, b: u64, c: u64, d: u64) -> i64 {
    if !CALL_GATE.passes(number) {
        return NOT_MADE;
    }
    let result: i64;
    // SAFETY: the kernel clobbers rcx and r11 only.
    unsafe {
        asm!(call_by_gate!(), at = in(reg) CALL_GATE.instruction(), inlateout("rax") number as i64 => result, in("rdi") a, in("rsi") b, in("rdx") c,
             in("r10") d, out("rcx") _, out("r11") _);
    }
    result
}

/// Compares and swaps two neighbouring words at once; `first` is the lower one, aligned to 16.
///
/// # Errors
/// What the words were, when not `old`.
///
/// # Safety
/// The sixteen bytes at `first` are writable and aligned to 16.
#[inline]
pub(crate) unsafe fn compare_exchange_pair(
    first: &AtomicU64,
    old: [u64; 2],
    new: [u64; 2],
) -> Result<(), [u64; 2]> {
    let (low, high): (u64, u64);
    let done: u8;
    // SAFETY: rbx, which the compiler reserves, is exchanged for the duration of the instruction. Every x86-64
    // processor that runs Linux 5.x distributions has cmpxchg16b (x86-64-v2).
    unsafe {
        asm!(
            "xchg {new_low}, rbx",
            "lock cmpxchg16b [{at}]",
            "sete {done}",
            "mov rbx, {new_low}",
            new_low = inout(reg) new[0] => _,
            at = in(reg) first.as_ptr(),
            done = out(reg_byte) done,
            inout("rax") old[0] => low,
            inout("rdx") old[1] => high,
            in("rcx") new[1],
            options(nostack),
        );
    }
    if done != 0 { Ok(()) } else { Err([low, high]) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_of_threads() {
        for (tid, expected) in
            [(1, &b"/proc/1/stat\0"[..]), (907, b"/proc/907/stat\0"), (u32::MAX, b"/proc/4294967295/stat\0")]
        {
            let mut path = StatPath(MaybeUninit::uninit());
            path.write(tid);
            // SAFETY: so many bytes were written.
            let written = unsafe { slice::from_raw_parts(path.0.as_ptr().cast::<u8>(), expected.len()) };
            assert_eq!(written, expected);
        }
    }

    #[test]
    fn stat_lines() {
        let line = b"7 (a) b) () S 1 7 7 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 98765 11 12";
        assert!(matches!(parse_stat(line), ThreadState::Started(98765)));
        assert!(matches!(parse_stat(b"7 (a) Z 1 2"), ThreadState::Dead));
        assert!(matches!(parse_stat(b"7 (a) S 1 2"), ThreadState::Unknown));
        assert!(matches!(parse_stat(b"garbage"), ThreadState::Unknown));
    }

    #[test]
    fn pairs_change_together() {
        #[repr(align(16))]
        struct Pair([AtomicU64; 2]);
        let pair = Pair([AtomicU64::new(1), AtomicU64::new(2)]);
        // SAFETY: the pair is aligned to 16.
        let swap = |old, new| unsafe { compare_exchange_pair(&pair.0[0], old, new) };
        assert_eq!(swap([1, 3], [7, 7]), Err([1, 2]));
        assert_eq!(swap([1, 2], [u64::MAX, 4]), Ok(()));
        assert_eq!(swap([0, 0], [7, 7]), Err([u64::MAX, 4]));
    }
}
