// SPDX-License-Identifier: MIT OR Apache-2.0
// Calls of a Go function with its arguments. Go passes the first integers in rax, rbx, rcx (ABIInternal).
#include <linux/bpf.h>
#include <linux/ptrace.h>
#include <bpf/bpf_helpers.h>

char LICENSE[] SEC("license") = "Dual MIT/GPL";

struct call_stats {
	__u64 calls;
	__u64 sum_of_a;
	__u64 sum_of_b;
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct call_stats);
} stats SEC(".maps");

SEC("uprobe")
int on_add(struct pt_regs *ctx)
{
	__u32 zero = 0;
	struct call_stats *s = bpf_map_lookup_elem(&stats, &zero);

	if (!s)
		return 0;
	__sync_fetch_and_add(&s->calls, 1);
	__sync_fetch_and_add(&s->sum_of_a, ctx->rax);
	__sync_fetch_and_add(&s->sum_of_b, ctx->rbx);
	return 0;
}
