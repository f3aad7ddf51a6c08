// SPDX-License-Identifier: MIT OR Apache-2.0
// Counts malloc() calls: one total over all processes, one count and size per process.
#include <linux/bpf.h>
#include <linux/ptrace.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_tracing.h>

char LICENSE[] SEC("license") = "Dual MIT/GPL";

struct usage {
	__u64 calls;
	__u64 bytes;
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 10240);
	__type(key, __u32);
	__type(value, struct usage);
} by_process SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u64);
} total SEC(".maps");

SEC("uprobe/libc.so.6:malloc")
int BPF_KPROBE(on_malloc, __u64 size)
{
	__u32 pid = bpf_get_current_pid_tgid() >> 32;
	__u32 zero = 0;
	__u64 *count = bpf_map_lookup_elem(&total, &zero);
	struct usage *usage, first = {};

	if (count)
		*count += 1;

	usage = bpf_map_lookup_elem(&by_process, &pid);
	if (!usage) {
		bpf_map_update_elem(&by_process, &pid, &first, BPF_NOEXIST);
		usage = bpf_map_lookup_elem(&by_process, &pid);
		if (!usage)
			return 0;
	}
	__sync_fetch_and_add(&usage->calls, 1);
	__sync_fetch_and_add(&usage->bytes, size);
	return 0;
}
