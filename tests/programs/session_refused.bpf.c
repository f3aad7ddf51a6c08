// What a session's program may not do, and who may not ask about sessions.
#include <linux/bpf.h>
#include <linux/ptrace.h>
#include <bpf/bpf_helpers.h>

extern __u64 *bpf_session_cookie(void) __ksym;

#ifdef RETURNS_TWO
SEC("uprobe.session")
int bad(struct pt_regs *ctx)
{
	return *bpf_session_cookie();
}
#else
SEC("uprobe")
int bad(struct pt_regs *ctx)
{
	return *bpf_session_cookie() != 0;
}
#endif

char LICENSE[] SEC("license") = "GPL";
