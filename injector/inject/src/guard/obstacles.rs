//! Threads that block the signal, or will: a breakpoint that they met would end the process.

use crate::stack::Stack;
use beeline_abi::guard::{MASKING, RT_SIGACTION, SIGTRAP, bit};
use beeline_ptrace::{Registers, StoppedProcess, read_status};
use beeline_remote::{Mappings, Process, RemoteError};

/// The thread stands at a call with which it blocks signals, or says how they are handled: the guard will not see its begin.
pub(crate) fn is_at_guarded_call(process: &Process, registers: &Registers) -> bool {
    const SYSCALL: [u8; 2] = [0x0f, 0x05];
    let number = u64::from(registers.rax as u32);
    (MASKING.contains(&number) || number == RT_SIGACTION)
        && process.memory().read_array(registers.rip).is_ok_and(|bytes: [u8; 2]| bytes == SYSCALL)
}

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
        if is_at_guarded_call(process, &thread.known_registers()?) {
            return Ok(Some(format!("thread {tid} is about to block signals; try again")));
        }
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
