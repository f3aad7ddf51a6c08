//! Clocks.
//!
//! A process's own `__vdso_clock_gettime` is called when the injector found it, else the system call is made. The vDSO
//! is built without vector instructions, as the kernel is. It reads the time stamp counter, which a process can forbid itself: from
//! then on only the system call is made.
//!
//! *Differs*: in a time namespace, monotonic and boot time carry the namespace's offset.

use crate::process;
use crate::sys::{self, Timespec};
use beeline_abi::process::ProcessBlock;
use beeline_abi::run::RunContext;
use core::sync::atomic::AtomicU64;
use core::sync::atomic::Ordering::Relaxed;

/// `CLOCK_MONOTONIC`.
pub const MONOTONIC: u32 = 1;
/// `CLOCK_MONOTONIC_COARSE`.
const MONOTONIC_COARSE: u32 = 6;
/// `CLOCK_BOOTTIME`.
const BOOTTIME: u32 = 7;
/// `CLOCK_TAI`.
const TAI: u32 = 11;

/// Type of `__vdso_clock_gettime`.
type ClockGettime = unsafe extern "sysv64" fn(u32, *mut Timespec) -> i32;

/// The clock's time in nanoseconds.
///
/// # Safety
///
/// `run` is valid.
pub unsafe fn now(run: *const RunContext, clock: u32) -> u64 {
    // SAFETY: the injector took a non-zero address from the vDSO's symbol table.
    let vdso: Option<ClockGettime> =
        unsafe { process(run).and_then(|block| core::mem::transmute(block.vdso_clock_gettime)) };
    if let Some(gettime) = vdso {
        let mut time = Timespec::default();
        // SAFETY: the vDSO function writes one timespec.
        if unsafe { gettime(clock, &raw mut time) } == 0 {
            return (time.seconds as u64).wrapping_mul(1_000_000_000).wrapping_add(time.nanoseconds as u64);
        }
    }
    sys::clock_ns(clock)
}

/// The process is about to forbid a thread the time stamp counter: from here on none of its clocks reads it.
///
/// # Safety
///
/// `block` is that of the process, in writable memory, or null.
#[cold]
#[inline(never)]
pub unsafe fn leave_time_stamp_counter(block: *mut ProcessBlock) {
    if !block.is_null() {
        // SAFETY: the caller's contract.
        unsafe { AtomicU64::from_ptr(&raw mut (*block).vdso_clock_gettime).store(0, Relaxed) }
    }
}

/// Defines the helper that reads one clock.
macro_rules! clock_helper {
    ($(#[$documentation:meta])* $name:ident, $clock:expr) => {
        $(#[$documentation])*
        pub(crate) unsafe extern "sysv64" fn $name(
            _: u64, _: u64, _: u64, _: u64, _: u64, run: *mut RunContext,
        ) -> u64 {
            // SAFETY: compiled code hands on the run that it was called with.
            unsafe { now(run, $clock) }
        }
    };
}

clock_helper!(
    /// `u64 bpf_ktime_get_ns(void)`.
    ktime_get_ns, MONOTONIC
);
clock_helper!(
    /// `u64 bpf_ktime_get_boot_ns(void)`.
    ktime_get_boot_ns, BOOTTIME
);
clock_helper!(
    /// `u64 bpf_ktime_get_coarse_ns(void)`.
    ktime_get_coarse_ns, MONOTONIC_COARSE
);
clock_helper!(
    /// `u64 bpf_ktime_get_tai_ns(void)`.
    ktime_get_tai_ns, TAI
);

/// `u64 bpf_jiffies64(void)`: ticks of the kernel's timer, which starts five minutes before 32 bits of them wrap
/// (`INITIAL_JIFFIES`).
///
/// *Differs*: computed from the coarse clock and its resolution, one tick; may be a few ticks off.
pub(crate) unsafe extern "sysv64" fn jiffies64(
    _: u64,
    _: u64,
    _: u64,
    _: u64,
    _: u64,
    run: *mut RunContext,
) -> u64 {
    let mut tick = Timespec::default();
    // SAFETY: the kernel writes one timespec; the run is the caller's.
    let now = unsafe {
        sys::call2(sys::nr::CLOCK_GETRES, u64::from(MONOTONIC_COARSE), &raw mut tick as u64);
        now(run, MONOTONIC_COARSE)
    };
    let tick_ns = (tick.nanoseconds as u64).max(1);
    let ticks_per_second = 1_000_000_000 / tick_ns;
    let initial = u64::from((ticks_per_second.wrapping_mul(300) as u32).wrapping_neg());
    initial.wrapping_add(now / tick_ns)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clocks_run() {
        let mut run = RunContext::default();
        for helper in [ktime_get_ns, ktime_get_boot_ns, ktime_get_coarse_ns, ktime_get_tai_ns, jiffies64]
            as [crate::HelperFn; 5]
        {
            // SAFETY: no arguments but the run.
            let (first, second) =
                unsafe { (helper(0, 0, 0, 0, 0, &mut run), helper(0, 0, 0, 0, 0, &mut run)) };
            assert!(first > 0 && second >= first);
        }
        let before = sys::clock_ns(MONOTONIC);
        // SAFETY: as above.
        let between = unsafe { now(&run, MONOTONIC) };
        assert!((before..=sys::clock_ns(MONOTONIC)).contains(&between));
    }
}
