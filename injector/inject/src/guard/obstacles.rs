//! Threads that block a guarded signal, or will: a breakpoint that they met, or a dispatched call, would end the process.

use crate::stack::Stack;
use beeline_abi::guard::{SIGTRAP, bit};
use beeline_ptrace::{StoppedProcess, read_status};
use beeline_remote::{Mappings, Process, RemoteError};

/// Why a process that stands still would not get this signal at any time; none when it would.
///
/// A thread can block the signal now; in a call like `ppoll`, afterwards or meanwhile; or behind a signal handler that it is in.
pub(crate) fn blocking(
    process: &Process,
    maps: &Mappings,
    stopped: &StoppedProcess,
    signal: u64,
) -> Result<Option<String>, RemoteError> {
    let name = if signal == SIGTRAP { "SIGTRAP" } else { "SIGSYS" };
    for thread in stopped.threads() {
        let tid = thread.tid();
        let meanwhile = read_status(tid).map_or(0, |status| status.blocked);
        if (thread.signal_mask()? | meanwhile) & bit(signal) != 0 {
            return Ok(Some(format!("thread {tid} blocks {name}; try again")));
        }
        let stack = Stack::of(process, maps, &thread.known_registers()?);
        if stack.handler_masks().any(|mask| mask & bit(signal) != 0) {
            return Ok(Some(format!("thread {tid} will block {name} behind a signal handler; try again")));
        }
    }
    Ok(None)
}
