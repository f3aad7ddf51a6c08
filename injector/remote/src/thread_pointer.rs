//! What lies at the thread pointer (`fs`) of each thread of a stopped process.

use crate::error::RemoteError;
use crate::memory::Memory;
use crate::process::Process;
use beeline_ptrace::{StoppedProcess, Tid};
use std::collections::HashMap;

/// Offsets at which a C library keeps the thread's id: glibc, musl (x86-64).
const TID_OFFSETS: [u32; 2] = [0x2d0, 0x30];

/// What holds for all threads of a process.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct ThreadPointers {
    /// The word at `fs:0` is the thread pointer itself.
    pub self_pointer: bool,
    /// The 32-bit word at this offset is the thread's id.
    pub tid_offset: Option<u32>,
    /// Each thread has registered its `struct rseq` at this offset with the kernel.
    pub rseq_offset: Option<i64>,
}

/// Looks at every thread.
///
/// # Errors
/// When a thread is gone.
pub fn examine(process: &Process, stopped: &StoppedProcess) -> Result<ThreadPointers, RemoteError> {
    let mut bases = Vec::new();
    let mut rseq_offsets = Vec::new();
    for thread in stopped.threads() {
        let base = thread.known_registers()?.fs_base;
        bases.push((thread.tid(), base));
        rseq_offsets.push(thread.rseq()?.map(|rseq| rseq.address.wrapping_sub(base) as i64));
    }
    let (self_pointer, tid_offset) = at_pointers(process.memory(), &bases);
    let rseq_offset = match rseq_offsets.first() {
        Some(&Some(first)) if rseq_offsets.iter().all(|&offset| offset == Some(first)) => Some(first),
        _ => None,
    };
    Ok(ThreadPointers { self_pointer, tid_offset, rseq_offset })
}

/// Two threads with the same thread pointer, other than 0.
///
/// # Errors
/// When a thread is gone.
pub fn shared(stopped: &StoppedProcess) -> Result<Option<[Tid; 2]>, RemoteError> {
    let mut seen = HashMap::new();
    for thread in stopped.threads() {
        let base = thread.known_registers()?.fs_base;
        if let Some(other) = seen.insert(base, thread.tid()).filter(|_| base != 0) {
            return Ok(Some([other, thread.tid()]));
        }
    }
    Ok(None)
}

/// Whether the word at each base is the base itself, and where the threads' ids are then.
fn at_pointers(memory: &Memory, bases: &[(Tid, u64)]) -> (bool, Option<u32>) {
    /// Up to the id in glibc's control block: both are read at once, where that is long enough.
    const WHOLE: usize = TID_OFFSETS[0] as usize + size_of::<Tid>();
    let is_glibc = |(tid, base): (Tid, u64), block: [u8; WHOLE]| {
        block.starts_with(&base.to_le_bytes()) && block.ends_with(&tid.to_le_bytes())
    };
    if bases.iter().any(|&(_, base)| base == 0) {
        return (false, None);
    }
    if hold(memory, bases, 0, is_glibc) {
        return (true, Some(TID_OFFSETS[0]));
    }
    if !hold(memory, bases, 0, |(_, base), word| word == base.to_le_bytes()) {
        return (false, None);
    }
    let holds_tid = |&offset: &u32| hold(memory, bases, offset, |(tid, _), word| word == tid.to_le_bytes());
    (true, TID_OFFSETS.into_iter().find(holds_tid))
}

/// What lies at `offset` from each thread's base is what it `is` to be.
fn hold<const LEN: usize>(
    memory: &Memory,
    bases: &[(Tid, u64)],
    offset: u32,
    is: impl Fn((Tid, u64), [u8; LEN]) -> bool,
) -> bool {
    let places: Vec<_> = bases.iter().map(|(_, base)| (base.wrapping_add(u64::from(offset)), LEN)).collect();
    let mut all = true;
    memory.visit(&places, |index, bytes| {
        let word = bytes.and_then(|bytes| bytes.try_into().ok());
        all &= word.is_some_and(|word| is(bases[index], word));
    });
    all
}
