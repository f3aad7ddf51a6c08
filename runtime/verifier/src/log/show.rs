//! Registers and stacks as the kernel's log shows them (`print_verifier_state`, `print_reg_state`).

use super::Touched;
use crate::bounds::Scalar;
use crate::graph::Graph;
use crate::program::Program;
use crate::state::{Byte, Kind, MapRef, PacketEnd, RegState, Slot, State};
use std::fmt::Write;

/// A frame: registers that hold something, stack slots that were written, references. Each begins with a blank.
pub(super) fn frame(program: &Program, state: &State, number: usize, touched: Touched) -> String {
    marked(program, state, number, touched, |_| false)
}

/// A whole frame; numbers that decided something carry a `P`.
pub(super) fn with_precision(program: &Program, state: &State, number: usize, precision: &Graph) -> String {
    let is_precise = |reg: &RegState| reg.kind == Kind::Scalar && precision.is_marked(reg.node);
    marked(program, state, number, Touched::ALL, is_precise)
}

fn marked(
    program: &Program,
    state: &State,
    number: usize,
    touched: Touched,
    is_precise: impl Fn(&RegState) -> bool,
) -> String {
    let mark = |reg: &RegState| if is_precise(reg) { "P" } else { "" };
    let mut text = String::new();
    let frame = &state.frames[number];
    if number > 0 {
        let _ = write!(text, " frame{number}:");
    }
    let held = frame.regs.iter().enumerate().filter(|(_, reg)| reg.kind != Kind::Uninit);
    for (index, reg) in held.filter(|(index, _)| touched.has_register(*index)) {
        let _ = write!(text, " R{index}={}{}", mark(reg), register(Some(program), number, reg));
    }
    let written = frame.stack.iter().enumerate().filter(|(_, slot)| slot.bytes != [Byte::Uninit; 8]);
    for (index, slot) in written.filter(|(index, _)| touched.has_slot(*index)) {
        let _ =
            write!(text, " fp-{}={}", 8 * (index + 1), contents(program, number, slot, mark(&slot.spilled)));
    }
    let held = state.references.iter().map(|held| held.0.to_string()).collect::<Vec<_>>();
    if !held.is_empty() {
        let _ = write!(text, " refs={}", held.join(","));
    }
    if frame.callback.is_some() {
        text.push_str(" cb");
    }
    text
}

/// A slot: letters from its highest byte down, and the register that is spilled in its low bytes.
fn contents(program: &Program, frame: usize, slot: &Slot, mark: &str) -> String {
    let letter = |byte: &Byte| match byte {
        Byte::Uninit => '?',
        Byte::Spill => 'r',
        Byte::Misc => 'm',
        Byte::Zero => '0',
        Byte::Object => 'd',
    };
    let letters = slot.bytes.iter().rev().map(letter);
    match slot.spill_size() {
        0 => letters.collect(),
        spilled => {
            let above: String = letters.take(8 - spilled as usize).collect();
            above + mark + &register(Some(program), frame, &slot.spilled)
        }
    }
}

/// A register, for messages: maps by their index.
pub(crate) fn shown(reg: &RegState) -> String {
    register(None, 0, reg)
}

/// A register of frame number `frame`.
fn register(program: Option<&Program>, frame: usize, reg: &RegState) -> String {
    match reg.kind {
        Kind::Uninit => "?".into(),
        Kind::Scalar => match reg.value.as_const() {
            Some(value) => signed(value as i64),
            None => format!("scalar({})", parts(reg, ranges(&reg.value)).join(",")),
        },
        Kind::Stack { frame: of } => {
            let other = if usize::from(of) == frame { String::new() } else { format!("[{of}]") };
            match reg.value.as_const() {
                Some(value) => format!("fp{other}{}", signed((value as i64).wrapping_add(reg.off.into()))),
                None => {
                    let mut known = offset(reg);
                    known.extend(ranges(&reg.value));
                    format!("fp{other}({})", parts(reg, known).join(","))
                }
            }
        }
        kind => {
            let mut known = Vec::new();
            if let Kind::MapPtr { map, .. } | Kind::MapValue { map, .. } | Kind::MapKey { map } = kind {
                known.extend(map_parts(program, map));
            }
            known.extend(offset(reg));
            if kind.is_packet() {
                known.push(match reg.end {
                    PacketEnd::Unknown => format!("r={}", reg.range),
                    // -1 and -2, of 64 bits.
                    PacketEnd::At => "r=0xffffffffffffffff".into(),
                    PacketEnd::Beyond => "r=0xfffffffffffffffe".into(),
                });
            }
            if let Kind::Mem { size, .. } = kind {
                known.push(format!("sz={}", unsigned(size.into())));
            }
            match reg.value.as_const() {
                Some(0) => {}
                Some(value) => known.push(format!("imm={}", signed(value as i64))),
                None => known.extend(ranges(&reg.value)),
            }
            format!("{}{}({})", kind.name(), type_name(program, kind), parts(reg, known).join(","))
        }
    }
}

/// The name of the structure that a kernel object is.
fn type_name(program: Option<&Program>, kind: Kind) -> &str {
    let Kind::Btf { type_id, .. } = kind else { return "" };
    program.and_then(|program| program.types.as_ref()).map_or("", |types| types.0.name(type_id))
}

fn map_parts(program: Option<&Program>, map: MapRef) -> Vec<String> {
    let info = program.and_then(|program| program.maps.get(map.index as usize));
    let info = if map.inner { info.and_then(|info| info.inner.as_deref()) } else { info };
    let Some(info) = info else { return vec![format!("map={}", map.index)] };
    let name = (!info.name.is_empty()).then(|| format!("map={}", kernel_name(&info.name)));
    let sizes = format!("ks={},vs={}", info.shape.key_size, info.shape.value_size);
    name.into_iter().chain([sizes]).collect()
}

/// As much of a name as the kernel keeps (`BPF_OBJ_NAME_LEN`).
fn kernel_name(name: &str) -> &str {
    const LEN: usize = 15;
    name.char_indices().nth(LEN).map_or(name, |(end, _)| &name[..end])
}

fn offset(reg: &RegState) -> Vec<String> {
    if reg.off == 0 { Vec::new() } else { vec![format!("off={}", signed(reg.off.into()))] }
}

fn parts(reg: &RegState, rest: Vec<String>) -> Vec<String> {
    let ids = [("id", reg.id), ("ref_obj_id", reg.reference)];
    let ids = ids.into_iter().filter(|(_, id)| *id != 0).map(|(name, id)| format!("{name}={id}"));
    ids.chain(rest).collect()
}

/// An end of a range.
struct End {
    name: &'static str,
    /// Sign-extended, so that ends of both widths compare.
    value: i64,
    is_signed: bool,
    trivial: bool,
}

/// The ranges that say more than the type does. Lower ends that are equal are written once, upper ends too:
/// `smin=smin32=0,smax=umax=smax32=umax32=255`; but a negative number is not another one's bit pattern.
fn ranges(set: &Scalar) -> Vec<String> {
    let signed_end = |name, value: i64, trivial| End { name, value, is_signed: true, trivial };
    let unsigned_end =
        |name, value: u64, trivial| End { name, value: value as i64, is_signed: false, trivial };
    let lower = [
        signed_end("smin", set.smin, set.smin == i64::MIN),
        unsigned_end("umin", set.umin, set.umin == 0),
        signed_end("smin32", set.s32_min.into(), set.s32_min == i32::MIN),
        unsigned_end("umin32", set.u32_min.into(), set.u32_min == 0),
    ];
    let upper = [
        signed_end("smax", set.smax, set.smax == i64::MAX),
        unsigned_end("umax", set.umax, set.umax == u64::MAX),
        signed_end("smax32", set.s32_max.into(), set.s32_max == i32::MAX),
        unsigned_end("umax32", set.u32_max.into(), set.u32_max == u32::MAX),
    ];
    let mut groups = Vec::new();
    for place in 0..4 {
        for ends in [&lower, &upper] {
            groups.extend(group(ends, place));
        }
    }
    if !set.tnum.is_unknown() {
        groups.push(format!("var_off=({:#x}; {:#x})", set.tnum.value, set.tnum.mask));
    }
    groups
}

/// The end at `place` and all later ones that are equal to it; none when it was written with an earlier one.
fn group(ends: &[End; 4], place: usize) -> Option<String> {
    let same =
        |a: &End, b: &End| a.value == b.value && (a.is_signed && a.value < 0) == (b.is_signed && b.value < 0);
    let first = &ends[place];
    let written = |end: &End| !end.trivial && same(end, first);
    if first.trivial || ends[..place].iter().any(written) {
        return None;
    }
    let names: Vec<&str> = ends[place..].iter().filter(|end| written(end)).map(|end| end.name).collect();
    let value = if first.is_signed { signed(first.value) } else { unsigned(first.value as u64) };
    Some(format!("{}={value}", names.join("=")))
}

/// Small numbers in decimal.
fn signed(value: i64) -> String {
    if i16::try_from(value).is_ok() { value.to_string() } else { format!("{value:#x}") }
}

fn unsigned(value: u64) -> String {
    if u16::try_from(value).is_ok() { value.to_string() } else { format!("{value:#x}") }
}
