// SPDX-License-Identifier: MIT OR Apache-2.0
// Follows a pointer that may be null.
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

char LICENSE[] SEC("license") = "GPL";

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 16);
	__type(key, __u32);
	__type(value, __u64);
} map SEC(".maps");

SEC("uprobe")
int wrong(void *ctx)
{
	__u32 key = 0;

	return *(__u64 *)bpf_map_lookup_elem(&map, &key);
}

SEC("tracepoint/syscalls/sys_enter_openat")
int right(void *ctx)
{
	return 0;
}
