//! Control flow: every instruction can be reached, calls nest at most eight deep, and where states are worth comparing.

use crate::code::Code;
use crate::program::FRAMES_MAX;
use crate::refusal::Refusal;
use beeline_isa::{Call, Op};

/// What the shape of the code tells the exploration.
pub(crate) struct ControlFlow {
    /// States that arrive here are compared with earlier ones.
    pub(crate) prune: Vec<bool>,
}

/// Checks the control flow and finds the places where paths meet.
pub(crate) fn analyse(code: &Code) -> Result<ControlFlow, Refusal> {
    check_reachable(code)?;
    let mut prune = vec![false; code.ops.len()];
    for range in &code.subprograms {
        prune[range.start] = true;
        for pc in range.start..range.end {
            match code.op(pc) {
                Some(Op::Jump { .. } | Op::Ja { .. } | Op::MayGoto { .. }) => {
                    if !matches!(code.op(pc), Some(Op::Ja { .. })) {
                        prune[pc] = true;
                    }
                    for target in code.successors(pc).into_iter().flatten().filter(|&t| t != pc + 1) {
                        prune[target] = true;
                    }
                }
                Some(Op::Call(call)) => {
                    if matches!(call, Call::Helper(_) | Call::Local(_) | Call::Kfunc { .. }) {
                        prune[pc] = true;
                    }
                    if pc + 1 < range.end {
                        prune[pc + 1] = true;
                    }
                }
                _ => {}
            }
        }
    }
    Ok(ControlFlow { prune })
}

/// Walks every edge once, from the program's start and from the start of each subprogram that is reached.
fn check_reachable(code: &Code) -> Result<(), Refusal> {
    let mut seen = vec![false; code.ops.len()];
    let mut work = vec![0];
    seen[0] = true;
    while let Some(pc) = work.pop() {
        let entered = code.callee(pc).map(|callee| code.subprograms[callee].start);
        for to in code.successors(pc).into_iter().flatten().chain(entered) {
            if code.op(to).is_none() {
                return Err(Refusal::at(pc, format!("jump into the middle of ldimm64 insn {}", to - 1)));
            }
            if !std::mem::replace(&mut seen[to], true) {
                work.push(to);
            }
        }
    }
    match (0..seen.len()).find(|&pc| !seen[pc] && code.op(pc).is_some()) {
        Some(pc) => Err(Refusal::at(pc, format!("unreachable insn {pc}"))),
        None => Ok(()),
    }
}

/// The calls of each subprogram: instruction and callee, direct calls only.
pub(crate) fn calls(code: &Code) -> Vec<Vec<(usize, usize)>> {
    let of = |range: &crate::code::Range| {
        (range.start..range.end).filter_map(|pc| Some((pc, code.callee(pc)?))).collect()
    };
    code.subprograms.iter().map(of).collect()
}

/// No chain of calls is longer than eight frames, not even one that no path takes; so there is no recursion.
pub(crate) fn check_call_depth(code: &Code) -> Result<(), Refusal> {
    let calls = calls(code);
    // Longest chain below each subprogram, 0 = not known yet. Chains past the limit stop the search.
    let mut depth = vec![0; calls.len()];
    for start in 0..calls.len() {
        deepest(&calls, start, 1, &mut depth)?;
    }
    Ok(())
}

fn deepest(
    calls: &[Vec<(usize, usize)>],
    at: usize,
    above: usize,
    depth: &mut [usize],
) -> Result<usize, Refusal> {
    if depth[at] != 0 {
        return Ok(depth[at]);
    }
    let mut most = 1;
    for &(pc, callee) in &calls[at] {
        let below = if above < FRAMES_MAX { deepest(calls, callee, above + 1, depth)? } else { FRAMES_MAX };
        if above + below > FRAMES_MAX {
            return Err(Refusal::at(pc, format!("the call stack of {FRAMES_MAX} frames is too deep !")));
        }
        most = most.max(1 + below);
    }
    depth[at] = most;
    Ok(most)
}
