//! Return probes without a change to the stack: at each `ret` of a function.
//!
//! ```text
//! add $0x18,%rsp ◀ window      runs first, in the stub
//! ret            ◀ the probe   then the programs, then a `ret`
//! ```
//!
//! For functions whose return address has to stay where it is: Go moves stacks and looks at every address on them; and for those that
//! jump back to their own entry, where an entry says nothing of how often they return. What leaves a function in another way than
//! by `ret`, a jump to another function, is seen beforehand and refused: its return would be lost.
//!
//! A `ret` has one byte. Its window begins with it where padding follows, else with the instructions before it.

use crate::binary::Binary;
use crate::error::Refusal;
use crate::hole;
use crate::plan::{
    Room, SHORT_WINDOW, SitePlan, WINDOW_MIN, crosses_page, may_hop, plan_breakpoint, plan_window,
};
use iced_x86::{Code, Decoder, DecoderOptions, FlowControl, Instruction, OpKind};
use std::ops::Range;

/// A `ret` in a window.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Leave {
    /// Its offset in the window. It is the last instruction there.
    pub at: u8,
    /// Link-time address of the entry of the function that it leaves.
    pub function: u64,
}

/// Bytes of `ret`.
const RET_LEN: u64 = 1;
/// Most bytes of instructions before a `ret` that its window takes.
const BEFORE_MAX: u64 = 15;

/// Plans a window for every `ret` of the function that begins at `vaddr`.
///
/// # Errors
/// [`Refusal`] when one of them has no room, or when the function can be left in another way.
pub(crate) fn plan_leaves(binary: &Binary, vaddr: u64, room: Room) -> Result<Vec<SitePlan>, Refusal> {
    let function = binary.function_at(vaddr).filter(|function| function.start == vaddr);
    let function = function.ok_or(Refusal::NotAnEntry { vaddr })?;
    let body = Body::of(binary, function.start..function.end)?;
    if body.rets.is_empty() {
        return Err(Refusal::NeverReturns { vaddr });
    }
    let window = |&ret: &u64| match room {
        Room::Jump => body.window_of(binary, ret),
        Room::Any => body.window_of(binary, ret).or_else(|_| body.breakpoint_of(binary, ret)),
        Room::Breakpoint => body.breakpoint_of(binary, ret),
    };
    body.rets.iter().map(window).collect()
}

/// The instructions of a function.
struct Body {
    range: Range<u64>,
    /// Where they begin, in order.
    starts: Vec<u64>,
    rets: Vec<u64>,
}

impl Body {
    fn of(binary: &Binary, range: Range<u64>) -> Result<Body, Refusal> {
        let vaddr = range.start;
        let bytes = binary.bytes_from(vaddr).ok_or(Refusal::NotCode { vaddr })?;
        let bytes = &bytes[..bytes.len().min((range.end - range.start) as usize)];
        let mut body = Body { range, starts: Vec::new(), rets: Vec::new() };
        for instruction in Decoder::with_ip(64, bytes, vaddr, DecoderOptions::NONE).iter() {
            if instruction.is_invalid() {
                return Err(Refusal::Undecodable { vaddr: instruction.ip() });
            }
            body.add(&instruction)?;
        }
        Ok(body)
    }

    fn add(&mut self, instruction: &Instruction) -> Result<(), Refusal> {
        let at = instruction.ip();
        self.starts.push(at);
        match instruction.flow_control() {
            FlowControl::Return
                if instruction.code() == Code::Retnq && instruction.len() as u64 == RET_LEN =>
            {
                self.rets.push(at);
            }
            FlowControl::Return => return Err(self.leaves_otherwise(at)),
            FlowControl::UnconditionalBranch | FlowControl::ConditionalBranch => {
                let direct = instruction.op0_kind() == OpKind::NearBranch64;
                if !direct || !self.range.contains(&instruction.near_branch_target()) {
                    return Err(self.leaves_otherwise(at));
                }
            }
            FlowControl::IndirectBranch if !is_table_jump(instruction) => {
                return Err(self.leaves_otherwise(at));
            }
            _ => {}
        }
        Ok(())
    }

    fn leaves_otherwise(&self, at: u64) -> Refusal {
        Refusal::LeavesOtherwise { vaddr: self.range.start, at }
    }

    /// The window of one `ret`: where padding follows, it alone.
    fn window_of(&self, binary: &Binary, ret: u64) -> Result<SitePlan, Refusal> {
        let fits = |plan: &SitePlan| {
            let len = u64::from(plan.code_len).max(u64::from(plan.jump_len));
            u64::from(plan.code_len) == ret + RET_LEN - plan.vaddr && !crosses_page(plan.vaddr, len)
        };
        let starts =
            || self.starts.iter().rev().copied().filter(|start| *start <= ret && ret - start <= BEFORE_MAX);
        let long =
            starts().filter_map(|start| plan_window(binary, start, length(start, ret, WINDOW_MIN)).ok());
        if let Some(plan) = long.into_iter().find(fits) {
            return Ok(self.leave(plan, ret));
        }
        let short = starts().filter(|_| may_hop(binary)).filter_map(|start| {
            let mut plan = plan_window(binary, start, length(start, ret, SHORT_WINDOW)).ok()?;
            plan.jump_len = SHORT_WINDOW as u8;
            plan.holes = hole::holes(binary, &plan);
            Some(plan)
        });
        let found = short.into_iter().find(|plan| fits(plan) && !plan.holes.is_empty());
        let found = found.map(|plan| self.leave(plan, ret));
        found.ok_or(Refusal::NoRoomAtReturn { vaddr: self.range.start, at: ret })
    }

    fn breakpoint_of(&self, binary: &Binary, ret: u64) -> Result<SitePlan, Refusal> {
        plan_breakpoint(binary, ret).map(|plan| self.leave(plan, ret))
    }

    fn leave(&self, plan: SitePlan, ret: u64) -> SitePlan {
        let leave = Leave { at: (ret - plan.vaddr) as u8, function: self.range.start };
        SitePlan { leave: Some(leave), is_entry: false, ..plan }
    }
}

/// Bytes of the window from `start` to behind the `ret`, or the least that a jump needs: then padding has to follow.
fn length(start: u64, ret: u64, least: usize) -> usize {
    least.max((ret + RET_LEN - start) as usize)
}

/// `jmp *table(,%index,8)`: a `switch`.
fn is_table_jump(instruction: &Instruction) -> bool {
    instruction.op0_kind() == OpKind::Memory && instruction.memory_index_scale() == 8
}

#[cfg(test)]
mod tests {
    use super::*;

    fn added(bytes: &[u8]) -> Result<Body, Refusal> {
        let mut body =
            Body { range: 0x1000..0x1000 + bytes.len() as u64, starts: Vec::new(), rets: Vec::new() };
        for instruction in Decoder::with_ip(64, bytes, 0x1000, DecoderOptions::NONE).iter() {
            body.add(&instruction)?;
        }
        Ok(body)
    }

    fn refused(at: u64) -> Option<Refusal> {
        Some(Refusal::LeavesOtherwise { vaddr: 0x1000, at })
    }

    #[test]
    fn ways_out() {
        // je +1; ret; add $8,%rsp; ret
        let body = added(&[0x74, 0x01, 0xc3, 0x48, 0x83, 0xc4, 0x08, 0xc3]).ok().unwrap();
        assert_eq!(body.rets, [0x1002, 0x1007]);
        assert_eq!(body.starts, [0x1000, 0x1002, 0x1003, 0x1007]);
        // jmp *(%rax,%rcx,8), a table; jmp *(%rdx), a closure; jmp *%rax
        assert!(added(&[0xff, 0x24, 0xc8]).is_ok());
        assert_eq!(added(&[0xff, 0x22]).err(), refused(0x1000));
        assert_eq!(added(&[0xff, 0xe0]).err(), refused(0x1000));
        // jmp and jne out of the function; ret $8; repz ret
        assert_eq!(added(&[0x90, 0xeb, 0x10]).err(), refused(0x1001));
        assert_eq!(added(&[0x90, 0x75, 0x10]).err(), refused(0x1001));
        assert_eq!(added(&[0xc2, 0x08, 0x00]).err(), refused(0x1000));
    }

    #[test]
    fn lengths() {
        assert_eq!(length(0x1000, 0x1000, WINDOW_MIN), 5);
        assert_eq!(length(0x1000, 0x1003, WINDOW_MIN), 5);
        assert_eq!(length(0x1000, 0x1007, WINDOW_MIN), 8);
    }
}
