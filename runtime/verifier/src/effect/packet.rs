//! What a comparison of packet pointers shows to be there.

use crate::state::{Kind, PacketEnd, RegState, State};
use beeline_isa::{JumpOp, Reg};

/// Greatest offset in a packet (`MAX_PACKET_OFF`).
const PACKET_OFFSET_MAX: u64 = 0xffff;

/// True for two pointers whose order tells how long the packet is: data before its end, meta data before the data.
fn bounds(start: &RegState, end: &RegState) -> bool {
    let is_start = end.kind == Kind::Packet && end.off == 0 && end.value.as_const() == Some(0);
    start.kind == Kind::Packet && end.kind == Kind::PacketEnd || start.kind == Kind::PacketMeta && is_start
}

/// After `a op b`: in the state of the outcome where `start <= end` or `start < end`, the bytes up to `start` are there.
/// False when the comparison is not one of packet pointers.
pub(crate) fn learn(op: JumpOp, a: &RegState, b: &RegState, taken: &mut State, other: &mut State) -> bool {
    let (start, op) = if bounds(a, b) {
        (a, op)
    } else if bounds(b, a) {
        (b, swapped(op))
    } else {
        return false;
    };
    match op {
        JumpOp::Gt => reaches(other, start, false),
        JumpOp::Ge => reaches(other, start, true),
        JumpOp::Lt => reaches(taken, start, true),
        JumpOp::Le => reaches(taken, start, false),
        _ => return false,
    }
    true
}

/// The comparison with its operands exchanged.
fn swapped(op: JumpOp) -> JumpOp {
    match op {
        JumpOp::Gt => JumpOp::Lt,
        JumpOp::Lt => JumpOp::Gt,
        JumpOp::Ge => JumpOp::Le,
        JumpOp::Le => JumpOp::Ge,
        op => op,
    }
}

/// The packet reaches to `start`, and with `beyond` one byte further.
fn reaches(state: &mut State, start: &RegState, beyond: bool) {
    if start.off < 0 || start.off == 0 && beyond {
        return;
    }
    if start.value.umax > PACKET_OFFSET_MAX || start.value.umax + start.off as u64 > PACKET_OFFSET_MAX {
        return;
    }
    let range = start.off as u16 + u16::from(beyond && start.off < 0xffff);
    for reg in state.each_reg().filter(|reg| reg.kind == start.kind && reg.id == start.id) {
        if reg.range < range {
            (reg.range, reg.end) = (range, PacketEnd::Unknown);
        }
    }
}

/// After `a op b` with registers `a` and `b`, of which one is the packet's end: on the other side the other one is known to
/// lie at the end, or behind it.
pub(crate) fn learn_end(op: JumpOp, a: Reg, b: Reg, taken: &mut State, other: &mut State) {
    let kind = |reg: Reg| taken.reg(reg).kind;
    let (pointer, op) = match (kind(a), kind(b)) {
        (Kind::Packet, Kind::PacketEnd) => (a, op),
        (Kind::PacketEnd, Kind::Packet) => (b, swapped(op)),
        _ => return,
    };
    let (state, end) = match op {
        JumpOp::Gt => (taken, PacketEnd::Beyond),
        JumpOp::Ge => (taken, PacketEnd::At),
        JumpOp::Lt => (other, PacketEnd::At),
        JumpOp::Le => (other, PacketEnd::Beyond),
        _ => return,
    };
    let known = *state.reg(pointer);
    state.set(pointer, RegState { end, ..known });
}

/// The packet has moved: pointers into it point nowhere.
pub(crate) fn forget(state: &mut State) {
    let into_packet = |reg: &&mut RegState| reg.kind.is_packet() || reg.kind == Kind::PacketEnd;
    for reg in state.each_reg().filter(into_packet) {
        *reg = RegState::unknown();
    }
}
