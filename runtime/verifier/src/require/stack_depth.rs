//! What chains of calls require of the stack: 512 bytes for all frames together.

use crate::cfg;
use crate::code::Code;
use crate::facts::Facts;
use crate::program::STACK_BYTES_MAX;
use crate::refusal::Refusal;
use std::collections::HashMap;

/// A tail call from deeper than this could overflow the stack of the program that it enters.
const BEFORE_TAIL_CALL_MAX: u32 = 256;

/// Frames are 16-byte aligned when they are compiled.
fn frame_bytes(bytes: u32) -> u32 {
    bytes.next_multiple_of(16)
}

/// Bytes of all frames of the deepest chain that starts at the program.
pub(crate) fn total(code: &Code, facts: &Facts) -> u32 {
    Chains::new(code, facts).deepest(0, 0, 1).unwrap_or(STACK_BYTES_MAX)
}

/// No chain of calls needs more than the stack has.
pub(crate) fn check(code: &Code, facts: &Facts) -> Result<(), Refusal> {
    cfg::check_call_depth(code)?;
    let mut chains = Chains::new(code, facts);
    (0..code.subprograms.len()).try_for_each(|start| chains.deepest(start, 0, 1).map(|_| ()))
}

/// The chains of calls, each part of one looked at once.
struct Chains<'a> {
    facts: &'a Facts,
    calls: Vec<Vec<(usize, usize)>>,
    /// By subprogram and bytes above it.
    known: HashMap<(usize, u32), u32>,
}

impl<'a> Chains<'a> {
    fn new(code: &Code, facts: &'a Facts) -> Chains<'a> {
        Chains { facts, calls: cfg::calls(code), known: HashMap::new() }
    }

    /// Bytes of the deepest chain that starts at subprogram `at`, below `above` bytes and as frame number `frames`.
    fn deepest(&mut self, at: usize, above: u32, frames: u32) -> Result<u32, Refusal> {
        if let Some(&bytes) = self.known.get(&(at, above)) {
            return Ok(bytes);
        }
        let bytes = above + frame_bytes(self.facts.stack[at]);
        if bytes > STACK_BYTES_MAX {
            let pc = self.calls[at].first().map_or(0, |call| call.0);
            return Err(Refusal::at(
                pc,
                format!("combined stack size of {frames} calls is {bytes}. Too large"),
            ));
        }
        let mut deep = bytes;
        for (pc, callee) in self.calls[at].clone() {
            if self.facts.tail_callers[callee] && bytes >= BEFORE_TAIL_CALL_MAX {
                let reason = format!(
                    "tail_calls are not allowed when call stack of previous frames is {bytes} bytes. Too large"
                );
                return Err(Refusal::at(pc, reason));
            }
            deep = deep.max(self.deepest(callee, bytes, frames + 1)?);
        }
        self.known.insert((at, above), deep);
        Ok(deep)
    }
}
