//! What chains of calls require of the stack: 512 bytes for all frames together.

use crate::cfg;
use crate::code::Code;
use crate::facts::Facts;
use crate::program::STACK_BYTES_MAX;
use crate::refusal::Refusal;

/// A tail call from deeper than this could overflow the stack of the program that it enters.
const BEFORE_TAIL_CALL_MAX: u32 = 256;

/// Frames are 16-byte aligned when they are compiled.
fn frame_bytes(bytes: u32) -> u32 {
    bytes.next_multiple_of(16)
}

/// Bytes of all frames of the deepest chain.
pub(crate) fn total(code: &Code, facts: &Facts) -> u32 {
    let calls = cfg::calls(code);
    deepest(&calls, facts, 0, 0, 1).map_or(STACK_BYTES_MAX, |chain| chain.0)
}

/// No chain of calls needs more than the stack has.
pub(crate) fn check(code: &Code, facts: &Facts) -> Result<(), Refusal> {
    let calls = cfg::calls(code);
    for start in 0..calls.len() {
        deepest(&calls, facts, start, 0, 1)?;
    }
    Ok(())
}

/// Bytes and frames of the deepest chain that starts at subprogram `at` below `above` bytes.
fn deepest(
    calls: &[Vec<(usize, usize)>],
    facts: &Facts,
    at: usize,
    above: u32,
    frames: u32,
) -> Result<(u32, u32), Refusal> {
    let bytes = above + frame_bytes(facts.stack[at]);
    if bytes > STACK_BYTES_MAX {
        let pc = calls[at].first().map_or(0, |call| call.0);
        return Err(Refusal::at(pc, format!("combined stack size of {frames} calls is {bytes}. Too large")));
    }
    let mut deep = (bytes, frames);
    for &(pc, callee) in &calls[at] {
        if facts.tail_callers[callee] && bytes >= BEFORE_TAIL_CALL_MAX {
            let reason = format!(
                "tail_calls are not allowed when call stack of previous frames is {bytes} bytes. Too large"
            );
            return Err(Refusal::at(pc, reason));
        }
        deep = deep.max(deepest(calls, facts, callee, bytes, frames + 1)?);
    }
    Ok(deep)
}
