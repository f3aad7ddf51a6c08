// SPDX-License-Identifier: MIT OR Apache-2.0
// Three programs that count in one map, which all objects share: who ran how often.
#include <linux/bpf.h>
#include <linux/ptrace.h>
#include <bpf/bpf_helpers.h>

char LICENSE[] SEC("license") = "Dual MIT/GPL";

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 3);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
	__type(key, __u32);
	__type(value, __u64);
} digits SEC(".maps");

static __always_inline int count(__u32 which)
{
	__u64 *n = bpf_map_lookup_elem(&digits, &which);

	if (n)
		__sync_fetch_and_add(n, 1);
	return 0;
}

SEC("uprobe")
int ones(struct pt_regs *ctx)
{
	return count(0);
}

SEC("uprobe")
int tens(struct pt_regs *ctx)
{
	return count(1);
}

SEC("uretprobe")
int hundreds(struct pt_regs *ctx)
{
	return count(2);
}
