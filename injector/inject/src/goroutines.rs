//! Goroutines that Go's runtime has taken off their threads in the middle of a function: they go on at any instruction, which
//! stands on their own stacks, and on no thread's.
//!
//! ```text
//! allgs ─▶ g: stack.lo, stack.hi │ ... │ sched: sp, pc      (Go's runtime2.go)
//!                                        pc in asyncPreempt2: above sp, in asyncPreempt's frame, the place
//! ```
//!
//! Nothing is found in a stripped program: `allgs` is a variable.

use crate::files::MappedFiles;
use beeline_remote::Process;
use std::collections::HashMap;
use std::ops::Range;

/// Bytes from the stack pointer of such a goroutine to behind asyncPreempt's frame: all registers, vector registers included, and the frame of
/// asyncPreempt2.
const FRAMES_LEN: u64 = 2048;
/// Offset of `sched` in a `g`, behind two words for the stack, two guards, and three pointers.
const SCHED: u64 = 0x38;
/// Bytes of a `g` that are looked at.
const HEAD_LEN: usize = 0x48;
/// Goroutines that are looked at, at most: a tenth of a second.
const GOROUTINES_MAX: u64 = 1 << 20;

/// What is known of a Go program.
pub(crate) struct Goroutines {
    /// Addresses at which one goes on that was stopped there.
    pub(crate) stopped_inside: Vec<u64>,
    /// No C code runs beside them: the program has no C library.
    pub(crate) are_alone: bool,
}

/// Looks for goroutines at addresses in `inner`. None where the process is no Go program.
pub(crate) fn stopped_inside(
    process: &Process,
    files: &MappedFiles,
    inner: &HashMap<u64, u64>,
) -> Option<Goroutines> {
    let (file, binary) = files
        .iter()
        .filter_map(|file| Some((file, file.binary(process).ok()?)))
        .find(|(_, binary)| binary.is_go())?;
    let mut found = Goroutines { stopped_inside: Vec::new(), are_alone: binary.interpreter().is_none() };
    let preempted = binary.symbols().named("runtime.asyncPreempt2").pop();
    let (Some(all), Some(preempted)) = (binary.variable("runtime.allgs"), preempted) else {
        return Some(found);
    };
    let place = binary.file_offset_of(preempted.vaddr).map(|offset| file.addresses(offset));
    let Some(code) = place.and_then(|addresses| addresses.first().copied()) else { return Some(found) };
    let code = code..code + preempted.size;
    let all = all.wrapping_add(code.start.wrapping_sub(preempted.vaddr));
    for range in frames(process, all, &code) {
        let bytes =
            process.memory().read_vec(range.start, (range.end - range.start) as usize).unwrap_or_default();
        let words = bytes.as_chunks().0.iter().map(|&word| u64::from_le_bytes(word));
        found.stopped_inside.extend(words.filter(|word| inner.contains_key(word)));
    }
    Some(found)
}

/// Where the frames of those goroutines lie that have left their thread in `code`; `all` is the address of `allgs`.
fn frames(process: &Process, all: u64, code: &Range<u64>) -> Vec<Range<u64>> {
    let word = |address| process.memory().read_u64(address).unwrap_or_default();
    let (first, count) = (word(all), word(all + 8).min(GOROUTINES_MAX));
    let list = process.memory().read_vec(first, count as usize * 8).unwrap_or_default();
    let heads: Vec<(u64, usize)> =
        list.as_chunks().0.iter().map(|&word| (u64::from_le_bytes(word), HEAD_LEN)).collect();
    let mut found = Vec::new();
    process.memory().visit(&heads, |_, bytes| {
        let Some(words) = bytes.map(|bytes| bytes.as_chunks::<8>().0) else { return };
        let at = |offset: u64| words.get(offset as usize / 8).map_or(0, |&word| u64::from_le_bytes(word));
        let (stack, sp, pc) = (at(0)..at(8), at(SCHED), at(SCHED + 8));
        if code.contains(&pc) && stack.contains(&sp) {
            found.push(sp..stack.end.min(sp + FRAMES_LEN));
        }
    });
    found
}
