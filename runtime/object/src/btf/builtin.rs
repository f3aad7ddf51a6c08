//! A small set of kernel types for machines that have no kernel BTF: what programs in user space can be served.
//!
//! Layouts of contexts are the kernel's ABI (x86-64). `task_struct` and what it points to have no fixed layout: any
//! will do, as long as programs are relocated to the one that the agent fills in.

use std::sync::{Arc, LazyLock};

use super::builder::{Builder, MemberSpec};
use super::{Btf, INT_BOOL, INT_SIGNED, Kind};

static BUILT_IN: LazyLock<Arc<Btf>> = LazyLock::new(|| Arc::new(build()));

/// The built-in types.
pub fn btf() -> Arc<Btf> {
    BUILT_IN.clone()
}

/// Ids of the basic types.
struct Basic {
    char: u32,
    int: u32,
    u32: u32,
    long: u32,
    u64: u32,
    index: u32,
}

fn build() -> Btf {
    let mut b = Builder::new();
    let basic = basic_types(&mut b);
    task_types(&mut b, &basic);
    let registers: Vec<(&str, u32)> = [
        "r15", "r14", "r13", "r12", "bp", "bx", "r11", "r10", "r9", "r8", "ax", "cx", "dx", "si", "di",
        "orig_ax", "ip", "cs", "flags", "sp", "ss",
    ]
    .iter()
    .map(|&name| (name, basic.u64))
    .collect();
    let pt_regs = words(&mut b, "pt_regs", &registers);
    b.reference(Kind::Typedef, "bpf_user_pt_regs_t", pt_regs);
    trace_types(&mut b, &basic);
    b.finish()
}

fn basic_types(b: &mut Builder) -> Basic {
    let basic = Basic {
        char: b.int("char", 1, INT_SIGNED),
        int: b.int("int", 4, INT_SIGNED),
        u32: b.int("unsigned int", 4, 0),
        long: b.int("long int", 8, INT_SIGNED),
        u64: b.int("long unsigned int", 8, 0),
        index: 0,
    };
    b.int("_Bool", 1, INT_BOOL);
    let u8 = b.int("unsigned char", 1, 0);
    let u16 = b.int("short unsigned int", 2, 0);
    let s16 = b.int("short int", 2, INT_SIGNED);
    let s64 = b.int("long long int", 8, INT_SIGNED);
    let u64 = b.int("long long unsigned int", 8, 0);
    for (name, target) in [
        ("__u8", u8),
        ("__u16", u16),
        ("__s16", s16),
        ("__u32", basic.u32),
        ("__s32", basic.int),
        ("__s64", s64),
        ("__u64", u64),
    ] {
        let user = b.reference(Kind::Typedef, name, target);
        b.reference(Kind::Typedef, &name[2..], user);
    }
    b.reference(Kind::Typedef, "pid_t", basic.int);
    let index = b.int("__ARRAY_SIZE_TYPE__", 4, 0);
    Basic { index, ..basic }
}

/// A struct of eight-byte words.
fn words(b: &mut Builder, name: &str, members: &[(&str, u32)]) -> u32 {
    let members: Vec<MemberSpec<'_>> =
        members.iter().enumerate().map(|(word, &(name, ty))| (name, ty, 64 * word as u32, 0)).collect();
    b.composite(Kind::Struct, name, 8 * members.len() as u32, &members)
}

fn task_types(b: &mut Builder, basic: &Basic) {
    let ns_common = b.composite(Kind::Struct, "ns_common", 8, &[("inum", basic.u32, 0, 0)]);
    let mnt = b.composite(Kind::Struct, "mnt_namespace", 8, &[("ns", ns_common, 0, 0)]);
    let pid_namespace = b.composite(Kind::Struct, "pid_namespace", 8, &[("ns", ns_common, 0, 0)]);
    let (mnt, pid_namespace) = (b.pointer(mnt), b.pointer(pid_namespace));
    let nsproxy = words(b, "nsproxy", &[("mnt_ns", mnt), ("pid_ns_for_children", pid_namespace)]);
    let nsproxy = b.pointer(nsproxy);
    let comm = b.array(basic.char, basic.index, 16);
    // A pointer to the struct that comes right after it.
    let task = b.pointer(0);
    b.set_pointee(task, task + 1);
    let byte = |offset: u32| offset * 8;
    b.composite(
        Kind::Struct,
        "task_struct",
        88,
        &[
            ("exit_code", basic.int, byte(0), 0),
            ("pid", basic.int, byte(4), 0),
            ("tgid", basic.int, byte(8), 0),
            ("real_parent", task, byte(16), 0),
            ("parent", task, byte(24), 0),
            ("group_leader", task, byte(32), 0),
            ("start_time", basic.u64, byte(40), 0),
            ("start_boottime", basic.u64, byte(48), 0),
            ("comm", comm, byte(56), 0),
            ("nsproxy", nsproxy, byte(72), 0),
        ],
    );
}

/// Contexts of the system call tracepoints (`include/trace/events/syscalls.h`, `kernel/trace/trace.h`).
fn trace_types(b: &mut Builder, basic: &Basic) {
    let u8 = basic.char;
    let half = b.int("unsigned short", 2, 0);
    let entry = b.composite(
        Kind::Struct,
        "trace_entry",
        8,
        &[
            ("type", half, 0, 0),
            ("flags", u8, 16, 0),
            ("preempt_count", u8, 24, 0),
            ("pid", basic.int, 32, 0),
        ],
    );
    let args = b.array(basic.u64, basic.index, 6);
    let open_args = b.array(basic.u64, basic.index, 0);
    let data = b.array(basic.char, basic.index, 0);
    let in_bytes = |members: &[(&'static str, u32, u32)]| {
        members.iter().map(|&(name, ty, offset)| (name, ty, offset * 8, 0)).collect::<Vec<_>>()
    };
    for (name, size, members) in [
        (
            "trace_event_raw_sys_enter",
            64,
            in_bytes(&[("ent", entry, 0), ("id", basic.long, 8), ("args", args, 16), ("__data", data, 64)]),
        ),
        (
            "trace_event_raw_sys_exit",
            24,
            in_bytes(&[
                ("ent", entry, 0),
                ("id", basic.long, 8),
                ("ret", basic.long, 16),
                ("__data", data, 24),
            ]),
        ),
        (
            "syscall_trace_enter",
            16,
            in_bytes(&[("ent", entry, 0), ("nr", basic.int, 8), ("args", open_args, 16)]),
        ),
        (
            "syscall_trace_exit",
            24,
            in_bytes(&[("ent", entry, 0), ("nr", basic.int, 8), ("ret", basic.long, 16)]),
        ),
    ] {
        b.composite(Kind::Struct, name, size, &members);
    }
    b.composite(Kind::Struct, "bpf_raw_tracepoint_args", 0, &[("args", open_args, 0, 0)]);
    // Programs test for it to choose between a ring buffer and a perf buffer.
    b.composite(Kind::Struct, "bpf_ringbuf", 8, &[("mask", basic.u64, 0, 0)]);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn survives_a_round_trip_and_has_the_abi_layouts() {
        let btf = Btf::parse(&btf().to_bytes()).expect("valid");
        let offset = |name, path| btf.field_of(name, path).map(|field| field.byte_offset());
        assert_eq!(offset("pt_regs", "di"), Some(112));
        assert_eq!(btf.find("pt_regs", Kind::Struct).map(|ty| ty.size()), Some(168));
        assert_eq!(offset("trace_event_raw_sys_enter", "args[2]"), Some(32));
        assert_eq!(offset("trace_event_raw_sys_exit", "ret"), Some(16));
        assert_eq!(offset("mnt_namespace", "ns.inum"), Some(0));
        let parent = btf.field_of("task_struct", "real_parent").expect("field");
        let pointee = btf.get(parent.type_id).expect("pointer").type_id();
        assert_eq!(btf.get(pointee).expect("struct").name(), "task_struct");
        let layout = btf.task_layout().expect("task_struct");
        assert_eq!((layout.size, layout.comm, layout.nsproxy_mnt_ns), (88, 56, 0));
        for ty in btf.types().filter(|ty| ty.kind() == Kind::Struct) {
            for member in ty.members() {
                let end = member.bit_offset / 8 + btf.size_of(member.type_id).expect("size");
                assert!(end <= ty.size() || ty.size() == 0, "{ty:?} {}", member.name);
            }
        }
    }
}
