//! The system calls of the map operations, all on rare paths: memory for a growing map, whether an owner is alive.

use core::arch::asm;
use core::sync::atomic::AtomicU64;

const MADVISE: u64 = 28;
const MADV_POPULATE_WRITE: u64 = 23;
const EINVAL: i64 = -22;

/// Allocates the pages of a mapping without writing to them. False when there is no memory.
///
/// Kernels before 5.14 do not know how (`EINVAL`): there the first touch must do.
pub(crate) fn populate(start: u64, len: u64) -> bool {
    // SAFETY: MADV_POPULATE_WRITE changes no byte.
    let result = unsafe { call3(MADVISE, start, len, MADV_POPULATE_WRITE) };
    result == 0 || result == EINVAL
}

/// # Safety
/// What the system call does to memory must be permitted.
unsafe fn call3(number: u64, a: u64, b: u64, c: u64) -> i64 {
    let result: i64;
    // SAFETY: the kernel clobbers rcx and r11 only.
    unsafe {
        asm!("syscall", inlateout("rax") number as i64 => result, in("rdi") a, in("rsi") b, in("rdx") c,
             out("rcx") _, out("r11") _, options(nostack));
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
