// SPDX-License-Identifier: MIT OR Apache-2.0
// Lets every n-th large malloc() of a process fail, to see what it makes of that.
#include <linux/bpf.h>
#include <linux/ptrace.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_tracing.h>

char LICENSE[] SEC("license") = "Dual MIT/GPL";

/* From how many bytes on, and which of them fails. */
const volatile __u64 large = 1 << 20;
const volatile __u64 nth = 3;

__u64 seen;
__u64 failed;

SEC("uprobe/libc.so.6:malloc")
int fail_malloc(struct pt_regs *ctx)
{
	if (PT_REGS_PARM1(ctx) < large)
		return 0;
	if (__sync_fetch_and_add(&seen, 1) % nth == nth - 1) {
		__sync_fetch_and_add(&failed, 1);
		bpf_override_return(ctx, 0);
	}
	return 0;
}
