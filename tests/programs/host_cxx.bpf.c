// Programs that call functions of a C++ program (tests/targets/host_throw.cc).
#include <linux/bpf.h>
#include <linux/ptrace.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_tracing.h>

extern int host_catches(int depth) __ksym;
extern int host_throws(int depth) __ksym;

__u64 caught, last;

SEC("uprobe")
int catches(struct pt_regs *ctx)
{
	last = host_catches(PT_REGS_PARM1(ctx));
	__sync_fetch_and_add(&caught, 1);
	return 0;
}

SEC("uprobe")
int throws(struct pt_regs *ctx)
{
	host_throws(PT_REGS_PARM1(ctx));
	return 0;
}

char LICENSE[] SEC("license") = "MIT";
