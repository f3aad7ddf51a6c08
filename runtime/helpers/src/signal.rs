//! Signals to the calling process.
//!
//! *Differs*: a signal that the calling thread takes itself is delivered inside the helper, before the program goes on;
//! its `si_code` is that of `kill`, not `SI_KERNEL`.

use crate::identity::{NOT_PERMITTED, ids};
use crate::sys::{self, nr};
use beeline_abi::run::RunContext;

/// Process id of the first process, which no program may signal.
const INIT: u32 = 1;

/// `long bpf_send_signal(u32 sig)`: to the process.
///
/// Errors: `-EINVAL` for no signal, `-EPERM` for process 1.
pub(crate) unsafe extern "sysv64" fn send_signal(
    signal: u64,
    _: u64,
    _: u64,
    _: u64,
    _: u64,
    run: *mut RunContext,
) -> u64 {
    // SAFETY: the run is the caller's; a signal touches no memory.
    unsafe {
        let ids = ids(run);
        if ids.tgid == INIT {
            return NOT_PERMITTED;
        }
        sys::call2(nr::KILL, ids.tgid.into(), u64::from(signal as u32)) as u64
    }
}

/// `long bpf_send_signal_thread(u32 sig)`: to the calling thread.
///
/// Errors: as [`send_signal`].
pub(crate) unsafe extern "sysv64" fn send_signal_thread(
    signal: u64,
    _: u64,
    _: u64,
    _: u64,
    _: u64,
    run: *mut RunContext,
) -> u64 {
    // SAFETY: as in `send_signal`.
    unsafe {
        let ids = ids(run);
        if ids.tgid == INIT {
            return NOT_PERMITTED;
        }
        sys::call4(nr::TGKILL, ids.tgid.into(), ids.tid.into(), u64::from(signal as u32), 0) as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use beeline_abi::errno::EINVAL;

    #[test]
    fn the_null_signal_and_none() {
        let mut run = RunContext::default();
        // SAFETY: signal 0 and invalid ones are not sent.
        unsafe {
            assert_eq!(send_signal(0, 0, 0, 0, 0, &mut run), 0);
            assert_eq!(send_signal_thread(0, 0, 0, 0, 0, &mut run), 0);
            assert_eq!(send_signal(65, 0, 0, 0, 0, &mut run) as i64, -EINVAL);
            assert_eq!(send_signal_thread(65, 0, 0, 0, 0, &mut run) as i64, -EINVAL);
        }
    }
}
