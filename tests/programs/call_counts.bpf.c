// SPDX-License-Identifier: MIT OR Apache-2.0
// Counts the beginnings and the ends of system calls by their number.
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

char LICENSE[] SEC("license") = "Dual MIT/GPL";

#define NUMBERS 512

struct counts {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, NUMBERS);
	__type(key, __u32);
	__type(value, __u64);
} enters SEC(".maps"), exits SEC(".maps");

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
	count(&exits, ctx->id);
	return 0;
}
