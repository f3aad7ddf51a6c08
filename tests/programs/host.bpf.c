// Programs that call functions of the target (tests/targets/host.c).
#include <linux/bpf.h>
#include <linux/ptrace.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_tracing.h>

#ifndef bool
#define bool _Bool
#endif

typedef unsigned long len__sz;
struct big { long a, b, c; };

extern int host_twice(int number) __ksym;
extern signed char host_narrow(signed char a, unsigned short b, unsigned char c, bool d, int e) __ksym;
extern long host_fill(char *to, len__sz len) __ksym;
extern long host_length(const char *text) __ksym;
extern int rate(int amount) __ksym;
extern void host_escape(void) __ksym;
extern void host_block(void) __ksym;
extern void host_end_thread(void) __ksym;
extern int host_fork(void) __ksym;

__u64 calls, result, filled, escapes, forked;

SEC("uprobe")
int twice(struct pt_regs *ctx)
{
	__sync_fetch_and_add(&calls, 1);
	result = host_twice(21);
	return 0;
}

SEC("uretprobe")
int twice_at_return(struct pt_regs *ctx)
{
	__sync_fetch_and_add(&calls, 1);
	result = host_twice(PT_REGS_RC(ctx));
	return 0;
}

SEC("uprobe")
int narrow(struct pt_regs *ctx)
{
	__u64 wide = PT_REGS_SP(ctx) | 0xffffffff00000000; // what the compiler does not know

	result = host_narrow(wide | 0xff, wide | 0xffff, wide | 0xff, (wide & 1) | 1, wide | 0xffffffff);
	return 0;
}

SEC("uprobe")
int fill(struct pt_regs *ctx)
{
	char text[16] = {};
	long ok = host_fill(text, 8);

	if (ok && text[0] == 'f' && text[7] == 'f' && text[8] == 0)
		__sync_fetch_and_add(&filled, 1);
	return 0;
}

// The length of the text, of which the function returns nothing.
SEC("uprobe")
int length(struct pt_regs *ctx)
{
	bpf_override_return(ctx, host_length((const char *)PT_REGS_PARM1(ctx)));
	return 0;
}

// The function as it was, and one more.
SEC("uprobe")
int replaced(struct pt_regs *ctx)
{
	bpf_override_return(ctx, rate(PT_REGS_PARM1(ctx)) + 1);
	return 0;
}

SEC("uprobe")
int escape(struct pt_regs *ctx)
{
	__sync_fetch_and_add(&escapes, 1);
	host_escape();
	return 0;
}

SEC("uprobe")
int block(struct pt_regs *ctx)
{
	host_block();
	__sync_fetch_and_add(&calls, 1);
	return 0;
}

SEC("uprobe")
int end_thread(struct pt_regs *ctx)
{
	host_end_thread();
	return 0;
}

SEC("uprobe")
int forks(struct pt_regs *ctx)
{
	if (host_fork() > 0)
		__sync_fetch_and_add(&forked, 1);
	return 0;
}

// A structure that is returned in memory: its address is the first argument and the result.
SEC("uprobe")
int make(struct pt_regs *ctx)
{
	struct big made = {PT_REGS_PARM2(ctx), 20, 30};

	bpf_probe_write_user((void *)PT_REGS_PARM1(ctx), &made, sizeof(made));
	bpf_override_return(ctx, PT_REGS_PARM1(ctx));
	return 0;
}

SEC("uprobe")
int allow(struct pt_regs *ctx)
{
	bpf_override_return(ctx, 1);
	return 0;
}

char LICENSE[] SEC("license") = "GPL";
