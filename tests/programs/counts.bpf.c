// SPDX-License-Identifier: MIT OR Apache-2.0
// Counts hits of whatever it is attached to: shared, per CPU, per process; entries and returns apart.
#include <linux/bpf.h>
#include <linux/ptrace.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_tracing.h>

char LICENSE[] SEC("license") = "Dual MIT/GPL";

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 2);
	__type(key, __u32);
	__type(value, __u64);
} shared SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 2);
	__type(key, __u32);
	__type(value, __u64);
} percpu SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1024);
	__type(key, __u32);
	__type(value, __u64);
} by_pid SEC(".maps");

/* Sum of first arguments at entry, of results at return. */
__u64 argument_sum;
__u64 result_sum;

static __always_inline void count(__u32 which)
{
	__u64 *n = bpf_map_lookup_elem(&shared, &which);

	if (n)
		__sync_fetch_and_add(n, 1);
	n = bpf_map_lookup_elem(&percpu, &which);
	if (n)
		*n += 1;
}

SEC("uprobe")
int on_entry(struct pt_regs *ctx)
{
	__u32 pid = bpf_get_current_pid_tgid() >> 32;
	__u64 one = 1, *n;

	count(0);
	__sync_fetch_and_add(&argument_sum, PT_REGS_PARM1(ctx));
	n = bpf_map_lookup_elem(&by_pid, &pid);
	if (n)
		__sync_fetch_and_add(n, 1);
	else if (bpf_map_update_elem(&by_pid, &pid, &one, BPF_NOEXIST)) {
		n = bpf_map_lookup_elem(&by_pid, &pid);
		if (n)
			__sync_fetch_and_add(n, 1);
	}
	return 0;
}

SEC("uretprobe")
int on_return(struct pt_regs *ctx)
{
	count(1);
	__sync_fetch_and_add(&result_sum, PT_REGS_RC(ctx));
	return 0;
}
