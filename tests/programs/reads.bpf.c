// SPDX-License-Identifier: MIT OR Apache-2.0
// Reads 1, 2, 4 and 8 bytes at the first argument; where it keeps what it got depends on the second.
#include <linux/bpf.h>
#include <linux/ptrace.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_tracing.h>

char LICENSE[] SEC("license") = "Dual MIT/GPL";

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 256);
	__type(key, __u32);
	__type(value, __u64);
} values SEC(".maps"), errors SEC(".maps");

static void put(__u32 key, __u64 value, long error)
{
	__u64 negated = -error;

	bpf_map_update_elem(&values, &key, &value, BPF_ANY);
	bpf_map_update_elem(&errors, &key, &negated, BPF_ANY);
}

#define READ(index, type, helper)                                                \
	{                                                                        \
		type value = (type)0xaaaaaaaaaaaaaaaa;                           \
		long error = helper(&value, sizeof(value), (void *)PT_REGS_PARM1(ctx)); \
		put(4 * PT_REGS_PARM2(ctx) + index, value, error);               \
	}

SEC("uprobe")
int read(struct pt_regs *ctx)
{
	READ(0, __u8, bpf_probe_read_user)
	READ(1, __u16, bpf_probe_read_kernel)
	READ(2, __u32, bpf_probe_read)
	READ(3, __u64, bpf_probe_read_user)
	return 0;
}
