//! Threads that block the signal, or will: a breakpoint that they met would end the process.

use crate::stack::Stack;
use beeline_abi::guard::{SIGTRAP, bit};
use beeline_ptrace::{StoppedProcess, read_status};
use beeline_remote::{Mappings, Process, RemoteError};

/// Why there can be no breakpoints in a process that stands still; none when there can.
///
/// A thread can block the signal now; in a call like `ppoll`, afterwards or meanwhile; or behind a signal handler that it is in.
pub(crate) fn blocking(
    process: &Process,
    maps: &Mappings,
    stopped: &StoppedProcess,
) -> Result<Option<String>, RemoteError> {
    for thread in stopped.threads() {
        let tid = thread.tid();
        let meanwhile = read_status(tid).map_or(0, |status| status.blocked);
        if (thread.signal_mask()? | meanwhile) & bit(SIGTRAP) != 0 {
            return Ok(Some(format!("thread {tid} blocks SIGTRAP; try again")));
        }
        let stack = Stack::of(process, maps, &thread.known_registers()?);
        if stack.handler_masks().any(|mask| mask & bit(SIGTRAP) != 0) {
            return Ok(Some(format!("thread {tid} will block SIGTRAP behind a signal handler; try again")));
        }
    }
    Ok(None)
}
