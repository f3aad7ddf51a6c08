//! A stopped thread's stack, searched for places to which it will go on.
//!
//! ```text
//! struct ucontext of a signal frame (x86-64):
//!     16  ss_sp │ ss_flags │ ss_size      the alternate signal stack
//!     40  r8 ... rsp │ rip │ eflags │ cs, gs, fs, ss │ ...
//! ```
//!
//! Words on a stack may be old. A signal frame on an alternate stack is in use only while the thread is on that stack;
//! everything else above the stack pointer counts.

use crate::wire::Wire;
use beeline_abi::PAGE_SIZE;
use beeline_ptrace::Registers;
use beeline_remote::{Mappings, Process};
use std::ops::Range;

/// Bytes that are searched, from the stack pointer on.
const SEARCH_MAX: u64 = 1 << 20;
/// `cs` in user mode; in a signal frame it follows `rip` and the flags.
const USER_CODE_SEGMENT: u64 = 0x33;
/// The word that it is a part of, as the kernel writes it: `cs`, 0, 0, `ss` (`arch/x86/kernel/signal_64.c`).
const SEGMENTS: u64 = 0x002b_0000_0000_0033;
/// Flags that are always set in user mode: the reserved one, and interrupts.
const FLAGS_SET: u64 = 0x202;
/// Flags are below this one.
const FLAGS_END: u64 = 1 << 22;
/// From `rip` to `uc_sigmask`, in words.
const MASK_BEHIND: usize = 16;
/// From `ss_sp` and `ss_size` to `rip`, in words.
const STACK_START_BEFORE: usize = 19;
const STACK_SIZE_BEFORE: usize = 17;

/// From the address to which the handler returns to `rip`, in words.
const RETURN_BEFORE: usize = 22;
/// From `rip` to `si_signo`, in words; `si_code` is in the next.
const SIGNAL_BEHIND: usize = 17;
/// `SIGSYS` with `SYS_USER_DISPATCH`.
const DISPATCHED: (u32, u32) = (31, 2);

/// The frame of a signal handler.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Frame {
    /// Address of the word that says where the handler returns to.
    pub(crate) address: u64,
    pub(crate) returns_to: u64,
    pub(crate) signal: u64,
}

/// A part of a stack.
#[derive(Debug)]
pub(crate) struct Stack {
    start: u64,
    words: Vec<u64>,
}

impl Stack {
    /// The stack of a thread, from its stack pointer on; empty when that is not mapped.
    pub(crate) fn of(process: &Process, maps: &Mappings, registers: &Registers) -> Stack {
        let (start, len) = Stack::place(maps, registers);
        Stack::new(start, &process.memory().read_vec(start, len).unwrap_or_default())
    }

    /// Where it begins, and how many bytes of it are looked at.
    pub(crate) fn place(maps: &Mappings, registers: &Registers) -> (u64, usize) {
        let start = registers.rsp & !7;
        let len = maps.at(start).map_or(0, |mapping| (mapping.end - start).min(SEARCH_MAX));
        (start, len as usize)
    }

    /// These bytes from `start` on.
    pub(crate) fn new(start: u64, bytes: &[u8]) -> Stack {
        Stack { start, words: bytes.chunks_exact(8).map(u64::get).collect() }
    }

    /// One of these words is within `range`: mostly none is.
    pub(crate) fn has_word_in(bytes: &[u8], range: &Range<u64>) -> bool {
        let len = range.end.saturating_sub(range.start);
        let is_within = |word: &[u8; 8]| u64::from_le_bytes(*word).wrapping_sub(range.start) < len;
        bytes.as_chunks().0.iter().any(is_within)
    }

    /// Program counters to which signal handlers of this thread will return, and the stack pointers then.
    ///
    /// Frames of system calls that were handed over are not among them. The handler returns at once: a thread that is on its way there
    /// is in the handler itself, or another frame says so. What lies on stacks of such frames is old.
    pub(crate) fn handler_returns(&self) -> impl Iterator<Item = (u64, u64)> {
        let frames = (1..self.words.len()).filter(|&at| self.is_saved_pc(at) && !self.is_left(at));
        let frames = frames.filter(|&at| self.signal(at) != Some(DISPATCHED));
        frames.map(|at| (self.words[at], self.words[at - 1]))
    }

    /// The masks that signal handlers of this thread will leave behind.
    pub(crate) fn handler_masks(&self) -> impl Iterator<Item = u64> {
        let frames = (1..self.words.len()).filter(|&at| self.is_saved_pc(at) && !self.is_left(at));
        frames.filter_map(|at| self.words.get(at + MASK_BEHIND).copied())
    }

    /// Program counters of all that looks like the frame of a signal handler, but for those of system calls that were handed over.
    pub(crate) fn saved_pcs(&self) -> impl Iterator<Item = u64> {
        let frames = (0..self.words.len()).filter(|&at| self.is_saved_pc(at));
        frames.filter(|&at| self.signal(at) != Some(DISPATCHED)).map(|at| self.words[at])
    }

    /// The frames of signal handlers, as far as they lie in this part.
    pub(crate) fn frames(&self) -> impl Iterator<Item = Frame> {
        let frames =
            (RETURN_BEFORE..self.words.len()).filter(|&at| self.is_saved_pc(at) && !self.is_left(at));
        frames.filter_map(|at| {
            let word = at - RETURN_BEFORE;
            let (signal, _) = self.signal(at)?;
            let returns_to = self.words[word];
            Some(Frame { address: self.start + 8 * word as u64, returns_to, signal: signal.into() })
        })
    }

    /// The number and code of the signal whose frame has its program counter there.
    fn signal(&self, at: usize) -> Option<(u32, u32)> {
        let [number, code] = [0, 1].map(|next| self.words.get(at + SIGNAL_BEHIND + next).copied());
        Some((number? as u32, code? as u32))
    }

    /// Every word within `range`, but for the program counters of signal frames that the thread has left.
    pub(crate) fn words_in(&self, range: Range<u64>) -> impl Iterator<Item = u64> {
        let len = range.end.saturating_sub(range.start);
        let within =
            self.words.iter().enumerate().filter(move |(_, word)| word.wrapping_sub(range.start) < len);
        within.filter(|&(at, _)| !(self.is_saved_pc(at) && self.is_left(at))).map(|(_, &word)| word)
    }

    /// The word is where a signal frame has its program counter. A handler may have changed the flags, or the segments; other words
    /// can look like segments alone: addresses of our own that are left on the stack, and in the auxiliary vector above the stack of a
    /// main thread `AT_MINSIGSTKSZ`, which is 51, behind small numbers.
    fn is_saved_pc(&self, at: usize) -> bool {
        let Some(&[pc, flags, segments]) = self.words.get(at..at + 3) else { return false };
        let are_flags = flags & FLAGS_SET == FLAGS_SET && flags < FLAGS_END;
        let are_segments = segments == SEGMENTS || (segments & 0xffff == USER_CODE_SEGMENT && are_flags);
        are_segments && pc >= PAGE_SIZE
    }

    /// The signal frame lies on an alternate stack on which the thread is not any more.
    fn is_left(&self, at: usize) -> bool {
        let before = |distance: usize| at.checked_sub(distance).map(|at| self.words[at]);
        let (Some(start), Some(size)) = (before(STACK_START_BEFORE), before(STACK_SIZE_BEFORE)) else {
            return false;
        };
        let on_it = |address: u64| address.wrapping_sub(start) < size;
        on_it(self.start + 8 * at as u64) && !on_it(self.start)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stack(alternate: (u64, u64)) -> Stack {
        let mut words = vec![0; 64];
        words[39] = 0x5678; // rsp
        words[40] = 0x1234; // rip
        words[42] = 0x002b_0000_0000_0033;
        words[40 - STACK_START_BEFORE] = alternate.0;
        words[40 - STACK_SIZE_BEFORE] = alternate.1;
        Stack { start: 0x1000, words }
    }

    #[test]
    fn masks_of_frames() {
        let mut stack = stack((0, 0));
        stack.words[40 + MASK_BEHIND] = 0x10;
        assert_eq!(stack.handler_masks().collect::<Vec<_>>(), [0x10]);
    }

    #[test]
    fn where_handlers_return_to() {
        let mut stack = stack((0, 0));
        stack.words[40 - RETURN_BEFORE] = 0x9000;
        stack.words[40 + SIGNAL_BEHIND] = 5;
        let frame =
            Frame { address: 0x1000 + 8 * (40 - RETURN_BEFORE as u64), returns_to: 0x9000, signal: 5 };
        assert_eq!(stack.frames().collect::<Vec<_>>(), [frame]);
        assert_eq!(stack.handler_returns().count(), 1);
        stack.words[40 + SIGNAL_BEHIND] = 31;
        assert_eq!(stack.handler_returns().count(), 1, "a filter has trapped a call");
        stack.words[40 + SIGNAL_BEHIND + 1] = 2;
        assert_eq!(stack.handler_returns().count(), 0);
    }

    #[test]
    fn what_looks_like_a_frame() {
        let found = |flags: u64, segments: u64| {
            let mut stack = stack((0, 0));
            (stack.words[41], stack.words[42]) = (flags, segments);
            stack.handler_returns().count() == 1
        };
        assert!(found(0x246, SEGMENTS) && found(0, SEGMENTS), "a handler may write any flags");
        assert!(found(0x246, 0x33) && found(0x10202, 0x1_0033));
        // Ours, in a frame of the agent's that is left behind: an address whose lower half is 0x33.
        assert!(!found(0xc59a_ef01, 0x7fc7_c578_0033));
        assert!(!found(0x7fff_0202, 0x33) && !found(0x46, 0x33) && !found(0x246, 0x2b));
    }

    #[test]
    fn frames_in_use_and_left() {
        let found = |alternate| stack(alternate).handler_returns().collect::<Vec<_>>();
        assert_eq!(found((0, 0)), [(0x1234, 0x5678)]);
        assert_eq!(found((0x1000, 0x1000)), [(0x1234, 0x5678)]);
        assert_eq!(found((0x1008, 0x1000)), []);
        assert_eq!(stack((0x1008, 0x1000)).words_in(0..u64::MAX).count(), 63);
        assert_eq!(stack((0, 0)).words_in(0x1234..0x1235).collect::<Vec<_>>(), [0x1234]);
        assert_eq!(stack((0x1008, 0x1000)).words_in(0x1234..0x1235).count(), 0);
        assert_eq!(found((0x9000, 0x1000)), [(0x1234, 0x5678)]);
        // AT_SYSINFO_EHDR, AT_MINSIGSTKSZ
        let auxiliary = Stack { start: 0x1000, words: vec![33, 0x7fff_0000_0000, 51, 3632, 16, 0] };
        assert_eq!(auxiliary.handler_returns().count(), 0);
    }
}
