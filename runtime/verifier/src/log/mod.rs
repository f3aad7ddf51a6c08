//! The log, in the kernel's form: tools parse it, people read it.
//!
//! | level | |
//! |---|---|
//! | 1 | the path that fails, the reason, how much work it was; of an accepted program the last only |
//! | 2 | every path; before that subprograms and live registers |
//! | 4 | the reason, time, stack depths, how much work it was |
//! | 0 | on rejection alone: the registers, the instruction, the reason (the kernel has no log then) |
//!
//! A line is `pc: (opcode) instruction`, then, in the same line where nothing came between, what the instruction touched:
//! registers that it read or wrote and stack slots. The kernel writes those when it comes to the next instruction, over the
//! end of the line ([`Log::touched`]); an abandoned path leaves its traces there ([`Log::rewind`]). What to change is not in
//! the log, which is the kernel's; it is in the [`Rejection`](crate::Rejection).
//!
//! [`show`] writes registers and stacks, [`live`] the table of live registers.

mod live;
mod show;

pub(crate) use live::table as live_registers;
pub(crate) use show::shown;

use crate::facts::Facts;
use crate::graph::Graph;
use crate::liveness::{self, Regs};
use crate::program::{Options, ProgType, Program};
use crate::state::State;
use beeline_helpers::kernel_only;
use beeline_isa::disasm::Names;
use beeline_isa::{Call, Op};
use std::fmt::Write;

/// `BPF_LOG_LEVEL1`: the path that fails.
const FAILING_PATH: u32 = 1;
/// `BPF_LOG_LEVEL2`: every path.
const EVERY_PATH: u32 = 2;
/// `BPF_LOG_STATS`.
const STATS: u32 = 4;

/// Column of what an instruction touched, behind short instructions; behind others the next multiple of eight.
const COLUMN: usize = 40;

/// Registers and slots: what to show of a state.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Touched {
    registers: Regs,
    /// Bit n for the slot at r10 - 8 (n + 1), in whatever frame.
    slots: u64,
}

impl Touched {
    pub(crate) const ALL: Touched = Touched { registers: Regs::MAX, slots: u64::MAX };
    const NOTHING: Touched = Touched { registers: 0, slots: 0 };

    fn has_register(self, number: usize) -> bool {
        self.registers & 1 << number != 0
    }

    fn has_slot(self, index: usize) -> bool {
        self.slots & 1u64.checked_shl(index as u32).unwrap_or(0) != 0
    }
}

/// The log as it grows.
pub(crate) struct Log {
    text: String,
    level: u32,
    bytes_max: usize,
    touched: Touched,
    /// Where the text ended behind the last instruction, and how long that was.
    insn: Option<(usize, usize)>,
    /// The next state is the first of a path, or of a frame that goes on.
    begins: bool,
    /// The line of source that was shown last, by index.
    source_line: Option<usize>,
}

impl Log {
    pub(crate) fn new(options: &Options) -> Log {
        Log {
            text: String::new(),
            level: options.log_level,
            bytes_max: options.limits.log_bytes_max,
            touched: Touched::ALL,
            insn: None,
            begins: false,
            source_line: None,
        }
    }

    /// Paths are shown.
    pub(crate) fn is_on(&self) -> bool {
        self.level & (FAILING_PATH | EVERY_PATH) != 0
    }

    /// All paths are shown.
    pub(crate) fn shows_every_path(&self) -> bool {
        self.level & EVERY_PATH != 0
    }

    /// Where the log stands, to come back to with [`rewind`](Self::rewind).
    pub(crate) fn position(&self) -> usize {
        self.text.len()
    }

    /// Another path begins: unless all paths are wanted, what the last one printed goes.
    pub(crate) fn rewind(&mut self, position: usize) {
        if !self.shows_every_path() {
            self.text.truncate(position);
        }
        self.touched = Touched::ALL;
        self.begins = true;
    }

    pub(crate) fn line(&mut self, text: &str) {
        if self.text.len() < self.bytes_max {
            self.text.push_str(text);
        }
    }

    /// As [`line`](Self::line), at any level.
    pub(crate) fn say(&mut self, text: &str) {
        if self.level != 0 {
            self.line(text);
        }
    }

    pub(crate) fn take(&mut self) -> String {
        std::mem::take(&mut self.text)
    }

    /// Where the subprograms start.
    pub(crate) fn subprograms(&mut self, program: &Program) {
        if !self.shows_every_path() {
            return;
        }
        for (number, start) in live::subprogram_starts(program).into_iter().flatten().enumerate() {
            self.line(&format!("func#{number} @{start}\n"));
        }
    }

    /// A subprogram, or the program itself, is looked at from its start.
    pub(crate) fn begin(&mut self) {
        self.touched = Touched::ALL;
        self.source_line = None;
        self.begins = false;
    }

    /// All paths from the start were found safe.
    pub(crate) fn end(&mut self, from: usize) {
        if !self.shows_every_path() {
            self.text.truncate(from);
        }
    }

    /// The state at `pc` need not be looked at: an earlier one covers it.
    pub(crate) fn covered(&mut self, from: usize, pc: usize) {
        if self.is_on() {
            let text = match self.begins {
                true => format!("\nfrom {from} to {pc}: safe\n"),
                false => format!("{pc}: safe\n"),
            };
            self.line(&text);
        }
    }

    /// The instruction at `pc`, reached from `from`, is about to be looked at.
    pub(crate) fn insn(&mut self, program: &Program, from: usize, pc: usize, state: &State) {
        if !self.is_on() {
            return;
        }
        if self.begins && self.shows_every_path() {
            let text = format!("\nfrom {from} to {pc}:{}\n", self.show(program, state, Touched::ALL));
            self.line(&text);
            self.begins = false;
        }
        if self.touched != Touched::NOTHING {
            self.touched(program, pc, state);
        }
        self.source(program, pc);
        let text = instruction(program, pc);
        let number = format!("{pc}: ");
        self.line(&number);
        self.line(&text);
        self.line("\n");
        self.insn = Some((self.text.len(), number.len() + text.len()));
        if let Ok(op) = beeline_isa::decode(&program.insns[pc..]) {
            self.touched.registers |= touched_registers(op);
        }
    }

    /// Slots of a stack were read by a load, or written.
    pub(crate) fn touch_stack(&mut self, least: i32, end: i32) {
        let slots = |off: i32| ((-1 - off) / 8) as u32;
        if least < end && self.is_on() {
            for slot in slots(end - 1)..=slots(least) {
                self.touched.slots |= 1u64.checked_shl(slot).unwrap_or(0);
            }
        }
    }

    /// What was touched, behind the instruction if nothing was written since, else in a line of its own.
    fn touched(&mut self, program: &Program, pc: usize, state: &State) {
        match self.insn {
            Some((end, len)) if end == self.text.len() && self.text.ends_with('\n') => {
                self.text.pop();
                // From the line's start, where the number of the instruction stands.
                let column = (len + 5).max(COLUMN).next_multiple_of(8);
                let blanks = " ".repeat(column - len - 2);
                self.line(&format!("{blanks};"));
            }
            _ => self.line(&format!("{pc}:")),
        }
        let text = self.show(program, state, self.touched);
        self.line(&text);
        self.line("\n");
        self.touched = Touched::NOTHING;
    }

    /// The conditional jump at `pc` went on with this state.
    pub(crate) fn jumped(&mut self, program: &Program, pc: usize, state: &State) {
        if self.is_on() {
            self.touched(program, pc, state);
        }
    }

    /// A subprogram was entered: `state` has its frame.
    pub(crate) fn called(&mut self, program: &Program, state: &State) {
        if self.is_on() {
            let callee = state.frames.len() - 1;
            let caller = show::frame(program, state, callee - 1, Touched::ALL);
            let callee = show::frame(program, state, callee, Touched::ALL);
            self.line(&format!("caller:\n{caller}\ncallee:\n{callee}\n"));
            self.touched = Touched::ALL;
        }
    }

    /// A subprogram is left, with `before` as its last state, for the instruction at `pc` with `state`.
    pub(crate) fn returned(&mut self, program: &Program, before: &State, pc: usize, state: &State) {
        let (callee, caller) =
            (self.show(program, before, Touched::ALL), self.show(program, state, Touched::ALL));
        self.line(&format!("returning from callee:\n{callee}\nto caller at {pc}:\n{caller}\n"));
        self.begins = true;
    }

    fn show(&self, program: &Program, state: &State, touched: Touched) -> String {
        show::frame(program, state, state.frames.len() - 1, touched)
    }

    fn source(&mut self, program: &Program, pc: usize) {
        let line = program.line_info.partition_point(|(at, _)| *at as usize <= pc);
        if line > 0 && self.source_line != Some(line) {
            let again = self
                .source_line
                .is_some_and(|old| program.line_info[old - 1].1 == program.line_info[line - 1].1);
            self.source_line = Some(line);
            if !again {
                self.line(&format!("; {}\n", program.line_info[line - 1].1));
            }
        }
    }

    /// The current state and an earlier one at the same place, between which nothing changed.
    ///
    /// Numbers of the earlier one that decided something carry a `P`.
    pub(crate) fn same(&mut self, program: &Program, current: &State, earlier: &State, precision: &Graph) {
        let current = self.show(program, current, Touched::ALL);
        let innermost = earlier.frames.len() - 1;
        let earlier = show::with_precision(program, earlier, innermost, precision);
        self.line(&format!("cur state:{current}\nold state:{earlier}\n"));
    }

    /// The reason, and at level 0 what was known when it arose.
    pub(crate) fn failed(&mut self, program: &Program, pc: usize, state: &State, reason: &str) {
        if self.level == 0 {
            let registers = self.show(program, state, Touched::ALL);
            self.line(&format!("{}\n{pc}: {}\n", registers.trim_start(), instruction(program, pc)));
        }
        self.line(reason);
        self.line("\n");
    }

    /// How much work it was: the last lines.
    pub(crate) fn statistics(&mut self, facts: &Facts, options: &Options, time_us: u128) {
        if self.level & STATS != 0 {
            let depths = facts.stack.iter().map(u32::to_string).collect::<Vec<_>>().join("+");
            self.line(&format!("verification time {time_us} usec\nstack depth {depths}\n"));
        }
        let mut text = String::new();
        let _ = writeln!(
            text,
            "processed {} insns (limit {}) max_states_per_insn {} total_states {} peak_states {} mark_read 0",
            facts.insns_processed,
            options.limits.insns_processed_max,
            facts.states_per_insn_max,
            facts.states,
            facts.states_peak,
        );
        self.say(&text);
    }
}

/// Registers that an instruction looks at or changes.
fn touched_registers(op: Op) -> Regs {
    let (reads, writes) = liveness::effect(op);
    match op {
        // The end of the program or of a frame.
        Op::Exit => 0,
        // Of its arguments nothing is left.
        Op::Call(Call::Local(_)) => 0b11_1111,
        _ => reads | writes,
    }
}

/// The instruction, as the kernel prints it.
fn instruction(program: &Program, pc: usize) -> String {
    beeline_isa::disasm::Line::new(&program.insns, pc, &HelperNames(program.prog_type)).to_string()
}

/// Names of helpers, from their table, as programs of a type know them.
struct HelperNames(ProgType);

impl Names for HelperNames {
    fn helper(&self, id: i32) -> Option<&str> {
        kernel_only::proto(u32::try_from(id).ok()?, self.0.0).map(|proto| proto.name)
    }
}
