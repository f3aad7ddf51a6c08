// A function of a program (tests/targets/plugin.c) that is replaced by one of a library.
#include <linux/bpf.h>
#include <linux/ptrace.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_tracing.h>

extern long loaded_work(long number) __ksym;

SEC("uprobe")
int replaced(struct pt_regs *ctx)
{
	bpf_override_return(ctx, loaded_work(PT_REGS_PARM1(ctx)));
	return 0;
}

char LICENSE[] SEC("license") = "GPL";
