// SPDX-License-Identifier: MIT OR Apache-2.0
// One probe, three programs: the first looks at the argument and continues in another by a tail call.
#include <linux/bpf.h>
#include <linux/ptrace.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_tracing.h>

char LICENSE[] SEC("license") = "Dual MIT/GPL";

int on_small(struct pt_regs *ctx);
int on_large(struct pt_regs *ctx);

struct {
	__uint(type, BPF_MAP_TYPE_PROG_ARRAY);
	__uint(max_entries, 2);
	__uint(key_size, sizeof(__u32));
	__array(values, int(void *));
} handlers SEC(".maps") = {
	.values = {
		[0] = (void *)&on_small,
		[1] = (void *)&on_large,
	},
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 3);
	__type(key, __u32);
	__type(value, __u64);
} counts SEC(".maps");

static __always_inline void count(__u32 which)
{
	__u64 *n = bpf_map_lookup_elem(&counts, &which);

	if (n)
		__sync_fetch_and_add(n, 1);
}

/* Attached with --attach, so that it works on any function whose first argument is a number. */
SEC("uprobe")
int dispatch(struct pt_regs *ctx)
{
	bpf_tail_call(ctx, &handlers, PT_REGS_PARM1(ctx) >= 100);
	count(2); /* only when the tail call failed */
	return 0;
}

SEC("kprobe")
int on_small(struct pt_regs *ctx)
{
	count(0);
	return 0;
}

SEC("kprobe")
int on_large(struct pt_regs *ctx)
{
	count(1);
	return 0;
}
