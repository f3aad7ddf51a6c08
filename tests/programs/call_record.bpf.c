// SPDX-License-Identifier: MIT OR Apache-2.0
// Records the system calls in the order in which they end, with their arguments.
#include <linux/bpf.h>
#include <linux/ptrace.h>
#include <bpf/bpf_helpers.h>
#include <stddef.h>

char LICENSE[] SEC("license") = "Dual MIT/GPL";

#define RECORDS 16384

struct record {
	__u32 pid;
	__u32 tid;
	__u32 id;
	__u32 unused;
	__s64 ret;
	__u64 args[6];
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, RECORDS);
	__type(key, __u32);
	__type(value, struct record);
} records SEC(".maps");

__u64 recorded;

static struct record *next(__u32 id, __s64 ret)
{
	__u32 index = __sync_fetch_and_add(&recorded, 1);
	struct record *record = bpf_map_lookup_elem(&records, &index);
	__u64 ids = bpf_get_current_pid_tgid();

	if (!record)
		return 0;
	record->pid = ids >> 32;
	record->tid = ids;
	record->id = id;
	record->ret = ret;
	return record;
}

static __u64 word(const void *registers, size_t offset)
{
	__u64 value = 0;

	bpf_probe_read_kernel(&value, sizeof(value), registers + offset);
	return value;
}

SEC("raw_tp/sys_exit")
int on_exit(struct bpf_raw_tracepoint_args *ctx)
{
	const void *registers = (const void *)ctx->args[0];
	__u32 id = word(registers, offsetof(struct pt_regs, orig_rax));
	struct record *record = next(id, ctx->args[1]);

	if (!record)
		return 0;
	record->args[0] = word(registers, offsetof(struct pt_regs, rdi));
	record->args[1] = word(registers, offsetof(struct pt_regs, rsi));
	record->args[2] = word(registers, offsetof(struct pt_regs, rdx));
	record->args[3] = word(registers, offsetof(struct pt_regs, r10));
	record->args[4] = word(registers, offsetof(struct pt_regs, r8));
	record->args[5] = word(registers, offsetof(struct pt_regs, r9));
	return 0;
}
