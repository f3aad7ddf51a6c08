//! The exploration: every path through the program, except what an earlier path covered.
//!
//! Depth first. A conditional jump whose outcome is not known puts one side on a stack and goes on with the other. At places
//! where paths meet the state is kept as a checkpoint, and later arrivals are compared with it ([`prune`](crate::prune)).

use crate::cfg::{self, ControlFlow};
use crate::claims::Notes;
use crate::code::Code;
use crate::facts::Facts;
use crate::graph::Graph;
use crate::liveness::{self, Regs};
use crate::log::Log;
use crate::program::{Options, Program};
use crate::prune::{self, Comparison, How};
use crate::refusal::{Checked, Refusal};
use crate::state::{Frame, Kind, RegState, State};
use beeline_isa::{Call, Op, Reg};

/// With how many earlier turns of a loop a state is compared, to find a loop without progress.
const LOOPS_COMPARED: usize = 4;

/// A state that was kept, by index.
pub(crate) type CheckpointId = u32;

/// A path to be explored later.
struct Pending {
    state: State,
    pc: usize,
    previous_pc: usize,
    parent: Option<CheckpointId>,
    log_len: usize,
}

/// A state that was kept at an instruction.
struct Checkpoint {
    /// The instruction.
    pc: usize,
    /// `None` when it was dropped because it never covered anything.
    state: Option<Box<State>>,
    parent: Option<CheckpointId>,
    /// Paths from here that are not explored to their end yet.
    open: u32,
    /// A checkpoint above this one that a path from here was found to lead back to. What matters here is known only when
    /// that one has been explored.
    head: Option<CheckpointId>,
    /// How often it covered a later state, and how often it was compared in vain.
    hits: u32,
    misses: u32,
}

/// Where a path goes on.
pub(crate) enum Next {
    /// At this instruction.
    Goto(usize),
    /// Nowhere: it is explored.
    End,
}

/// The exploration of one program.
pub(crate) struct Explorer<'a> {
    pub(crate) program: &'a Program,
    pub(crate) options: &'a Options,
    pub(crate) code: &'a Code,
    pub(crate) state: State,
    pub(crate) pc: usize,
    pub(crate) previous_pc: usize,
    pub(crate) precision: Graph,
    pub(crate) reads: Graph,
    pub(crate) facts: Facts,
    pub(crate) log: Log,
    /// Every state, when somebody wants to compare them with what happens.
    pub(crate) notes: Notes,
    flow: ControlFlow,
    pub(crate) live: Vec<Regs>,
    parent: Option<CheckpointId>,
    pending: Vec<Pending>,
    checkpoints: Vec<Checkpoint>,
    /// Checkpoints by instruction that are being explored, which are all above the current path; oldest first.
    open_at: Vec<Vec<CheckpointId>>,
    /// Checkpoints by instruction that were explored to their end.
    closed_at: Vec<Vec<CheckpointId>>,
    last_id: u32,
    jumps: u32,
    jumps_at_checkpoint: u32,
    insns_at_checkpoint: u32,
    globals_pending: Vec<u16>,
    /// Bytes of all states in `pending` and `checkpoints`.
    bytes: usize,
    /// Checkpoints that have a state.
    kept: u32,
    /// The state that came round again unchanged.
    looping: Option<CheckpointId>,
}

impl<'a> Explorer<'a> {
    pub(crate) fn new(
        program: &'a Program,
        options: &'a Options,
        code: &'a Code,
    ) -> Result<Explorer<'a>, Refusal> {
        let flow = cfg::analyse(code)?;
        Ok(Explorer {
            program,
            options,
            code,
            state: State { frames: Vec::new(), references: Vec::new(), may_goto_depth: 0, lock: None },
            pc: 0,
            previous_pc: 0,
            precision: Graph::new(),
            reads: Graph::new(),
            facts: Facts::new(code),
            log: Log::new(options),
            notes: Notes::none(),
            flow,
            live: liveness::analyse(code),
            parent: None,
            pending: Vec::new(),
            checkpoints: Vec::new(),
            open_at: vec![Vec::new(); code.ops.len()],
            closed_at: vec![Vec::new(); code.ops.len()],
            last_id: 0,
            jumps: 0,
            jumps_at_checkpoint: 0,
            insns_at_checkpoint: 0,
            globals_pending: Vec::new(),
            bytes: 0,
            kept: 0,
            looping: None,
        })
    }

    /// Explores the program and each global subprogram that it calls.
    pub(crate) fn run(&mut self) -> Result<(), Refusal> {
        let mut frame = Frame::new(0, 0, 0);
        frame.regs[1] = RegState::pointer(Kind::Ctx);
        self.explore_from(frame)?;
        let mut done = vec![false; self.code.subprograms.len()];
        while let Some(subprogram) = self.globals_pending.pop() {
            if !std::mem::replace(&mut done[usize::from(subprogram)], true) {
                let frame = self.global_frame(subprogram);
                self.explore_from(frame)?;
            }
        }
        crate::require::stack_depth::check(self.code, &self.facts).inspect_err(|refusal| {
            self.log.say(&refusal.reason);
            self.log.say("\n");
        })
    }

    /// A global subprogram is called: it is to be verified by itself.
    pub(crate) fn call_global(&mut self, subprogram: usize) {
        self.globals_pending.push(subprogram as u16);
    }

    fn explore_from(&mut self, frame: Frame) -> Result<(), Refusal> {
        let log_from = self.log.position();
        self.log.begin();
        self.pc = self.code.subprograms[usize::from(frame.subprogram)].start;
        self.previous_pc = self.pc;
        self.state = State { frames: vec![frame], references: Vec::new(), may_goto_depth: 0, lock: None };
        self.parent = None;
        loop {
            match self.step() {
                Ok(Next::Goto(pc)) => {
                    self.previous_pc = self.pc;
                    self.pc = pc;
                }
                Ok(Next::End) => {
                    self.close_path();
                    let Some(next) = self.pending.pop() else {
                        self.log.end(log_from);
                        return Ok(());
                    };
                    self.resume(next);
                }
                Err(reason) => {
                    self.log.failed(self.program, self.pc, &self.state, &reason);
                    let earlier = self.looping.and_then(|id| self.checkpoints[id as usize].state.as_deref());
                    if let Some(earlier) = earlier {
                        self.log.same(self.program, &self.state, earlier);
                    }
                    return Err(Refusal::at(self.pc, reason));
                }
            }
        }
    }

    fn resume(&mut self, next: Pending) {
        self.bytes -= next.state.bytes();
        self.state = next.state;
        self.pc = next.pc;
        self.previous_pc = next.previous_pc;
        self.parent = next.parent;
        self.log.rewind(next.log_len);
    }

    fn step(&mut self) -> Checked<Next> {
        let pc = self.pc;
        self.facts.insns_processed += 1;
        if self.facts.insns_processed > self.options.limits.insns_processed_max {
            return Err(format!("BPF program is too large. Processed {} insn", self.facts.insns_processed));
        }
        if self.bytes > self.options.limits.state_bytes_max {
            return Err(format!("BPF program is too complex: {} bytes of states at insn {pc}", self.bytes));
        }
        if self.flow.prune[pc] && self.arrive()? {
            self.log.covered(self.previous_pc, pc);
            return Ok(Next::End);
        }
        let Some(op) = self.code.op(pc) else { return Err(format!("invalid insn idx {pc}")) };
        self.facts.live[pc] = true;
        self.notes.note(pc, &self.state);
        self.log.insn(self.program, self.previous_pc, pc, &self.state);
        if matches!(op, Op::Jump { .. } | Op::Ja { .. } | Op::Call(_) | Op::Exit) {
            self.jumps += 1;
        }
        if !self.log.is_on() {
            return self.execute(op);
        }
        let left = matches!(op, Op::Exit).then(|| self.state.clone());
        let next = self.execute(op)?;
        self.log_transfer(op, left, &next);
        Ok(next)
    }

    /// What the log says of jumps, calls and returns; `left` is the state before an exit.
    fn log_transfer(&mut self, op: Op, left: Option<State>, next: &Next) {
        match (op, next, left) {
            (Op::Jump { .. }, Next::Goto(_), _) => self.log.jumped(self.program, self.pc, &self.state),
            (Op::Call(Call::Local(_)), Next::Goto(to), _) if *to != self.pc + 1 => {
                self.log.called(self.program, &self.state);
            }
            (Op::Exit, Next::Goto(to), Some(left)) => {
                self.log.returned(self.program, &left, *to, &self.state);
            }
            _ => {}
        }
    }

    /// Another path goes on at `pc` with `state`, later.
    pub(crate) fn push(&mut self, pc: usize, state: State) -> Checked {
        if self.pending.len() >= self.options.limits.branches_pending_max as usize {
            return Err(format!("The sequence of {} jumps is too complex.", self.pending.len() + 1));
        }
        if let Some(parent) = self.parent {
            self.checkpoints[parent as usize].open += 1;
        }
        self.bytes += state.bytes();
        let log_len = self.log.position();
        self.pending.push(Pending { state, pc, previous_pc: self.pc, parent: self.parent, log_len });
        Ok(())
    }

    /// A fresh id for numbers, pointers or references.
    pub(crate) fn fresh_id(&mut self) -> u32 {
        self.last_id += 1;
        self.last_id
    }

    /// The number in `reg` decided something.
    pub(crate) fn mark_precise(&mut self, reg: &RegState) {
        if reg.kind == Kind::Scalar {
            self.precision.mark(reg.node);
        }
    }

    pub(crate) fn mark_reg_precise(&mut self, reg: Reg) {
        let state = *self.state.reg(reg);
        self.mark_precise(&state);
    }

    /// The current path is at its end: checkpoints without open paths are explored.
    fn close_path(&mut self) {
        let mut at = self.parent;
        while let Some(id) = at {
            let checkpoint = &mut self.checkpoints[id as usize];
            checkpoint.open -= 1;
            if checkpoint.open > 0 {
                break;
            }
            // Paths are explored depth first: the newest open checkpoint is the first to be explored to its end.
            at = checkpoint.parent;
            self.open_at[checkpoint.pc].pop();
            self.closed_at[checkpoint.pc].push(id);
        }
    }

    fn live_regs(&self) -> Vec<Regs> {
        let frames = &self.state.frames;
        let inner = frames.iter().skip(1).map(|above| {
            let site = above.callsite as usize;
            let called_back = above.callback.is_some();
            if called_back { self.live[site] } else { self.live[self.code.next(site)] & !0b11_1111 }
        });
        inner.chain([self.live[self.pc]]).collect()
    }

    /// At a place where paths meet. True when an earlier state covers this one.
    fn arrive(&mut self) -> Checked<bool> {
        let bounded = self.is_bounded_loop_head();
        let long = self.facts.insns_processed - self.insns_at_checkpoint > 400;
        let forced = bounded || long;
        let mut keep = forced
            || self.jumps - self.jumps_at_checkpoint >= 2
                && self.facts.insns_processed - self.insns_at_checkpoint >= 8;
        let live = self.live_regs();
        let kept = (self.open_at[self.pc].len() + self.closed_at[self.pc].len()) as u32;
        self.facts.states_per_insn_max = self.facts.states_per_insn_max.max(kept);
        if bounded && let Some(id) = self.find(&self.open_at[self.pc], How::Within, &live) {
            self.covered_by(id, How::Within);
            return Ok(true);
        }
        if !self.open_at[self.pc].is_empty() {
            let newest = self.open_at[self.pc].len().saturating_sub(LOOPS_COMPARED);
            if let Some(id) = self.find(&self.open_at[self.pc][newest..], How::Identical, &live) {
                self.looping = Some(id);
                return Err(format!("infinite loop detected at insn {}", self.pc));
            }
            // A loop that makes progress: one state in a while is enough, most of them will differ.
            let few = self.jumps - self.jumps_at_checkpoint < 20
                && self.facts.insns_processed - self.insns_at_checkpoint < 100;
            keep &= forced || !few;
        }
        if self.is_covered(keep, &live) {
            return Ok(true);
        }
        if keep {
            self.keep();
        }
        Ok(false)
    }

    /// The first of these checkpoints that covers the current state.
    fn find(&self, ids: &[CheckpointId], how: How, live: &[Regs]) -> Option<CheckpointId> {
        let found = |&id: &CheckpointId| {
            let open = self.checkpoints[id as usize].open > 0;
            (how == How::Identical || !open || self.has_advanced_since(id)) && self.compare(id, how, live)
        };
        ids.iter().rev().copied().find(found)
    }

    /// Since checkpoint `id`, which is above, the path went round a loop that something else bounds: only then may it end
    /// there. Without that the loop could turn for ever.
    fn has_advanced_since(&self, id: CheckpointId) -> bool {
        let Some(old) = &self.checkpoints[id as usize].state else { return false };
        let turns = |state: &State| state.frames.iter().map(|frame| frame.callback_depth).collect::<Vec<_>>();
        self.state.may_goto_depth > old.may_goto_depth || turns(&self.state) > turns(old)
    }

    /// Compares with the checkpoints that were explored to their end. Those that never cover anything are dropped, when
    /// `count` says that the comparison counts.
    fn is_covered(&mut self, count: bool, live: &[Regs]) -> bool {
        let mut i = 0;
        while i < self.closed_at[self.pc].len() {
            let id = self.closed_at[self.pc][i];
            let how = if self.open_head(id).is_some() { How::Within } else { How::Needed };
            if self.compare(id, how, live) {
                self.covered_by(id, how);
                return true;
            }
            if count && self.missed(id) {
                let dropped = self.checkpoints[id as usize].state.take();
                self.bytes -= dropped.map_or(0, |state| state.bytes());
                self.closed_at[self.pc].swap_remove(i);
                self.kept -= 1;
            } else {
                i += 1;
            }
        }
        false
    }

    /// Counts a comparison in vain. True when the checkpoint is no longer worth keeping.
    fn missed(&mut self, id: CheckpointId) -> bool {
        let checkpoint = &mut self.checkpoints[id as usize];
        checkpoint.misses += 1;
        checkpoint.misses > checkpoint.hits * 3 + 3 && self.closed_at[self.pc].len() > 8
            || checkpoint.misses > 64
    }

    fn compare(&self, id: CheckpointId, how: How, live: &[Regs]) -> bool {
        let Some(old) = &self.checkpoints[id as usize].state else { return false };
        let (precision, reads) = (&self.precision, &self.reads);
        Comparison { how, precision, reads, live, ids: Vec::new() }.covers(old, &self.state)
    }

    fn covered_by(&mut self, id: CheckpointId, how: How) {
        self.checkpoints[id as usize].hits += 1;
        self.facts.pruned += 1;
        if let Some(old) = &self.checkpoints[id as usize].state {
            let later = how == How::Within;
            prune::inherit(old, &self.state, &mut self.precision, &mut self.reads, later);
        }
        if how == How::Within {
            self.close_loop(id);
        }
    }

    /// The outermost checkpoint that paths from `id` lead back to and that is still being explored.
    fn open_head(&self, id: CheckpointId) -> Option<CheckpointId> {
        let mut head = self.checkpoints[id as usize].head?;
        while self.checkpoints[head as usize].open == 0 {
            head = self.checkpoints[head as usize].head?;
        }
        Some(head)
    }

    /// The current path leads back to checkpoint `id`, or to where that one leads back: all between are in that loop.
    fn close_loop(&mut self, id: CheckpointId) {
        let head = self.open_head(id).unwrap_or(id);
        let mut at = self.parent;
        while let Some(current) = at {
            if current == head {
                break;
            }
            // A checkpoint is made after those above it, so the outermost head is the one with the lowest number.
            let outer = self.open_head(current).map_or(head, |known| known.min(head));
            let checkpoint = &mut self.checkpoints[current as usize];
            checkpoint.head = Some(outer);
            at = checkpoint.parent;
        }
    }

    /// Keeps the state as a checkpoint.
    fn keep(&mut self) {
        prune::forget_single_ids(&mut self.state);
        prune::renew_nodes(&mut self.state, &mut self.precision, &mut self.reads);
        self.bytes += self.state.bytes();
        let id = self.checkpoints.len() as CheckpointId;
        self.checkpoints.push(Checkpoint {
            pc: self.pc,
            state: Some(Box::new(self.state.clone())),
            parent: self.parent,
            open: 1,
            head: None,
            hits: 0,
            misses: 0,
        });
        self.open_at[self.pc].push(id);
        self.parent = Some(id);
        self.facts.states += 1;
        self.kept += 1;
        self.facts.states_peak = self.facts.states_peak.max(self.kept);
        self.jumps_at_checkpoint = self.jumps;
        self.insns_at_checkpoint = self.facts.insns_processed;
    }

    /// The latest state above that was kept at `pc`, `newer` of them left out.
    pub(crate) fn kept_above(&self, pc: usize, newer: usize) -> Option<&State> {
        let id = *self.open_at[pc].iter().rev().nth(newer)?;
        self.checkpoints[id as usize].state.as_deref()
    }
}
