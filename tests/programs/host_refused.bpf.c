// Host functions as they cannot be called: one case each.
#include <linux/bpf.h>
#include <linux/ptrace.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_tracing.h>

#if defined(FLOATS)
extern int host_twice(double number) __ksym;
#define CALL host_twice(1.0)
#elif defined(MANY)
extern int host_twice(int a, int b, int c, int d, int e, ...) __ksym;
#define CALL host_twice(1, 2, 3, 4, 5)
#elif defined(STACK)
extern int host_twice(char *text) __ksym;
#define CALL ({ char text[8] = {}; host_twice(text); })
#else
extern int host_twice(int number) __ksym;
#define CALL host_twice(1)
#endif

#ifdef TAIL_CALLED
int called(struct pt_regs *ctx);

struct {
	__uint(type, BPF_MAP_TYPE_PROG_ARRAY);
	__uint(max_entries, 1);
	__uint(key_size, 4);
	__array(values, int(void *));
} programs SEC(".maps") = {.values = {(void *)&called}};

SEC("uprobe")
int called(struct pt_regs *ctx)
{
	return CALL;
}
#elif defined(AT_CALLS)
SEC("ksyscall/getppid")
int called(struct pt_regs *ctx)
{
	return CALL;
}
#else
SEC("uprobe")
int called(struct pt_regs *ctx)
{
	return CALL;
}
#endif

char LICENSE[] SEC("license") = "GPL";
