// SPDX-License-Identifier: MIT OR Apache-2.0
// At a system call that is not traced.
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

char LICENSE[] SEC("license") = "Dual MIT/GPL";

SEC("tracepoint/syscalls/sys_enter_rt_sigreturn")
int returns(void *ctx)
{
	return 0;
}
