// SPDX-License-Identifier: MIT OR Apache-2.0
// What the kernel's own programs at system calls would see: numbers, ids, the order among each other, and a clock.
#include <linux/bpf.h>
#include <linux/ptrace.h>
#include <bpf/bpf_helpers.h>
#include <stddef.h>

char LICENSE[] SEC("license") = "Dual MIT/GPL";

// The first argument of calls whose numbers are looked at.
#define MARK 0x5eed

// The order of getpgid's programs: the first digit is that of the first one.
__u64 order;
// Of marked calls: as the raw tracepoint, the record of the begin, and that of the end have them.
__s64 raw_number, enter_number, exit_number;
__u64 clock, user;

// Ends of calls, by process (upper half) and number.
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 4096);
	__type(key, __u64);
	__type(value, __u64);
} ends SEC(".maps");

struct enter {
	__u64 common;
	long id;
	unsigned long args[6];
};

struct leave {
	__u64 common;
	long id;
	long ret;
};

SEC("ksyscall/getpgid")
int enter_function(void *ctx)
{
	order = order * 10 + 3;
	return 0;
}

SEC("tracepoint/syscalls/sys_exit_getpgid")
int leave_record(void *ctx)
{
	order = order * 10 + 5;
	return 0;
}

SEC("kretsyscall/getpgid")
int leave_function(void *ctx)
{
	order = order * 10 + 4;
	return 0;
}

SEC("raw_tp/sys_enter")
int enter_raw(struct bpf_raw_tracepoint_args *ctx)
{
	__u64 first = 0;

	bpf_probe_read_kernel(&first, sizeof(first), (void *)ctx->args[0] + offsetof(struct pt_regs, rdi));
	if (first == MARK)
		raw_number = ctx->args[1];
	if (ctx->args[1] == 121)
		order = order * 10 + 1;
	clock = bpf_ktime_get_ns();
	user = bpf_get_current_uid_gid();
	return 0;
}

SEC("tracepoint/syscalls/sys_enter_getpgid")
int enter_own_record(void *ctx)
{
	order = order * 10 + 2;
	return 0;
}

SEC("tracepoint/raw_syscalls/sys_enter")
int enter_record(struct enter *ctx)
{
	if (ctx->args[0] == MARK)
		enter_number = ctx->id;
	return 0;
}

SEC("tracepoint/raw_syscalls/sys_exit")
int leave_any(struct leave *ctx)
{
	__u64 key = bpf_get_current_pid_tgid() >> 32 << 32 | (__u32)ctx->id, one = 1;
	__u64 *count = bpf_map_lookup_elem(&ends, &key);

	if (count)
		__sync_fetch_and_add(count, 1);
	else
		bpf_map_update_elem(&ends, &key, &one, BPF_ANY);
	if (ctx->id < 0)
		exit_number = ctx->id;
	return 0;
}
