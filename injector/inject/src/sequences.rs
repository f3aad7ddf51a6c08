//! Restartable sequences of stubs: a thread's `struct rseq` may name a stub's descriptor for as long as nobody clears it
//! (`stub::cpu`), and the kernel kills a thread whose descriptor is not there. So these words are cleared before code is unmapped.
//!
//! A thread that has ended cannot be asked where its `struct rseq` was, but its slot knows: the C library gives that memory to
//! the next thread, and older kernels take over what stands there.

use crate::detach::Slots;
use beeline_ptrace::StoppedProcess;
use beeline_remote::{Process, RemoteError};
use std::collections::BTreeSet;

/// In `struct rseq`, behind `cpu_id_start` and `cpu_id`: the descriptor of the sequence that was entered last.
const RSEQ_CS: u64 = 8;

/// Clears every `struct rseq` that names a descriptor in what `goes`; the process stands still. A thread in such a sequence is not to be
/// let go: its program counter lies in what goes.
///
/// # Errors
/// When the process is lost.
pub(crate) fn forget(
    process: &Process,
    stopped: &StoppedProcess,
    slots: &Slots,
    goes: impl Fn(u64) -> bool,
) -> Result<(), RemoteError> {
    let mut areas: BTreeSet<u64> = slots.rseq_areas().collect();
    for thread in stopped.threads() {
        // Kernels before 5.13 do not tell: there the slot alone does.
        areas.extend(thread.rseq()?.map(|rseq| rseq.address));
    }
    let memory = process.memory();
    for area in areas {
        let word = area.wrapping_add(RSEQ_CS);
        // The memory of a thread that has ended may be gone.
        if memory.read_u64(word).is_ok_and(&goes) {
            memory.write_u64(word, 0)?;
        }
    }
    Ok(())
}
