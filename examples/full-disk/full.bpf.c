// SPDX-License-Identifier: MIT OR Apache-2.0
// The disk is full at every n-th write of a process to one of its files.
#include <linux/bpf.h>
#include <linux/errno.h>
#include <linux/ptrace.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_tracing.h>

char LICENSE[] SEC("license") = "Dual MIT/GPL";

/* Which write fails, and from which descriptor on: the standard streams are left alone. */
const volatile __u64 nth = 3;
const volatile int first_descriptor = 3;

__u64 seen;
__u64 failed;

SEC("ksyscall/write")
int disk_is_full(struct pt_regs *ctx)
{
	/* The kernel's function has one argument: the registers of the call. */
	struct pt_regs *regs = PT_REGS_SYSCALL_REGS(ctx);
	__u64 fd;

	bpf_probe_read_kernel(&fd, sizeof(fd), &PT_REGS_PARM1_SYSCALL(regs));
	if ((int)fd < first_descriptor)
		return 0;
	if (__sync_fetch_and_add(&seen, 1) % nth == nth - 1) {
		__sync_fetch_and_add(&failed, 1);
		bpf_override_return(ctx, -ENOSPC);
	}
	return 0;
}
