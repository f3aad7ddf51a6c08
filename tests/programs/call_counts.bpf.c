// SPDX-License-Identifier: MIT OR Apache-2.0
// Counts the beginnings and the ends of system calls by their number, and records them in the order in which they end.
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

char LICENSE[] SEC("license") = "Dual MIT/GPL";

#define NUMBERS 512
#define RECORDS 16384

struct counts {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, NUMBERS);
	__type(key, __u32);
	__type(value, __u64);
} enters SEC(".maps"), exits SEC(".maps");

struct record {
	__u32 pid;
	__u32 tid;
	__u64 id;
	__s64 ret;
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, RECORDS);
	__type(key, __u32);
	__type(value, struct record);
} records SEC(".maps");

__u64 recorded;

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

static void count(void *map, __u32 id)
{
	__u64 *value = bpf_map_lookup_elem(map, &id);

	if (value)
		__sync_fetch_and_add(value, 1);
}

SEC("tracepoint/raw_syscalls/sys_enter")
int on_enter(struct enter *ctx)
{
	count(&enters, ctx->id);
	return 0;
}

SEC("tracepoint/raw_syscalls/sys_exit")
int on_exit(struct leave *ctx)
{
	__u32 index = __sync_fetch_and_add(&recorded, 1);
	struct record *record = bpf_map_lookup_elem(&records, &index);
	__u64 ids = bpf_get_current_pid_tgid();

	count(&exits, ctx->id);
	if (!record)
		return 0;
	record->pid = ids >> 32;
	record->tid = ids;
	record->id = ctx->id;
	record->ret = ctx->ret;
	return 0;
}
