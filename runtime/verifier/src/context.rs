//! What each program type may read and write of its context, and what a field is.
//!
//! Sources: the `is_valid_access` functions of the kernel's program types (`kernel/trace/bpf_trace.c`,
//! `net/core/filter.c`) and the structures of `include/uapi/linux/bpf.h`.

use crate::program::ProgType;
use beeline_abi::code::ContextUse;
use beeline_abi::regs::PT_REGS_SIZE;

/// What a load from the context gives.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Field {
    /// A number of the loaded size.
    Number,
    /// The start of the packet.
    Packet,
    /// The start of the packet's meta data.
    PacketMeta,
    /// The end of the packet.
    PacketEnd,
}

/// Greatest offset in a tracepoint's record (`PERF_MAX_TRACE_SIZE`).
const TRACE_RECORD_SIZE: u32 = 8192;

/// Whether the verifier knows the context of programs of this type.
pub fn is_known(prog_type: ProgType) -> bool {
    matches!(
        prog_type,
        ProgType::SOCKET_FILTER
            | ProgType::KPROBE
            | ProgType::SCHED_CLS
            | ProgType::SCHED_ACT
            | ProgType::TRACEPOINT
            | ProgType::XDP
            | ProgType::PERF_EVENT
            | ProgType::RAW_TRACEPOINT
            | ProgType::RAW_TRACEPOINT_WRITABLE
            | ProgType::SYSCALL
    )
}

/// What the `size` bytes at `off` are to a program of this type; `None` when it may not access them so.
pub fn field(prog_type: ProgType, off: i32, size: u32, write: bool) -> Option<Field> {
    let off = u32::try_from(off).ok()?;
    if !off.is_multiple_of(size) {
        return None;
    }
    let end = off.checked_add(size)?;
    let number = |allowed: bool| allowed.then_some(Field::Number);
    match prog_type {
        ProgType::KPROBE => number(!write && end <= PT_REGS_SIZE),
        ProgType::TRACEPOINT => number(!write && (8..TRACE_RECORD_SIZE).contains(&off)),
        // Twelve arguments of eight bytes.
        ProgType::RAW_TRACEPOINT | ProgType::RAW_TRACEPOINT_WRITABLE => number(!write && end <= 12 * 8),
        // `pt_regs`, the sample's period, its address.
        ProgType::PERF_EVENT => {
            number(!write && end <= PT_REGS_SIZE + 16 && (size == 8 || off >= PT_REGS_SIZE))
        }
        ProgType::SYSCALL => number(end < u32::from(u16::MAX)),
        ProgType::XDP => xdp(off, size, write),
        ProgType::SOCKET_FILTER => sk_buff(off, size, write, true),
        ProgType::SCHED_CLS | ProgType::SCHED_ACT => sk_buff(off, size, write, false),
        _ => None,
    }
}

/// `struct xdp_md`: words data, data_end, data_meta, ingress_ifindex, rx_queue_index; egress_ifindex needs a device map.
fn xdp(off: u32, size: u32, write: bool) -> Option<Field> {
    if write || size != 4 {
        return None;
    }
    match off {
        0 => Some(Field::Packet),
        4 => Some(Field::PacketEnd),
        8 => Some(Field::PacketMeta),
        12 | 16 => Some(Field::Number),
        _ => None,
    }
}

/// `struct __sk_buff`.
fn sk_buff(off: u32, size: u32, write: bool, socket: bool) -> Option<Field> {
    const CB: std::ops::Range<u32> = 48..68;
    const MARK: u32 = 8;
    const QUEUE_MAPPING: u32 = 12;
    const PRIORITY: u32 = 32;
    const TC_INDEX: u32 = 44;
    const TC_CLASSID: u32 = 72;
    let (word, end) = (off & !3, off + size);
    if CB.contains(&off) {
        return (end <= CB.end).then_some(Field::Number);
    }
    if write {
        let writable = !socket
            && (size == 4 && matches!(off, MARK | QUEUE_MAPPING | PRIORITY | TC_INDEX | TC_CLASSID)
                || size == 8 && off == 152);
        return writable.then_some(Field::Number);
    }
    match word {
        76 | 80 | 140 if socket || size != 4 => None,
        76 => Some(Field::Packet),
        80 => Some(Field::PacketEnd),
        140 => Some(Field::PacketMeta),
        // The connection's addresses are for other program types, tc_classid and wire_len for the scheduler's.
        88..=139 | 144..=151 | 168..=175 | 180..=183 => None,
        152 | 156 => (!socket && size == 8 && off == 152).then_some(Field::Number),
        72 | 160 if socket => None,
        184 | 188 => (!socket && size == 8).then_some(Field::Number),
        _ => (size <= 4 && end <= 180).then_some(Field::Number),
    }
}

/// True for programs that may load from packets with `ld_abs` and `ld_ind`.
pub(crate) fn has_packet_loads(prog_type: ProgType) -> bool {
    matches!(prog_type, ProgType::SOCKET_FILTER | ProgType::SCHED_CLS | ProgType::SCHED_ACT)
}

/// True for programs that may write into packets.
pub(crate) fn may_write_packet(prog_type: ProgType) -> bool {
    matches!(prog_type, ProgType::SCHED_CLS | ProgType::SCHED_ACT | ProgType::XDP)
}

/// True for programs whose context is made for the run, of the words that they read.
pub(crate) fn is_made_for_reads(prog_type: ProgType) -> bool {
    matches!(prog_type, ProgType::KPROBE | ProgType::TRACEPOINT | ProgType::RAW_TRACEPOINT)
}

/// The words of the context that an access touches; all of them when it goes beyond those that can be named.
pub(crate) fn words(off: u32, size: u32) -> ContextUse {
    match off.checked_add(size) {
        Some(end) if end <= PT_REGS_SIZE && size != 0 => ContextUse::NONE.with_access(off, size),
        _ => ContextUse::ALL,
    }
}

/// Which words of `pt_regs` a helper reads through its context argument.
pub(crate) fn read_by_helper(helper: i32) -> ContextUse {
    const PERF_EVENT_OUTPUT: i32 = 25;
    const GET_STACKID: i32 = 27;
    const GET_STACK: i32 = 67;
    const GET_FUNC_IP: i32 = 173;
    const GET_ATTACH_COOKIE: i32 = 174;
    // Offsets of bp, ip and sp in `struct pt_regs`.
    const STACK_WALK: ContextUse =
        ContextUse::NONE.with_access(32, 8).with_access(128, 8).with_access(152, 8);
    match helper {
        PERF_EVENT_OUTPUT | GET_FUNC_IP | GET_ATTACH_COOKIE => ContextUse::NONE,
        GET_STACKID | GET_STACK => STACK_WALK,
        _ => ContextUse::ALL,
    }
}
