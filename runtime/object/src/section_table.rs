//! The closed sets of program loading: program types, attach types, and every `SEC()` name that libbpf 1.7 knows.
//!
//! One row each; parsing, names and messages derive from these tables.

/// `enum bpf_prog_type` (`include/uapi/linux/bpf.h`).
#[allow(missing_docs, reason = "the names are the kernel's")]
pub mod prog_type {
    pub const UNSPEC: u32 = 0;
    pub const SOCKET_FILTER: u32 = 1;
    pub const KPROBE: u32 = 2;
    pub const SCHED_CLS: u32 = 3;
    pub const SCHED_ACT: u32 = 4;
    pub const TRACEPOINT: u32 = 5;
    pub const XDP: u32 = 6;
    pub const PERF_EVENT: u32 = 7;
    pub const CGROUP_SKB: u32 = 8;
    pub const CGROUP_SOCK: u32 = 9;
    pub const LWT_IN: u32 = 10;
    pub const LWT_OUT: u32 = 11;
    pub const LWT_XMIT: u32 = 12;
    pub const SOCK_OPS: u32 = 13;
    pub const SK_SKB: u32 = 14;
    pub const CGROUP_DEVICE: u32 = 15;
    pub const SK_MSG: u32 = 16;
    pub const RAW_TRACEPOINT: u32 = 17;
    pub const CGROUP_SOCK_ADDR: u32 = 18;
    pub const LWT_SEG6LOCAL: u32 = 19;
    pub const LIRC_MODE2: u32 = 20;
    pub const SK_REUSEPORT: u32 = 21;
    pub const FLOW_DISSECTOR: u32 = 22;
    pub const CGROUP_SYSCTL: u32 = 23;
    pub const RAW_TRACEPOINT_WRITABLE: u32 = 24;
    pub const CGROUP_SOCKOPT: u32 = 25;
    pub const TRACING: u32 = 26;
    pub const STRUCT_OPS: u32 = 27;
    pub const EXT: u32 = 28;
    pub const LSM: u32 = 29;
    pub const SK_LOOKUP: u32 = 30;
    pub const SYSCALL: u32 = 31;
    pub const NETFILTER: u32 = 32;
}

/// `enum bpf_attach_type` (`include/uapi/linux/bpf.h`).
#[allow(missing_docs, reason = "the names are the kernel's")]
pub mod attach_type {
    pub const CGROUP_INET_INGRESS: u32 = 0;
    pub const CGROUP_INET_EGRESS: u32 = 1;
    pub const CGROUP_INET_SOCK_CREATE: u32 = 2;
    pub const CGROUP_SOCK_OPS: u32 = 3;
    pub const SK_SKB_STREAM_PARSER: u32 = 4;
    pub const SK_SKB_STREAM_VERDICT: u32 = 5;
    pub const CGROUP_DEVICE: u32 = 6;
    pub const SK_MSG_VERDICT: u32 = 7;
    pub const CGROUP_INET4_BIND: u32 = 8;
    pub const CGROUP_INET6_BIND: u32 = 9;
    pub const CGROUP_INET4_CONNECT: u32 = 10;
    pub const CGROUP_INET6_CONNECT: u32 = 11;
    pub const CGROUP_INET4_POST_BIND: u32 = 12;
    pub const CGROUP_INET6_POST_BIND: u32 = 13;
    pub const CGROUP_UDP4_SENDMSG: u32 = 14;
    pub const CGROUP_UDP6_SENDMSG: u32 = 15;
    pub const LIRC_MODE2: u32 = 16;
    pub const FLOW_DISSECTOR: u32 = 17;
    pub const CGROUP_SYSCTL: u32 = 18;
    pub const CGROUP_UDP4_RECVMSG: u32 = 19;
    pub const CGROUP_UDP6_RECVMSG: u32 = 20;
    pub const CGROUP_GETSOCKOPT: u32 = 21;
    pub const CGROUP_SETSOCKOPT: u32 = 22;
    pub const TRACE_RAW_TP: u32 = 23;
    pub const TRACE_FENTRY: u32 = 24;
    pub const TRACE_FEXIT: u32 = 25;
    pub const MODIFY_RETURN: u32 = 26;
    pub const LSM_MAC: u32 = 27;
    pub const TRACE_ITER: u32 = 28;
    pub const CGROUP_INET4_GETPEERNAME: u32 = 29;
    pub const CGROUP_INET6_GETPEERNAME: u32 = 30;
    pub const CGROUP_INET4_GETSOCKNAME: u32 = 31;
    pub const CGROUP_INET6_GETSOCKNAME: u32 = 32;
    pub const XDP_DEVMAP: u32 = 33;
    pub const CGROUP_INET_SOCK_RELEASE: u32 = 34;
    pub const XDP_CPUMAP: u32 = 35;
    pub const SK_LOOKUP: u32 = 36;
    pub const XDP: u32 = 37;
    pub const SK_SKB_VERDICT: u32 = 38;
    pub const SK_REUSEPORT_SELECT: u32 = 39;
    pub const SK_REUSEPORT_SELECT_OR_MIGRATE: u32 = 40;
    pub const PERF_EVENT: u32 = 41;
    pub const TRACE_KPROBE_MULTI: u32 = 42;
    pub const LSM_CGROUP: u32 = 43;
    pub const STRUCT_OPS: u32 = 44;
    pub const NETFILTER: u32 = 45;
    pub const TCX_INGRESS: u32 = 46;
    pub const TCX_EGRESS: u32 = 47;
    pub const TRACE_UPROBE_MULTI: u32 = 48;
    pub const CGROUP_UNIX_CONNECT: u32 = 49;
    pub const CGROUP_UNIX_SENDMSG: u32 = 50;
    pub const CGROUP_UNIX_RECVMSG: u32 = 51;
    pub const CGROUP_UNIX_GETPEERNAME: u32 = 52;
    pub const CGROUP_UNIX_GETSOCKNAME: u32 = 53;
    pub const NETKIT_PRIMARY: u32 = 54;
    pub const NETKIT_PEER: u32 = 55;
    pub const TRACE_KPROBE_SESSION: u32 = 56;
    pub const TRACE_UPROBE_SESSION: u32 = 57;
    pub const TRACE_FSESSION: u32 = 58;
}

/// Lower-case name of each program type, by number, as in the kernel's enum.
pub const PROG_TYPE_NAMES: [&str; 33] = [
    "unspec",
    "socket_filter",
    "kprobe",
    "sched_cls",
    "sched_act",
    "tracepoint",
    "xdp",
    "perf_event",
    "cgroup_skb",
    "cgroup_sock",
    "lwt_in",
    "lwt_out",
    "lwt_xmit",
    "sock_ops",
    "sk_skb",
    "cgroup_device",
    "sk_msg",
    "raw_tracepoint",
    "cgroup_sock_addr",
    "lwt_seg6local",
    "lirc_mode2",
    "sk_reuseport",
    "flow_dissector",
    "cgroup_sysctl",
    "raw_tracepoint_writable",
    "cgroup_sockopt",
    "tracing",
    "struct_ops",
    "ext",
    "lsm",
    "sk_lookup",
    "syscall",
    "netfilter",
];

/// Lower-case name of a program type, as bpftool prints it; `unknown` past the last one.
pub fn prog_type_name(prog_type: u32) -> &'static str {
    PROG_TYPE_NAMES.get(prog_type as usize).copied().unwrap_or("unknown")
}

/// What a section name says about the programs in it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SectionDef {
    /// The name, or its part before the first `/` when `extras` is set.
    pub name: &'static str,
    /// A target may follow after a `/`.
    pub extras: bool,
    /// `BPF_PROG_TYPE_*`.
    pub prog_type: u32,
    /// `expected_attach_type`.
    pub attach_type: u32,
    /// [`SLEEPABLE`], [`XDP_FRAGS`], [`ATTACH_BTF`], [`USDT`].
    pub flags: u32,
}

/// Loaded with `BPF_F_SLEEPABLE`.
pub const SLEEPABLE: u32 = 1;
/// Loaded with `BPF_F_XDP_HAS_FRAGS`.
pub const XDP_FRAGS: u32 = 2;
/// Attaches to a kernel function by its BTF id.
pub const ATTACH_BTF: u32 = 4;
/// Attaches to USDT probes.
pub const USDT: u32 = 8;

const fn row(name: &'static str, extras: bool, prog_type: u32, attach_type: u32, flags: u32) -> SectionDef {
    SectionDef { name, extras, prog_type, attach_type, flags }
}

use attach_type as a;
use prog_type as p;

/// Every section name, in libbpf's order: the first that matches is meant.
#[rustfmt::skip]
pub const SECTION_DEFS: &[SectionDef] = &[
    row("socket", false, p::SOCKET_FILTER, 0, 0),
    row("sk_reuseport/migrate", false, p::SK_REUSEPORT, a::SK_REUSEPORT_SELECT_OR_MIGRATE, 0),
    row("sk_reuseport", false, p::SK_REUSEPORT, a::SK_REUSEPORT_SELECT, 0),
    row("kprobe", true, p::KPROBE, 0, 0),
    row("uprobe", true, p::KPROBE, 0, 0),
    row("uprobe.s", true, p::KPROBE, 0, SLEEPABLE),
    row("kretprobe", true, p::KPROBE, 0, 0),
    row("uretprobe", true, p::KPROBE, 0, 0),
    row("uretprobe.s", true, p::KPROBE, 0, SLEEPABLE),
    row("kprobe.multi", true, p::KPROBE, a::TRACE_KPROBE_MULTI, 0),
    row("kretprobe.multi", true, p::KPROBE, a::TRACE_KPROBE_MULTI, 0),
    row("kprobe.session", true, p::KPROBE, a::TRACE_KPROBE_SESSION, 0),
    row("uprobe.multi", true, p::KPROBE, a::TRACE_UPROBE_MULTI, 0),
    row("uretprobe.multi", true, p::KPROBE, a::TRACE_UPROBE_MULTI, 0),
    row("uprobe.session", true, p::KPROBE, a::TRACE_UPROBE_SESSION, 0),
    row("uprobe.multi.s", true, p::KPROBE, a::TRACE_UPROBE_MULTI, SLEEPABLE),
    row("uretprobe.multi.s", true, p::KPROBE, a::TRACE_UPROBE_MULTI, SLEEPABLE),
    row("uprobe.session.s", true, p::KPROBE, a::TRACE_UPROBE_SESSION, SLEEPABLE),
    row("ksyscall", true, p::KPROBE, 0, 0),
    row("kretsyscall", true, p::KPROBE, 0, 0),
    row("usdt", true, p::KPROBE, 0, USDT),
    row("usdt.s", true, p::KPROBE, 0, USDT | SLEEPABLE),
    row("tc/ingress", false, p::SCHED_CLS, a::TCX_INGRESS, 0),
    row("tc/egress", false, p::SCHED_CLS, a::TCX_EGRESS, 0),
    row("tcx/ingress", false, p::SCHED_CLS, a::TCX_INGRESS, 0),
    row("tcx/egress", false, p::SCHED_CLS, a::TCX_EGRESS, 0),
    row("tc", false, p::SCHED_CLS, 0, 0),
    row("classifier", false, p::SCHED_CLS, 0, 0),
    row("action", false, p::SCHED_ACT, 0, 0),
    row("netkit/primary", false, p::SCHED_CLS, a::NETKIT_PRIMARY, 0),
    row("netkit/peer", false, p::SCHED_CLS, a::NETKIT_PEER, 0),
    row("tracepoint", true, p::TRACEPOINT, 0, 0),
    row("tp", true, p::TRACEPOINT, 0, 0),
    row("raw_tracepoint", true, p::RAW_TRACEPOINT, 0, 0),
    row("raw_tp", true, p::RAW_TRACEPOINT, 0, 0),
    row("raw_tracepoint.w", true, p::RAW_TRACEPOINT_WRITABLE, 0, 0),
    row("raw_tp.w", true, p::RAW_TRACEPOINT_WRITABLE, 0, 0),
    row("tp_btf", true, p::TRACING, a::TRACE_RAW_TP, ATTACH_BTF),
    row("fentry", true, p::TRACING, a::TRACE_FENTRY, ATTACH_BTF),
    row("fmod_ret", true, p::TRACING, a::MODIFY_RETURN, ATTACH_BTF),
    row("fexit", true, p::TRACING, a::TRACE_FEXIT, ATTACH_BTF),
    row("fentry.s", true, p::TRACING, a::TRACE_FENTRY, ATTACH_BTF | SLEEPABLE),
    row("fmod_ret.s", true, p::TRACING, a::MODIFY_RETURN, ATTACH_BTF | SLEEPABLE),
    row("fexit.s", true, p::TRACING, a::TRACE_FEXIT, ATTACH_BTF | SLEEPABLE),
    row("fsession", true, p::TRACING, a::TRACE_FSESSION, ATTACH_BTF),
    row("fsession.s", true, p::TRACING, a::TRACE_FSESSION, ATTACH_BTF | SLEEPABLE),
    row("freplace", true, p::EXT, 0, ATTACH_BTF),
    row("lsm", true, p::LSM, a::LSM_MAC, ATTACH_BTF),
    row("lsm.s", true, p::LSM, a::LSM_MAC, ATTACH_BTF | SLEEPABLE),
    row("lsm_cgroup", true, p::LSM, a::LSM_CGROUP, ATTACH_BTF),
    row("iter", true, p::TRACING, a::TRACE_ITER, ATTACH_BTF),
    row("iter.s", true, p::TRACING, a::TRACE_ITER, ATTACH_BTF | SLEEPABLE),
    row("syscall", false, p::SYSCALL, 0, SLEEPABLE),
    row("xdp.frags/devmap", false, p::XDP, a::XDP_DEVMAP, XDP_FRAGS),
    row("xdp/devmap", false, p::XDP, a::XDP_DEVMAP, 0),
    row("xdp.frags/cpumap", false, p::XDP, a::XDP_CPUMAP, XDP_FRAGS),
    row("xdp/cpumap", false, p::XDP, a::XDP_CPUMAP, 0),
    row("xdp.frags", false, p::XDP, a::XDP, XDP_FRAGS),
    row("xdp", false, p::XDP, a::XDP, 0),
    row("perf_event", false, p::PERF_EVENT, 0, 0),
    row("lwt_in", false, p::LWT_IN, 0, 0),
    row("lwt_out", false, p::LWT_OUT, 0, 0),
    row("lwt_xmit", false, p::LWT_XMIT, 0, 0),
    row("lwt_seg6local", false, p::LWT_SEG6LOCAL, 0, 0),
    row("sockops", false, p::SOCK_OPS, a::CGROUP_SOCK_OPS, 0),
    row("sk_skb/stream_parser", false, p::SK_SKB, a::SK_SKB_STREAM_PARSER, 0),
    row("sk_skb/stream_verdict", false, p::SK_SKB, a::SK_SKB_STREAM_VERDICT, 0),
    row("sk_skb/verdict", false, p::SK_SKB, a::SK_SKB_VERDICT, 0),
    row("sk_skb", false, p::SK_SKB, 0, 0),
    row("sk_msg", false, p::SK_MSG, a::SK_MSG_VERDICT, 0),
    row("lirc_mode2", false, p::LIRC_MODE2, a::LIRC_MODE2, 0),
    row("flow_dissector", false, p::FLOW_DISSECTOR, a::FLOW_DISSECTOR, 0),
    row("cgroup_skb/ingress", false, p::CGROUP_SKB, a::CGROUP_INET_INGRESS, 0),
    row("cgroup_skb/egress", false, p::CGROUP_SKB, a::CGROUP_INET_EGRESS, 0),
    row("cgroup/skb", false, p::CGROUP_SKB, 0, 0),
    row("cgroup/sock_create", false, p::CGROUP_SOCK, a::CGROUP_INET_SOCK_CREATE, 0),
    row("cgroup/sock_release", false, p::CGROUP_SOCK, a::CGROUP_INET_SOCK_RELEASE, 0),
    row("cgroup/sock", false, p::CGROUP_SOCK, a::CGROUP_INET_SOCK_CREATE, 0),
    row("cgroup/post_bind4", false, p::CGROUP_SOCK, a::CGROUP_INET4_POST_BIND, 0),
    row("cgroup/post_bind6", false, p::CGROUP_SOCK, a::CGROUP_INET6_POST_BIND, 0),
    row("cgroup/bind4", false, p::CGROUP_SOCK_ADDR, a::CGROUP_INET4_BIND, 0),
    row("cgroup/bind6", false, p::CGROUP_SOCK_ADDR, a::CGROUP_INET6_BIND, 0),
    row("cgroup/connect4", false, p::CGROUP_SOCK_ADDR, a::CGROUP_INET4_CONNECT, 0),
    row("cgroup/connect6", false, p::CGROUP_SOCK_ADDR, a::CGROUP_INET6_CONNECT, 0),
    row("cgroup/connect_unix", false, p::CGROUP_SOCK_ADDR, a::CGROUP_UNIX_CONNECT, 0),
    row("cgroup/sendmsg4", false, p::CGROUP_SOCK_ADDR, a::CGROUP_UDP4_SENDMSG, 0),
    row("cgroup/sendmsg6", false, p::CGROUP_SOCK_ADDR, a::CGROUP_UDP6_SENDMSG, 0),
    row("cgroup/sendmsg_unix", false, p::CGROUP_SOCK_ADDR, a::CGROUP_UNIX_SENDMSG, 0),
    row("cgroup/recvmsg4", false, p::CGROUP_SOCK_ADDR, a::CGROUP_UDP4_RECVMSG, 0),
    row("cgroup/recvmsg6", false, p::CGROUP_SOCK_ADDR, a::CGROUP_UDP6_RECVMSG, 0),
    row("cgroup/recvmsg_unix", false, p::CGROUP_SOCK_ADDR, a::CGROUP_UNIX_RECVMSG, 0),
    row("cgroup/getpeername4", false, p::CGROUP_SOCK_ADDR, a::CGROUP_INET4_GETPEERNAME, 0),
    row("cgroup/getpeername6", false, p::CGROUP_SOCK_ADDR, a::CGROUP_INET6_GETPEERNAME, 0),
    row("cgroup/getpeername_unix", false, p::CGROUP_SOCK_ADDR, a::CGROUP_UNIX_GETPEERNAME, 0),
    row("cgroup/getsockname4", false, p::CGROUP_SOCK_ADDR, a::CGROUP_INET4_GETSOCKNAME, 0),
    row("cgroup/getsockname6", false, p::CGROUP_SOCK_ADDR, a::CGROUP_INET6_GETSOCKNAME, 0),
    row("cgroup/getsockname_unix", false, p::CGROUP_SOCK_ADDR, a::CGROUP_UNIX_GETSOCKNAME, 0),
    row("cgroup/sysctl", false, p::CGROUP_SYSCTL, a::CGROUP_SYSCTL, 0),
    row("cgroup/getsockopt", false, p::CGROUP_SOCKOPT, a::CGROUP_GETSOCKOPT, 0),
    row("cgroup/setsockopt", false, p::CGROUP_SOCKOPT, a::CGROUP_SETSOCKOPT, 0),
    row("cgroup/dev", false, p::CGROUP_DEVICE, a::CGROUP_DEVICE, 0),
    row("struct_ops", true, p::STRUCT_OPS, 0, 0),
    row("struct_ops.s", true, p::STRUCT_OPS, 0, SLEEPABLE),
    row("sk_lookup", false, p::SK_LOOKUP, a::SK_LOOKUP, 0),
    row("netfilter", false, p::NETFILTER, a::NETFILTER, 0),
];
