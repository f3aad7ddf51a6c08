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
use crate::needed::Needed;
use crate::program::{Options, Program};
use crate::prune::{self, Comparison, How, Ids};
use crate::refusal::{Checked, Refusal};
use crate::state::{Frame, Kind, RegState, State};
use beeline_isa::{Call, Op, Reg};

/// With how many earlier turns of a loop a state is compared, to find a loop without progress.
const LOOPS_COMPARED: usize = 4;

/// With how many earlier turns of a loop that something else bounds a state is compared, to end it.
const BOUNDED_LOOPS_COMPARED: usize = 64;

/// Bytes that the verifier keeps for each instruction slot, about.
const INSN_BYTES: usize = 96;

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
    state: Kept,
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

/// How much of a checkpoint's state is kept.
enum Kept {
    /// All: it is being explored, or what leads back to one that is.
    Whole(Box<State>),
    /// What mattered.
    Needed(Box<Needed>),
    /// Nothing, because it never covered anything.
    Nothing,
}

impl Kept {
    fn whole(&self) -> Option<&State> {
        match self {
            Kept::Whole(state) => Some(state),
            Kept::Needed(_) | Kept::Nothing => None,
        }
    }

    fn bytes(&self) -> usize {
        match self {
            Kept::Whole(state) => state.bytes(),
            Kept::Needed(needed) => needed.bytes(),
            Kept::Nothing => 0,
        }
    }
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
    ids: Ids,
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
            ids: Ids::new(),
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
                self.forget_states();
                self.explore_from(frame)?;
            }
        }
        let as_a_whole = crate::require::stack_depth::check(self.code, &self.facts);
        as_a_whole.and_then(|()| self.host_calls_suit().map_err(|reason| Refusal::at(0, reason))).inspect_err(
            |refusal| {
                self.log.say(&refusal.reason);
                self.log.say("\n");
            },
        )
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
                    let earlier = self.looping.and_then(|id| self.checkpoints[id as usize].state.whole());
                    if let Some(earlier) = earlier {
                        self.log.same(self.program, &self.state, earlier, &self.precision);
                    }
                    return Err(Refusal::at(self.pc, reason));
                }
            }
        }
    }

    /// The exploration of a function is at its end: no other one compares states with those.
    fn forget_states(&mut self) {
        self.closed_at.iter_mut().for_each(Vec::clear);
        for id in 0..self.checkpoints.len() {
            self.replace(id as CheckpointId, Kept::Nothing);
        }
    }

    fn replace(&mut self, id: CheckpointId, by: Kept) {
        self.bytes += by.bytes();
        self.bytes -= std::mem::replace(&mut self.checkpoints[id as usize].state, by).bytes();
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
        self.within_limits()?;
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

    fn within_limits(&mut self) -> Checked {
        let limits = &self.options.limits;
        let graphs = self.precision.bytes() + self.reads.bytes();
        let bytes = self.bytes + graphs + self.code.ops.len() * INSN_BYTES;
        self.facts.state_bytes_peak = self.facts.state_bytes_peak.max(bytes);
        if self.facts.insns_processed > limits.insns_processed_max {
            return Err(format!("BPF program is too large. Processed {} insn", self.facts.insns_processed));
        }
        if bytes > limits.state_bytes_max {
            return Err(format!("BPF program is too complex: {bytes} bytes of states at insn {}", self.pc));
        }
        if self.facts.work > limits.work_max {
            return Err(format!(
                "BPF program is too complex: {} registers and stack slots compared and copied up to insn {}",
                self.facts.work, self.pc
            ));
        }
        Ok(())
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
        self.facts.work += state.parts();
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
            if self.open_head(id).is_none() {
                self.keep_needed(id);
            }
        }
    }

    fn live_regs(&self) -> Vec<Regs> {
        self.live_regs_of(&self.state, self.pc)
    }

    /// The registers of each frame of `state` that can still be read from `pc` on.
    fn live_regs_of(&self, state: &State, pc: usize) -> Vec<Regs> {
        let inner = state.frames.iter().skip(1).map(|above| {
            let site = above.callsite as usize;
            let called_back = above.callback.is_some();
            if called_back { self.live[site] } else { self.live[self.code.next(site)] & !0b11_1111 }
        });
        inner.chain([self.live[pc]]).collect()
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
        if bounded && let Some(id) = self.find_open(How::Within, BOUNDED_LOOPS_COMPARED, &live) {
            self.covered_by_open(id);
            return Ok(true);
        }
        if !self.open_at[self.pc].is_empty() {
            if let Some(id) = self.find_open(How::Identical, LOOPS_COMPARED, &live) {
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

    /// The newest of the last `count` checkpoints above at this instruction that covers the current state.
    fn find_open(&mut self, how: How, count: usize, live: &[Regs]) -> Option<CheckpointId> {
        let end = self.open_at[self.pc].len();
        for i in (end.saturating_sub(count)..end).rev() {
            let id = self.open_at[self.pc][i];
            if (how == How::Identical || self.has_advanced_since(id)) && self.compare(id, how, live) {
                return Some(id);
            }
        }
        None
    }

    /// Since checkpoint `id`, which is above, the path went round a loop that something else bounds: only then may it end
    /// there. Without that the loop could turn for ever.
    fn has_advanced_since(&self, id: CheckpointId) -> bool {
        let Some(old) = self.checkpoints[id as usize].state.whole() else { return false };
        let turns =
            |state: &'_ State| state.frames.iter().map(|frame| frame.callback_depth).collect::<Vec<_>>();
        self.state.may_goto_depth > old.may_goto_depth
            || turns(&self.state) > turns(old)
            || crate::effect::iter::advanced(old, &self.state)
    }

    /// Compares with the checkpoints that were explored to their end. Those that never cover anything are dropped, when
    /// `count` says that the comparison counts.
    fn is_covered(&mut self, count: bool, live: &[Regs]) -> bool {
        let mut i = 0;
        while i < self.closed_at[self.pc].len() {
            let id = self.closed_at[self.pc][i];
            if self.open_head(id).is_some() {
                if self.compare(id, How::Within, live) {
                    self.covered_by_open(id);
                    return true;
                }
            } else if self.compare_needed(id) {
                return true;
            }
            if count && self.missed(id) {
                self.replace(id, Kept::Nothing);
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

    fn compare(&mut self, id: CheckpointId, how: How, live: &[Regs]) -> bool {
        let Some(old) = self.checkpoints[id as usize].state.whole() else { return false };
        let mut comparison = Comparison { how, ids: &mut self.ids, work: 0 };
        let covers = comparison.covers(old, &self.state, live);
        self.facts.work += comparison.work;
        covers
    }

    /// The path ends where checkpoint `id` was, which is being explored or leads back to one that is.
    fn covered_by_open(&mut self, id: CheckpointId) {
        self.checkpoints[id as usize].hits += 1;
        self.facts.pruned += 1;
        if let Some(old) = self.checkpoints[id as usize].state.whole() {
            prune::inherit(old, &self.state, &mut self.precision, &mut self.reads);
        }
        self.close_loop(id);
    }

    /// Compares with what mattered of a checkpoint that was explored to its end. True when it covers the current state.
    fn compare_needed(&mut self, id: CheckpointId) -> bool {
        self.keep_needed(id);
        let checkpoint = &mut self.checkpoints[id as usize];
        let Kept::Needed(needed) = &checkpoint.state else { return false };
        let mut comparison = Comparison { how: How::Within, ids: &mut self.ids, work: 1 };
        let covers = needed.covers(&self.state, &mut comparison);
        self.facts.work += comparison.work;
        if covers {
            checkpoint.hits += 1;
            self.facts.pruned += 1;
            needed.inherit(&self.state, &mut self.precision, &mut self.reads);
        }
        covers
    }

    /// Of checkpoint `id`, which was explored to its end and leads back to none that is being explored, only what mattered is
    /// kept.
    fn keep_needed(&mut self, id: CheckpointId) {
        let checkpoint = &self.checkpoints[id as usize];
        if let Some(state) = checkpoint.state.whole() {
            let live = self.live_regs_of(state, checkpoint.pc);
            let needed = Needed::of(state, &live, &self.precision, &self.reads);
            self.facts.work += state.parts();
            self.replace(id, Kept::Needed(Box::new(needed)));
        }
    }

    /// The outermost checkpoint that paths from `id` lead back to and that is still being explored.
    fn open_head(&mut self, id: CheckpointId) -> Option<CheckpointId> {
        let mut head = self.checkpoints[id as usize].head?;
        while self.checkpoints[head as usize].open == 0 {
            let Some(outer) = self.checkpoints[head as usize].head else {
                self.checkpoints[id as usize].head = None;
                return None;
            };
            head = outer;
        }
        // The next one who asks need not follow the chain again.
        self.checkpoints[id as usize].head = Some(head);
        Some(head)
    }

    /// The current path leads back to checkpoint `id`, or to where that one leads back: all between are in that loop.
    fn close_loop(&mut self, id: CheckpointId) {
        let head = self.open_head(id).unwrap_or(id);
        let mut at = self.parent;
        while let Some(current) = at {
            // A checkpoint is made after those above it, so the outermost head is the one with the lowest number. What
            // leads back that far has been found before, for those above it too.
            if current == head || self.open_head(current).is_some_and(|known| known <= head) {
                break;
            }
            let checkpoint = &mut self.checkpoints[current as usize];
            checkpoint.head = Some(head);
            at = checkpoint.parent;
        }
    }

    /// Keeps the state as a checkpoint.
    fn keep(&mut self) {
        prune::forget_single_ids(&mut self.state, &mut self.ids);
        prune::renew_nodes(&mut self.state, &mut self.precision, &mut self.reads, &mut self.ids);
        self.bytes += self.state.bytes() + size_of::<Checkpoint>();
        self.facts.work += 2 * self.state.parts();
        let id = self.checkpoints.len() as CheckpointId;
        self.checkpoints.push(Checkpoint {
            pc: self.pc,
            state: Kept::Whole(Box::new(self.state.clone())),
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
        self.checkpoints[id as usize].state.whole()
    }
}
