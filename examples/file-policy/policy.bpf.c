// SPDX-License-Identifier: MIT OR Apache-2.0
// A process may not open files below a folder, whatever its user may.
#include <linux/bpf.h>
#include <linux/errno.h>
#include <linux/ptrace.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_tracing.h>

char LICENSE[] SEC("license") = "Dual MIT/GPL";

#define PATH_LEN 256

/* The folder, with its last slash. */
const volatile char denied[64] = "/etc/ssl/";

__u64 asked;
__u64 refused;

static __always_inline int judge(struct pt_regs *ctx, const void *argument)
{
	char name[PATH_LEN];
	const char *path;
	int i;

	__sync_fetch_and_add(&asked, 1);
	bpf_probe_read_kernel(&path, sizeof(path), argument);
	if (bpf_probe_read_user_str(name, sizeof(name), path) <= 0)
		return 0; /* The kernel will answer EFAULT. */
	for (i = 0; i < sizeof(denied); i++) {
		if (!denied[i])
			break;
		if (name[i] != denied[i])
			return 0;
	}
	__sync_fetch_and_add(&refused, 1);
	bpf_override_return(ctx, -EACCES);
	return 0;
}

/* Each of the kernel's functions has one argument: the registers of the call. */

SEC("ksyscall/creat")
int may_creat(struct pt_regs *ctx)
{
	return judge(ctx, &PT_REGS_PARM1_SYSCALL(PT_REGS_SYSCALL_REGS(ctx)));
}

SEC("ksyscall/openat")
int may_openat(struct pt_regs *ctx)
{
	return judge(ctx, &PT_REGS_PARM2_SYSCALL(PT_REGS_SYSCALL_REGS(ctx)));
}

SEC("ksyscall/openat2")
int may_openat2(struct pt_regs *ctx)
{
	return judge(ctx, &PT_REGS_PARM2_SYSCALL(PT_REGS_SYSCALL_REGS(ctx)));
}

SEC("ksyscall/open")
int may_open(struct pt_regs *ctx)
{
	return judge(ctx, &PT_REGS_PARM1_SYSCALL(PT_REGS_SYSCALL_REGS(ctx)));
}
