//! What is in the way of sites of a process that stands still: other bytes than were planned for, and threads in the middle.

use crate::files::MappedFiles;
use crate::goroutines;
use crate::patch::{Patch, Write};
use crate::stack::Stack;
use beeline_ptrace::StoppedProcess;
use beeline_remote::{Mappings, Process, RemoteError};
use std::collections::HashMap;

/// A site that cannot be served.
pub(crate) struct Unusable {
    pub(crate) address: u64,
    pub(crate) reason: String,
    /// It can when a thread has gone on.
    pub(crate) passes: bool,
}

/// Sites at which other bytes stand than were planned for, or into whose windows a signal handler will return.
pub(crate) fn unusable_sites(
    process: &Process,
    (maps, files): (&Mappings, &MappedFiles),
    patches: &[Patch],
    stopped: &StoppedProcess,
) -> Result<Vec<Unusable>, RemoteError> {
    let mut unusable = Vec::new();
    let mut inner = HashMap::new();
    let writes: Vec<(u64, &Write)> =
        patches.iter().flat_map(|patch| patch.writes.iter().map(|write| (patch.address, write))).collect();
    let places: Vec<_> = writes.iter().map(|(_, write)| (write.address, write.expected.len())).collect();
    process.memory().visit(&places, |index, now| {
        let (address, write) = writes[index];
        if now != Some(&write.expected) {
            let reason = match now.filter(|bytes| !bytes.is_empty()) {
                Some(bytes) => format!(
                    "the bytes at {:#x} in memory, {bytes:02x?}, are not those of the file, {:02x?}",
                    write.address, write.expected
                ),
                None => format!("its file is not mapped any more at {:#x}", write.address),
            };
            unusable.push(Unusable { address, reason, passes: false });
        }
        inner.extend(write.inner_addresses().map(|at| (at, address)));
    });
    let goroutines = goroutines::stopped_inside(process, files, &inner);
    let mut saved = match &goroutines {
        // Handlers run on stacks of their own there, and nothing else keeps places: words that look like one are old.
        Some(found) if found.are_alone => handlers_inside(process, &inner, maps, stopped)?,
        _ => saved_inside(process, &inner, maps, stopped)?,
    };
    let stopped_inside = goroutines.iter().flat_map(|found| &found.stopped_inside);
    saved.extend(stopped_inside.filter_map(|word| inner.get(word)));
    // A site is given up once.
    saved.sort_unstable();
    saved.dedup();
    for address in saved {
        let reason =
            format!("a signal handler is about to return into the instructions at {address:#x}; try again");
        unusable.push(Unusable { address, reason, passes: true });
    }
    Ok(unusable)
}

/// The sites into which a signal handler returns, by the signal frames on the threads' stacks.
fn handlers_inside(
    process: &Process,
    inner: &HashMap<u64, u64>,
    maps: &Mappings,
    stopped: &StoppedProcess,
) -> Result<Vec<u64>, RemoteError> {
    let mut found = Vec::new();
    for thread in stopped.threads().iter().filter(|_| !inner.is_empty()) {
        let stack = Stack::of(process, maps, &thread.known_registers()?);
        found.extend(stack.handler_returns().filter_map(|(pc, _)| inner.get(&pc)));
    }
    Ok(found)
}

/// The sites of which an address in `inner` stands on a stack.
fn saved_inside(
    process: &Process,
    inner: &HashMap<u64, u64>,
    maps: &Mappings,
    stopped: &StoppedProcess,
) -> Result<Vec<u64>, RemoteError> {
    let mut found = Vec::new();
    let (Some(first), Some(last)) = (inner.keys().min(), inner.keys().max()) else { return Ok(found) };
    let range = *first..last + 1;
    let mut places = Vec::with_capacity(stopped.threads().len());
    for thread in stopped.threads() {
        places.push(Stack::place(maps, &thread.known_registers()?));
    }
    process.memory().visit(&places, |index, bytes| {
        let bytes = bytes.unwrap_or_default();
        if !Stack::has_word_in(bytes, &range) {
            return;
        }
        let stack = Stack::new(places[index].0, bytes);
        found.extend(stack.words_in(range.clone()).filter_map(|word| inner.get(&word)));
    });
    Ok(found)
}

/// A thread has passed the place at which its filter would be seen, and has not reached the system call yet.
pub(crate) fn is_installing_filter(patches: &[Patch], stopped: &StoppedProcess) -> bool {
    /// More than such a function has before its call.
    const FUNCTION_LEN: u64 = 128;
    let places = || patches.iter().filter(|patch| patch.sees_seccomp).map(|patch| patch.address);
    stopped.threads().iter().any(|thread| {
        thread.known_registers().is_ok_and(|registers| {
            let in_call = registers.orig_rax as i64 >= 0;
            !in_call && places().any(|start| (1..FUNCTION_LEN).contains(&registers.rip.wrapping_sub(start)))
        })
    })
}
