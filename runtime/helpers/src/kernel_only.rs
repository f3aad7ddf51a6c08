//! Helpers that cannot be run here: what the verifier knows of them.
//!
//! They change packets of a network stack, look at its sockets, read counters of the hardware, or work on types of maps that do
//! not exist here. A program that calls one is
//! judged as by the kernel; it cannot be compiled, because there is nothing here to call. Prototypes are those of
//! `net/core/filter.c` and `kernel/trace/bpf_trace.c`; which program types may call what was asked of a 6.18 kernel.

use crate::proto::MemAccess::{Read, ReadWrite, Write};
use crate::proto::{ArgKind, HelperProto, ProgramSet, RetKind, args};
use ArgKind::{Anything, ConstMapPtr, Size, SizeOrZero};

/// The program's context.
const CTX: ArgKind = ArgKind::Ctx { nullable: false };
/// Memory that the helper reads, its size in the next argument.
const INPUT: ArgKind = ArgKind::Mem { access: Read, nullable: false };
/// The same, or null.
const INPUT_OR_NULL: ArgKind = ArgKind::Mem { access: Read, nullable: true };
/// Memory that the helper fills, its size in the next argument.
const OUTPUT: ArgKind = ArgKind::Mem { access: Write, nullable: false };
/// Memory that the helper reads and writes, its size in the next argument.
const BOTH: ArgKind = ArgKind::Mem { access: ReadWrite, nullable: false };

/// A task.
const TASK: ArgKind = ArgKind::Btf("task_struct");

/// Traffic control.
const SCHED: ProgramSet = ProgramSet::SCHED;
/// All programs on packets but socket filters.
const PACKET: ProgramSet = SCHED.union(ProgramSet::XDP);
/// Programs on socket buffers.
const SKB: ProgramSet = SCHED.union(ProgramSet::SOCKET_FILTER);

/// So many bytes that the helper reads.
const fn header(size: u32) -> ArgKind {
    ArgKind::FixedMem { access: Read, size, aligned: false }
}

/// `struct iphdr`, `struct ipv6hdr`, `struct tcphdr`.
const IPV4: ArgKind = header(20);
const IPV6: ArgKind = header(40);
const TCP: ArgKind = header(20);

/// A helper that returns a number.
const fn number<const N: usize>(
    id: u32,
    name: &'static str,
    arguments: [ArgKind; N],
    programs: ProgramSet,
) -> HelperProto {
    HelperProto::new(id, name, args(arguments), RetKind::Integer).only(programs)
}

/// A helper for every program type that returns nothing.
const fn void<const N: usize>(id: u32, name: &'static str, arguments: [ArgKind; N]) -> HelperProto {
    HelperProto::new(id, name, args(arguments), RetKind::Void)
}

/// Every such helper, in order of ids. An id occurs twice where program types have different functions by that id.
#[rustfmt::skip]
pub const KERNEL_ONLY: &[HelperProto] = &[
    number(9, "bpf_skb_store_bytes", [CTX, Anything, INPUT, Size, Anything], SCHED).changes_packet(),
    number(10, "bpf_l3_csum_replace", [CTX, Anything, Anything, Anything, Anything], SCHED).changes_packet(),
    number(11, "bpf_l4_csum_replace", [CTX, Anything, Anything, Anything, Anything], SCHED).changes_packet(),
    number(13, "bpf_clone_redirect", [CTX, Anything, Anything], SCHED).changes_packet(),
    number(17, "bpf_get_cgroup_classid", [CTX], SCHED),
    number(17, "bpf_get_cgroup_classid", [], ProgramSet::ALL.without(SCHED)),
    number(18, "bpf_skb_vlan_push", [CTX, Anything, Anything], SCHED).changes_packet(),
    number(19, "bpf_skb_vlan_pop", [CTX], SCHED).changes_packet(),
    number(20, "bpf_skb_get_tunnel_key", [CTX, OUTPUT, Size, Anything], SCHED),
    number(21, "bpf_skb_set_tunnel_key", [CTX, INPUT, Size, Anything], SCHED),
    number(22, "bpf_perf_event_read", [ConstMapPtr, Anything], ProgramSet::ALL).gpl(),
    number(23, "bpf_redirect", [Anything, Anything], PACKET),
    number(24, "bpf_get_route_realm", [CTX], SCHED),
    number(26, "bpf_skb_load_bytes", [CTX, Anything, OUTPUT, Size], SKB),
    number(28, "bpf_csum_diff", [INPUT_OR_NULL, SizeOrZero, INPUT_OR_NULL, SizeOrZero, Anything], PACKET).packets(),
    number(29, "bpf_skb_get_tunnel_opt", [CTX, OUTPUT, Size], SCHED),
    number(30, "bpf_skb_set_tunnel_opt", [CTX, INPUT, Size], SCHED),
    number(31, "bpf_skb_change_proto", [CTX, Anything, Anything], SCHED).changes_packet(),
    number(32, "bpf_skb_change_type", [CTX, Anything], SCHED),
    number(33, "bpf_skb_under_cgroup", [CTX, ConstMapPtr, Anything], SCHED),
    number(34, "bpf_get_hash_recalc", [CTX], SCHED),
    number(38, "bpf_skb_change_tail", [CTX, Anything, Anything], SCHED).changes_packet(),
    number(39, "bpf_skb_pull_data", [CTX, Anything], SCHED).changes_packet(),
    number(40, "bpf_csum_update", [CTX, Anything], SCHED),
    number(41, "bpf_set_hash_invalid", [CTX], SCHED),
    number(43, "bpf_skb_change_head", [CTX, Anything, Anything], SCHED).changes_packet(),
    number(44, "bpf_xdp_adjust_head", [CTX, Anything], ProgramSet::XDP).changes_packet(),
    number(46, "bpf_get_socket_cookie", [CTX], SKB),
    number(47, "bpf_get_socket_uid", [CTX], SKB),
    number(48, "bpf_set_hash", [CTX, Anything], SCHED),
    number(50, "bpf_skb_adjust_room", [CTX, Anything, Anything, Anything], SCHED).changes_packet(),
    number(51, "bpf_redirect_map", [ConstMapPtr, Anything, Anything], ProgramSet::XDP),
    number(54, "bpf_xdp_adjust_meta", [CTX, Anything], ProgramSet::XDP).changes_packet(),
    number(55, "bpf_perf_event_read_value", [ConstMapPtr, Anything, OUTPUT, Size], ProgramSet::ALL).gpl(),
    number(56, "bpf_perf_prog_read_value", [CTX, OUTPUT, Size], ProgramSet::PERF_EVENT).gpl(),
    number(65, "bpf_xdp_adjust_tail", [CTX, Anything], ProgramSet::XDP).changes_packet(),
    number(66, "bpf_skb_get_xfrm_state", [CTX, Anything, OUTPUT, Size, Anything], SCHED),
    number(68, "bpf_skb_load_bytes_relative", [CTX, Anything, OUTPUT, Size, Anything], SKB),
    number(69, "bpf_fib_lookup", [CTX, BOTH, Size, Anything], PACKET).gpl(),
    number(79, "bpf_skb_cgroup_id", [CTX], SCHED),
    number(83, "bpf_skb_ancestor_cgroup_id", [CTX, Anything], SCHED),
    number(87, "bpf_map_push_elem", [ConstMapPtr, ArgKind::MapValue(Read), Anything], ProgramSet::ALL).packets(),
    number(88, "bpf_map_pop_elem", [ConstMapPtr, ArgKind::MapValue(Write)], ProgramSet::ALL).packets(),
    number(89, "bpf_map_peek_elem", [ConstMapPtr, ArgKind::MapValue(Write)], ProgramSet::ALL).packets(),
    void(93, "bpf_spin_lock", [ArgKind::SpinLock { take: true }]),
    void(94, "bpf_spin_unlock", [ArgKind::SpinLock { take: false }]),
    number(97, "bpf_skb_ecn_set_ce", [CTX], SCHED),
    number(119, "bpf_read_branch_records", [CTX, ArgKind::Mem { access: Write, nullable: true }, SizeOrZero, Anything], ProgramSet::PERF_EVENT).gpl(),
    number(122, "bpf_get_netns_cookie", [ArgKind::Ctx { nullable: true }], SKB),
    number(123, "bpf_get_current_ancestor_cgroup_id", [Anything], ProgramSet::ALL),
    number(135, "bpf_csum_level", [CTX, Anything], SCHED),
    number(141, "bpf_get_task_stack", [TASK, OUTPUT, SizeOrZero, Anything], ProgramSet::ALL),
    number(149, "bpf_snprintf_btf", [OUTPUT, Size, INPUT, Size, Anything], ProgramSet::ALL),
    number(151, "bpf_skb_cgroup_classid", [CTX], SCHED),
    number(152, "bpf_redirect_neigh", [Anything, INPUT_OR_NULL, SizeOrZero, Anything], SCHED),
    number(155, "bpf_redirect_peer", [Anything, Anything], SCHED),
    number(163, "bpf_check_mtu", [CTX, Anything, ArgKind::FixedMem { access: ReadWrite, size: 4, aligned: true }, Anything, Anything], PACKET).gpl(),
    number(166, "bpf_sys_bpf", [Anything, INPUT, Size], ProgramSet::SYSCALL),
    number(167, "bpf_btf_find_by_name_kind", [INPUT, Size, Anything, Anything], ProgramSet::SYSCALL),
    number(168, "bpf_sys_close", [Anything], ProgramSet::SYSCALL),
    number(176, "bpf_get_branch_snapshot", [OUTPUT, SizeOrZero, Anything], ProgramSet::ALL).gpl(),
    number(179, "bpf_kallsyms_lookup_name", [INPUT, SizeOrZero, Anything, ArgKind::FixedMem { access: Write, size: 8, aligned: true }], ProgramSet::SYSCALL),
    number(188, "bpf_xdp_get_buff_len", [CTX], ProgramSet::XDP),
    number(189, "bpf_xdp_load_bytes", [CTX, Anything, OUTPUT, Size], ProgramSet::XDP),
    number(190, "bpf_xdp_store_bytes", [CTX, Anything, INPUT, Size], ProgramSet::XDP),
    number(191, "bpf_copy_from_user_task", [OUTPUT, SizeOrZero, Anything, TASK, Anything], ProgramSet::ALL).gpl().sleeps(),
    number(192, "bpf_skb_set_tstamp", [CTX, Anything, Anything], SCHED),
    number(204, "bpf_tcp_raw_gen_syncookie_ipv4", [IPV4, INPUT, SizeOrZero], PACKET).gpl().packets(),
    number(205, "bpf_tcp_raw_gen_syncookie_ipv6", [IPV6, INPUT, SizeOrZero], PACKET).gpl().packets(),
    number(206, "bpf_tcp_raw_check_syncookie_ipv4", [IPV4, TCP], PACKET).gpl().packets(),
    number(207, "bpf_tcp_raw_check_syncookie_ipv6", [IPV6, TCP], PACKET).gpl().packets(),
    number(209, "bpf_user_ringbuf_drain", [ConstMapPtr, ArgKind::Func, ArgKind::StackOrNull, Anything], ProgramSet::ALL),
];

/// The prototype of helper `id` for programs of type `prog_type`: of one that can be run or of one that cannot. `None` when
/// there is no such helper at all. Where a helper exists for other types only, it is one that those may call.
pub fn proto(id: u32, prog_type: u32) -> Option<&'static HelperProto> {
    if let Some(helper) = crate::by_id(id) {
        return Some(&helper.proto);
    }
    let first = KERNEL_ONLY.partition_point(|proto| proto.id < id);
    let mut same = KERNEL_ONLY.get(first..)?.iter().take_while(|proto| proto.id == id).peekable();
    let any = *same.peek()?;
    Some(same.find(|proto| proto.programs.contains(prog_type)).unwrap_or(any))
}

const _: () = {
    let mut i = 1;
    while i < KERNEL_ONLY.len() {
        assert!(KERNEL_ONLY[i - 1].id <= KERNEL_ONLY[i].id, "rows in order of ids");
        i += 1;
    }
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn found_by_id_and_program_type() {
        assert_eq!(proto(1, 1).unwrap().name, "bpf_map_lookup_elem");
        assert_eq!(proto(17, 3).unwrap().args[0], CTX);
        assert_eq!(proto(17, 2).unwrap().args[0], ArgKind::None);
        assert!(!proto(9, 2).unwrap().programs.contains(2));
        assert!(proto(0, 1).is_none() && proto(9999, 1).is_none());
    }

    #[test]
    fn what_can_be_run_is_not_here() {
        assert!(KERNEL_ONLY.iter().all(|proto| crate::by_id(proto.id).is_none()));
    }
}
