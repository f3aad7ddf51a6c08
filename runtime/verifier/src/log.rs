//! The log, in the kernel's form: instructions with the registers that they changed, the reason, the registers at the end.

use crate::bounds::Scalar;
use crate::program::{Options, Program};
use crate::state::{Byte, Kind, RegState, State};
use beeline_isa::disasm::Names;
use std::fmt::Write;

/// Log levels, bits (`BPF_LOG_LEVEL1`, `BPF_LOG_LEVEL2`).
const FAILING_PATH: u32 = 1;
const EVERY_PATH: u32 = 2;

/// The log as it grows.
pub(crate) struct Log {
    text: String,
    level: u32,
    bytes_max: usize,
    /// The registers when they were last printed.
    shown: Option<State>,
    line_shown: Option<usize>,
}

impl Log {
    pub(crate) fn new(options: &Options) -> Log {
        Log {
            text: String::new(),
            level: options.log_level,
            bytes_max: options.limits.log_bytes_max,
            shown: None,
            line_shown: None,
        }
    }

    fn is_on(&self) -> bool {
        self.level & (FAILING_PATH | EVERY_PATH) != 0
    }

    /// Where the log stands, to come back to with [`rewind`](Self::rewind).
    pub(crate) fn position(&self) -> usize {
        self.text.len()
    }

    /// Another path begins: unless all paths are wanted, what the last one printed goes.
    pub(crate) fn rewind(&mut self, position: usize) {
        if self.level & EVERY_PATH == 0 {
            self.text.truncate(position);
        }
        self.line_shown = None;
    }

    pub(crate) fn line(&mut self, text: &str) {
        if self.text.len() < self.bytes_max {
            self.text.push_str(text);
        }
    }

    pub(crate) fn take(&mut self) -> String {
        std::mem::take(&mut self.text)
    }

    /// A path goes on at `pc` that was left at `from`.
    pub(crate) fn path(&mut self, from: usize, pc: usize, state: &State) {
        if self.is_on() {
            let text = format!("\nfrom {from} to {pc}:{}\n", registers(state, None));
            self.line(&text);
            self.shown = Some(state.clone());
        }
    }

    /// The instruction at `pc` is about to be looked at.
    pub(crate) fn insn(&mut self, program: &Program, pc: usize, state: &State) {
        if !self.is_on() {
            return;
        }
        if self.shown.is_none() {
            let text = format!("{pc}:{}\n", registers(state, None));
            self.line(&text);
            self.shown = Some(state.clone());
        }
        let source = program.line_info.partition_point(|(at, _)| *at as usize <= pc);
        if source > 0 && self.line_shown != Some(source) {
            self.line_shown = Some(source);
            let text = format!("; {}\n", program.line_info[source - 1].1);
            self.line(&text);
        }
        let text = instruction(program, pc);
        self.line(&text);
    }

    /// The instruction at `pc` left this state.
    pub(crate) fn after(&mut self, _pc: usize, state: &State) {
        if !self.is_on() {
            return;
        }
        let changed = registers(state, self.shown.as_ref());
        let text = if changed.is_empty() { "\n".into() } else { format!(" ;{changed}\n") };
        self.line(&text);
        self.shown = Some(state.clone());
    }

    /// The reason, and what was known when it arose.
    pub(crate) fn failed(&mut self, program: &Program, pc: usize, state: &State, reason: &str) {
        if self.is_on() {
            self.line("\n");
        } else {
            let text = format!("{}\n{}\n", registers(state, None).trim_start(), instruction(program, pc));
            self.line(&text);
        }
        let text = format!("{reason}\n");
        self.line(&text);
        if let Some(advice) = crate::require::advice::for_reason(reason) {
            let text = format!("; {advice}\n");
            self.line(&text);
        }
    }
}

fn instruction(program: &Program, pc: usize) -> String {
    format!("{pc}: {}", beeline_isa::disasm::Line::new(&program.insns, pc, &HelperNames))
}

/// Names of helpers, from their table.
struct HelperNames;

impl Names for HelperNames {
    fn helper(&self, id: i32) -> Option<&str> {
        beeline_helpers::by_id(u32::try_from(id).ok()?).map(|helper| helper.proto.name)
    }
}

/// The registers and stack slots of the innermost frame; with `since`, only those that differ from then.
fn registers(state: &State, since: Option<&State>) -> String {
    let mut text = String::new();
    let frame = state.frame();
    let before = since.filter(|since| since.frames.len() == state.frames.len()).map(State::frame);
    if since.is_some() && before.is_none() || since.is_none() && state.frames.len() > 1 {
        let _ = write!(text, " frame{}:", state.frames.len() - 1);
    }
    for (number, reg) in frame.regs.iter().enumerate() {
        if reg.kind != Kind::Uninit && before.is_none_or(|before| shown(&before.regs[number]) != shown(reg)) {
            let _ = write!(text, " R{number}={}", shown(reg));
        }
    }
    for (index, slot) in frame.stack.iter().enumerate() {
        let old = before.and_then(|before| before.stack.get(index));
        if slot.bytes != [Byte::Uninit; 8]
            && old.is_none_or(|old| old.bytes != slot.bytes || shown(&old.spilled) != shown(&slot.spilled))
        {
            let _ = write!(text, " fp-{}={}", 8 * (index + 1), contents(slot));
        }
    }
    let held = |state: &State| state.references.iter().map(|r| r.0).collect::<Vec<_>>();
    if !state.references.is_empty() && since.is_none_or(|since| held(since) != held(state)) {
        let ids = held(state).iter().map(u32::to_string).collect::<Vec<_>>();
        let _ = write!(text, " refs={}", ids.join(","));
    }
    text
}

fn contents(slot: &crate::state::Slot) -> String {
    if slot.spill_size() == 8 {
        return shown(&slot.spilled);
    }
    let letter = |byte: &Byte| match byte {
        Byte::Uninit => '?',
        Byte::Spill => 'r',
        Byte::Misc => 'm',
        Byte::Zero => '0',
        Byte::Object => 'd',
    };
    slot.bytes.iter().rev().map(letter).collect()
}

/// A register, as the kernel's `print_reg_state`.
pub(crate) fn shown(reg: &RegState) -> String {
    match reg.kind {
        Kind::Uninit => "?".into(),
        Kind::Scalar => match reg.value.as_const() {
            Some(value) if (value as i64).unsigned_abs() < 1 << 16 => format!("{}", value as i64),
            Some(value) => format!("{value:#x}"),
            None => format!("scalar({})", parts(reg, ranges(&reg.value)).join(",")),
        },
        Kind::Stack { .. } if reg.value.as_const() == Some(0) => format!("fp{}", signed_or_zero(reg.off)),
        kind => {
            let mut known = Vec::new();
            match kind {
                Kind::MapPtr { map, .. } | Kind::MapValue { map, .. } | Kind::MapKey { map } => {
                    known.push(format!("map={}{}", map.index, if map.inner { ".inner" } else { "" }));
                }
                Kind::Mem { size, .. } => known.push(format!("sz={size}")),
                _ => {}
            }
            if reg.off != 0 {
                known.push(format!("off={}", reg.off));
            }
            if kind.is_packet() {
                known.push(format!("r={}", reg.range));
            }
            match reg.value.as_const() {
                Some(0) => {}
                Some(value) => known.push(format!("imm={:#x}", value)),
                None => known.extend(ranges(&reg.value)),
            }
            format!("{}({})", kind.name(), parts(reg, known).join(","))
        }
    }
}

fn signed_or_zero(off: i32) -> String {
    if off == 0 { "0".into() } else { off.to_string() }
}

fn parts(reg: &RegState, rest: Vec<String>) -> Vec<String> {
    let ids = [("id", reg.id), ("ref_obj_id", reg.reference)];
    let ids = ids.into_iter().filter(|(_, id)| *id != 0).map(|(name, id)| format!("{name}={id}"));
    ids.chain(rest).collect()
}

/// The ranges that say more than the type does; ends that are equal are written once: `smax=umax=255`.
fn ranges(set: &Scalar) -> Vec<String> {
    let (s32, u32) = ((set.s32_min, set.s32_max), (set.u32_min, set.u32_max));
    let mut ends: Vec<(&str, i128)> = Vec::new();
    let mut add = |name, value: i128, trivial: i128| {
        if value != trivial {
            ends.push((name, value));
        }
    };
    add("smin", set.smin.into(), i64::MIN.into());
    add("smax", set.smax.into(), i64::MAX.into());
    add("umin", set.umin.into(), 0);
    add("umax", set.umax.into(), u64::MAX.into());
    add("smin32", s32.0.into(), i32::MIN.into());
    add("smax32", s32.1.into(), i32::MAX.into());
    add("umin32", u32.0.into(), 0);
    add("umax32", u32.1.into(), u32::MAX.into());
    let mut text = Vec::new();
    while !ends.is_empty() {
        let value = ends[0].1;
        let names = ends.iter().filter(|end| end.1 == value).map(|end| end.0).collect::<Vec<_>>();
        text.push(format!("{}={}", names.join("="), number(value)));
        ends.retain(|end| end.1 != value);
    }
    if !set.tnum.is_unknown() {
        text.push(format!("var_off={}", Pair(set.tnum)));
    }
    text
}

/// Small numbers in decimal, others in hexadecimal of 64 bits.
fn number(value: i128) -> String {
    if (i128::from(i16::MIN)..=i128::from(u16::MAX)).contains(&value) {
        value.to_string()
    } else {
        format!("{:#x}", value as u64)
    }
}

/// A tristate number with both its parts, even where they are a constant.
struct Pair(crate::tnum::Tnum);

impl std::fmt::Display for Pair {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "({:#x}; {:#x})", self.0.value, self.0.mask)
    }
}
