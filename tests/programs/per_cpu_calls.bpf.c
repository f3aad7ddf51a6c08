// SPDX-License-Identifier: MIT OR Apache-2.0
// Counts the beginnings and the ends of system calls by their number, on each CPU for itself.
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

char LICENSE[] SEC("license") = "Dual MIT/GPL";

struct counts {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 512);
	__type(key, __u32);
	__type(value, __u64);
} enters SEC(".maps"), exits SEC(".maps");

struct record {
	__u64 common;
	long id;
};

static void count(void *map, __u32 id)
{
	__u64 *value = bpf_map_lookup_elem(map, &id);

	if (value)
		++*value;
}

SEC("tracepoint/raw_syscalls/sys_enter")
int on_enter(struct record *ctx)
{
	count(&enters, ctx->id);
	return 0;
}

SEC("tracepoint/raw_syscalls/sys_exit")
int on_exit(struct record *ctx)
{
	count(&exits, ctx->id);
	return 0;
}
