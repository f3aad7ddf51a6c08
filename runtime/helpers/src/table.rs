//! The table: id, name, prototype, implementation. Adding a helper is one row and one function.
//!
//! Ids, names, arguments and licence are those of `include/uapi/linux/bpf.h` and of the `bpf_func_proto`s in the kernel;
//! which program types may call a helper was asked of a 6.18 kernel.

use crate::proto::MemAccess::{Read, Write};
use crate::proto::{ArgKind, DynptrUse, HelperProto, IterUse, ProgramSet, RetKind, args};
use crate::{
    control, dynptr, event, format, identity, iter, map, number, probe, read, session, signal, stack, system,
    task, time, trace,
};
use ArgKind::{
    Anything, ConstMapPtr, ConstStr, Func, MapKey, MapValue, Scalar, Size, SizeOrZero, StackOrNull,
};
use beeline_abi::run::RunContext;

/// A helper's implementation: r1 to r5, the run; r0.
///
/// Safety: the arguments are what the verifier proved by the prototype, the run is the caller's own.
pub type HelperFn = unsafe extern "sysv64" fn(u64, u64, u64, u64, u64, *mut RunContext) -> u64;

/// One helper.
#[derive(Clone, Copy, Debug)]
pub struct Helper {
    /// What the verifier knows of it.
    pub proto: HelperProto,
    /// What runs.
    pub call: HelperFn,
}

/// Ids from here on are kernel functions (kfuncs), which programs call by BTF id: they are numbered here, in the order of the
/// table. No helper has such an id.
pub const KFUNC_BASE: u32 = 256;

/// From here on: in what is executed, calls of functions of the target, by their index in the program's list.
pub const HOST_FUNCTION_BASE: u32 = 1 << 16;

/// Kernel functions that only programs of sessions may call.
pub const SESSION_FUNCTIONS: core::ops::Range<u32> = 264..266;

/// Length of a table indexed by id.
pub const HELPERS_LEN: usize = 266;

/// The program's context.
const CTX: ArgKind = ArgKind::Ctx { nullable: false };
/// Memory that the helper reads, its size in the next argument.
const INPUT: ArgKind = ArgKind::Mem { access: Read, nullable: false };
/// The same, or null.
const INPUT_OR_NULL: ArgKind = ArgKind::Mem { access: Read, nullable: true };
/// Memory that the helper fills, its size in the next argument.
const OUTPUT: ArgKind = ArgKind::Mem { access: Write, nullable: false };
/// The same, or null.
const OUTPUT_OR_NULL: ArgKind = ArgKind::Mem { access: Write, nullable: true };
/// A word that the helper writes.
const OUTPUT_WORD: ArgKind = ArgKind::FixedMem { access: Write, size: 8, aligned: true };

/// A dynptr that the helper looks at.
const DYNPTR: ArgKind = ArgKind::Dynptr(DynptrUse::Read);

/// A ring-buffer record that the helper takes.
const RECORD: ArgKind = ArgKind::RingbufMem { release: true };

/// Tracing programs, and those that `BPF_PROG_TEST_RUN` alone runs.
const TRACING: ProgramSet = ProgramSet::TRACING.union(ProgramSet::SYSCALL);
/// Programs that cannot run in an NMI.
const NOT_TRACING: ProgramSet = ProgramSet::ALL.without(TRACING);

/// A row for every program type.
const fn row<const N: usize>(
    id: u32,
    name: &'static str,
    arguments: [ArgKind; N],
    ret: RetKind,
    call: HelperFn,
) -> Helper {
    Helper { proto: HelperProto::new(id, name, args(arguments), ret), call }
}

/// The most frequent row: it returns a number.
const fn number<const N: usize>(
    id: u32,
    name: &'static str,
    arguments: [ArgKind; N],
    call: HelperFn,
) -> Helper {
    row(id, name, arguments, RetKind::Integer, call)
}

impl Helper {
    const fn gpl(self) -> Helper {
        Helper { proto: self.proto.gpl(), ..self }
    }

    const fn only(self, programs: ProgramSet) -> Helper {
        Helper { proto: self.proto.only(programs), ..self }
    }

    const fn sleeps(self) -> Helper {
        Helper { proto: self.proto.sleeps(), ..self }
    }

    const fn packets(self) -> Helper {
        Helper { proto: self.proto.packets(), ..self }
    }
}

/// Every helper, in order of ids.
#[rustfmt::skip]
pub const HELPERS: &[Helper] = &[
    row(1, "bpf_map_lookup_elem", [ConstMapPtr, MapKey], RetKind::MapValueOrNull, map::map_lookup_elem).packets(),
    number(2, "bpf_map_update_elem", [ConstMapPtr, MapKey, MapValue(Read), Anything], map::map_update_elem).packets(),
    number(3, "bpf_map_delete_elem", [ConstMapPtr, MapKey], map::map_delete_elem).packets(),
    number(4, "bpf_probe_read", [OUTPUT, SizeOrZero, Anything], read::probe_read).gpl().only(TRACING),
    number(5, "bpf_ktime_get_ns", [], time::ktime_get_ns),
    number(6, "bpf_trace_printk", [INPUT, Size], trace::trace_printk).gpl(),
    number(7, "bpf_get_prandom_u32", [], system::get_prandom_u32),
    number(8, "bpf_get_smp_processor_id", [], system::get_smp_processor_id),
    row(12, "bpf_tail_call", [CTX, ConstMapPtr, Anything], RetKind::Void, control::tail_call),
    number(14, "bpf_get_current_pid_tgid", [], identity::get_current_pid_tgid),
    number(15, "bpf_get_current_uid_gid", [], identity::get_current_uid_gid),
    number(16, "bpf_get_current_comm", [OUTPUT, Size], identity::get_current_comm),
    number(25, "bpf_perf_event_output", [CTX, ConstMapPtr, Anything, INPUT, SizeOrZero], event::perf_event_output).gpl(),
    number(27, "bpf_get_stackid", [CTX, ConstMapPtr, Anything], stack::get_stackid).gpl().only(TRACING),
    number(35, "bpf_get_current_task", [], task::get_current_task).gpl(),
    number(36, "bpf_probe_write_user", [Anything, INPUT, Size], read::probe_write_user).gpl().only(TRACING),
    number(37, "bpf_current_task_under_cgroup", [ConstMapPtr, Anything], system::current_task_under_cgroup),
    number(42, "bpf_get_numa_node_id", [], system::get_numa_node_id),
    number(45, "bpf_probe_read_str", [OUTPUT, SizeOrZero, Anything], read::probe_read_str).gpl().only(TRACING),
    number(58, "bpf_override_return", [CTX, Anything], probe::override_return).gpl().only(ProgramSet::KPROBE),
    number(67, "bpf_get_stack", [CTX, OUTPUT, SizeOrZero, Anything], stack::get_stack).gpl().only(TRACING),
    number(80, "bpf_get_current_cgroup_id", [], system::get_current_cgroup_id),
    number(105, "bpf_strtol", [INPUT, Size, Anything, OUTPUT_WORD], number::strtol),
    number(106, "bpf_strtoul", [INPUT, Size, Anything, OUTPUT_WORD], number::strtoul),
    number(109, "bpf_send_signal", [Anything], signal::send_signal),
    number(112, "bpf_probe_read_user", [OUTPUT, SizeOrZero, Anything], read::probe_read).gpl(),
    number(113, "bpf_probe_read_kernel", [OUTPUT, SizeOrZero, Anything], read::probe_read).gpl(),
    number(114, "bpf_probe_read_user_str", [OUTPUT, SizeOrZero, Anything], read::probe_read_str).gpl(),
    number(115, "bpf_probe_read_kernel_str", [OUTPUT, SizeOrZero, Anything], read::probe_read_str).gpl(),
    number(117, "bpf_send_signal_thread", [Anything], signal::send_signal_thread),
    number(118, "bpf_jiffies64", [], time::jiffies64),
    number(120, "bpf_get_ns_current_pid_tgid", [Anything, Anything, OUTPUT, Size], identity::get_ns_current_pid_tgid),
    number(125, "bpf_ktime_get_boot_ns", [], time::ktime_get_boot_ns),
    number(130, "bpf_ringbuf_output", [ConstMapPtr, INPUT, SizeOrZero, Anything], event::ringbuf_output),
    row(131, "bpf_ringbuf_reserve", [ConstMapPtr, ArgKind::AllocSize, Anything], RetKind::RingbufMemOrNull, event::ringbuf_reserve),
    row(132, "bpf_ringbuf_submit", [RECORD, Anything], RetKind::Void, event::ringbuf_submit),
    row(133, "bpf_ringbuf_discard", [RECORD, Anything], RetKind::Void, event::ringbuf_discard),
    number(134, "bpf_ringbuf_query", [ConstMapPtr, Anything], event::ringbuf_query),
    number(148, "bpf_copy_from_user", [OUTPUT, SizeOrZero, Anything], read::copy_from_user).sleeps(),
    row(158, "bpf_get_current_task_btf", [], RetKind::Btf("task_struct"), task::get_current_task).gpl(),
    number(160, "bpf_ktime_get_coarse_ns", [], time::ktime_get_coarse_ns).only(NOT_TRACING),
    number(164, "bpf_for_each_map_elem", [ConstMapPtr, Func, StackOrNull, Anything], control::for_each_map_elem),
    number(165, "bpf_snprintf", [OUTPUT_OR_NULL, SizeOrZero, ConstStr, INPUT_OR_NULL, SizeOrZero], format::snprintf).gpl(),
    number(173, "bpf_get_func_ip", [CTX], probe::get_func_ip).gpl().only(TRACING),
    number(174, "bpf_get_attach_cookie", [CTX], probe::get_attach_cookie).only(ProgramSet::TRACING),
    row(175, "bpf_task_pt_regs", [ArgKind::Btf("task_struct")], RetKind::Btf("pt_regs"), task::task_pt_regs).gpl(),
    number(177, "bpf_trace_vprintk", [INPUT, Size, INPUT_OR_NULL, SizeOrZero], trace::trace_vprintk).gpl(),
    number(181, "bpf_loop", [Anything, Func, StackOrNull, Anything], control::bpf_loop),
    number(182, "bpf_strncmp", [INPUT, Size, ConstStr], number::strncmp),
    number(183, "bpf_get_func_arg", [CTX, Anything, OUTPUT_WORD], probe::get_func_arg).only(ProgramSet::FENTRY),
    number(184, "bpf_get_func_ret", [CTX, OUTPUT_WORD], probe::get_func_ret).only(ProgramSet::FENTRY),
    number(185, "bpf_get_func_arg_cnt", [CTX], probe::get_func_arg_cnt).only(ProgramSet::FENTRY),
    row(195, "bpf_map_lookup_percpu_elem", [ConstMapPtr, MapKey, Anything], RetKind::MapValueOrNull, map::map_lookup_percpu_elem).packets(),
    number(197, "bpf_dynptr_from_mem", [OUTPUT, SizeOrZero, Anything, ArgKind::Dynptr(DynptrUse::MakeLocal)], dynptr::dynptr_from_mem),
    number(198, "bpf_ringbuf_reserve_dynptr", [ConstMapPtr, Anything, Anything, ArgKind::Dynptr(DynptrUse::MakeRecord)], dynptr::ringbuf_reserve_dynptr),
    row(199, "bpf_ringbuf_submit_dynptr", [ArgKind::Dynptr(DynptrUse::Release), Anything], RetKind::Void, dynptr::ringbuf_submit_dynptr),
    row(200, "bpf_ringbuf_discard_dynptr", [ArgKind::Dynptr(DynptrUse::Release), Anything], RetKind::Void, dynptr::ringbuf_discard_dynptr),
    number(201, "bpf_dynptr_read", [OUTPUT, SizeOrZero, DYNPTR, Anything, Anything], dynptr::dynptr_read),
    number(202, "bpf_dynptr_write", [DYNPTR, Anything, INPUT, SizeOrZero, Anything], dynptr::dynptr_write),
    row(203, "bpf_dynptr_data", [DYNPTR, Anything, ArgKind::AllocSize], RetKind::DynptrMemOrNull, dynptr::dynptr_data),
    number(208, "bpf_ktime_get_tai_ns", [], time::ktime_get_tai_ns),
    number(256, "bpf_iter_num_new", [ArgKind::Iter(IterUse::New), Scalar, Scalar], iter::iter_num_new).gpl(),
    row(257, "bpf_iter_num_next", [ArgKind::Iter(IterUse::Next)], RetKind::IterElementOrNull, iter::iter_num_next).gpl(),
    row(258, "bpf_iter_num_destroy", [ArgKind::Iter(IterUse::Destroy)], RetKind::Void, iter::iter_num_destroy).gpl(),
    row(259, "bpf_rdonly_cast", [Anything, ArgKind::TypeId], RetKind::Cast, iter::rdonly_cast).gpl(),
    number(260, "bpf_dynptr_size", [DYNPTR], dynptr::dynptr_size).gpl(),
    number(261, "bpf_dynptr_is_null", [DYNPTR], dynptr::dynptr_is_null).gpl(),
    number(262, "bpf_dynptr_is_rdonly", [DYNPTR], dynptr::dynptr_is_rdonly).gpl(),
    number(263, "bpf_dynptr_adjust", [DYNPTR, Scalar, Scalar], dynptr::dynptr_adjust).gpl(),
    number(264, "bpf_session_is_return", [], session::session_is_return).only(ProgramSet::KPROBE).gpl(),
    row(265, "bpf_session_cookie", [], RetKind::Mem { size: 8 }, session::session_cookie).only(ProgramSet::KPROBE).gpl(),
];

/// The implementation of each helper by id.
pub const BY_ID: [Option<HelperFn>; HELPERS_LEN] = {
    let mut by_id = [None; HELPERS_LEN];
    let mut i = 0;
    while i < HELPERS.len() {
        by_id[HELPERS[i].proto.id as usize] = Some(HELPERS[i].call);
        i += 1;
    }
    by_id
};

/// The helper with this id.
pub fn by_id(id: u32) -> Option<&'static Helper> {
    let found = HELPERS.binary_search_by_key(&id, |helper| helper.proto.id).ok()?;
    HELPERS.get(found)
}

/// All kernel functions.
pub fn kfuncs() -> impl Iterator<Item = &'static Helper> {
    HELPERS.iter().filter(|helper| helper.proto.id >= KFUNC_BASE)
}

/// The kernel function with this name.
pub fn kfunc(name: &str) -> Option<&'static Helper> {
    kfuncs().find(|helper| helper.proto.name == name)
}

const _: () = {
    let mut i = 1;
    while i < HELPERS.len() {
        assert!(HELPERS[i - 1].proto.id < HELPERS[i].proto.id, "rows in order of ids");
        i += 1;
    }
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn found_by_id() {
        assert_eq!(by_id(14).unwrap().proto.name, "bpf_get_current_pid_tgid");
        assert!(by_id(0).is_none() && by_id(13).is_none() && by_id(9999).is_none());
        assert!(HELPERS.iter().all(|helper| BY_ID[helper.proto.id as usize].is_some()));
        assert_eq!(BY_ID.iter().flatten().count(), HELPERS.len());
        assert_eq!(kfunc("bpf_iter_num_new").unwrap().proto.id, KFUNC_BASE);
        assert!(kfunc("bpf_map_lookup_elem").is_none() && kfunc("").is_none());
    }

    #[test]
    fn a_size_follows_its_memory() {
        for helper in HELPERS {
            for pair in helper.proto.args.windows(2) {
                let sized = matches!(pair[1], Size | SizeOrZero);
                assert_eq!(matches!(pair[0], ArgKind::Mem { .. }), sized, "{}", helper.proto.name);
            }
        }
    }
}
