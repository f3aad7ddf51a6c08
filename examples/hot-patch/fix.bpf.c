// SPDX-License-Identifier: MIT OR Apache-2.0
// The fix of server.c, while it runs: without guests nobody pays anything, and the function is not called at all.
#include <linux/bpf.h>
#include <linux/ptrace.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_tracing.h>

char LICENSE[] SEC("license") = "Dual MIT/GPL";

/* Calls that would have ended the server. */
__u64 averted;

SEC("uprobe")
int fix_share(struct pt_regs *ctx)
{
	if (PT_REGS_PARM2(ctx) == 0) {
		__sync_fetch_and_add(&averted, 1);
		bpf_override_return(ctx, 0);
	}
	return 0;
}
