// Sessions: one program at the entry of a function and at its return.
#include <linux/bpf.h>
#include <linux/ptrace.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_tracing.h>

#ifndef bool
#define bool _Bool
#endif

extern bool bpf_session_is_return(void) __ksym;
extern __u64 *bpf_session_cookie(void) __ksym;

__u64 entries, returns, wrong_cookies, wrong_results, calls;

// The cookie holds the arguments; `many_N(a, b)` returns a * 3 + b + N.
SEC("uprobe.session")
int both(struct pt_regs *ctx)
{
	__u64 *cookie = bpf_session_cookie();
	__u64 sum = PT_REGS_PARM1(ctx) * 3 + PT_REGS_PARM2(ctx);

	if (!bpf_session_is_return()) {
		__sync_fetch_and_add(&entries, 1);
		if (*cookie != 0)
			__sync_fetch_and_add(&wrong_cookies, 1);
		*cookie = sum + bpf_get_attach_cookie(ctx);
		return 0;
	}
	__sync_fetch_and_add(&returns, 1);
	if ((__u64)PT_REGS_RC(ctx) != *cookie)
		__sync_fetch_and_add(&wrong_results, 1);
	return 0;
}

// Looks at the return of every second call.
SEC("uprobe.session")
int every_second(struct pt_regs *ctx)
{
	if (bpf_session_is_return()) {
		__sync_fetch_and_add(&returns, 1);
		return 0;
	}
	return __sync_fetch_and_add(&calls, 1) & 1;
}

// A recursive function's calls each have a cookie of their own: its depth.
SEC("uprobe.session")
int nested(struct pt_regs *ctx)
{
	__u64 *cookie = bpf_session_cookie();

	if (!bpf_session_is_return()) {
		*cookie = PT_REGS_PARM1(ctx) + 1;
		__sync_fetch_and_add(&entries, 1);
		return 0;
	}
	// `deep(depth)` returns its depth.
	if ((int)PT_REGS_RC(ctx) + 1 != (int)*cookie)
		__sync_fetch_and_add(&wrong_cookies, 1);
	__sync_fetch_and_add(&returns, 1);
	return 0;
}

// Beside other sessions at `deep`, each with a cookie of its link and words of its own; each skips other calls.
SEC("uprobe.session")
int several(struct pt_regs *ctx)
{
	__u64 *cookie = bpf_session_cookie();
	__u64 link = bpf_get_attach_cookie(ctx);
	__u64 depth = PT_REGS_PARM1(ctx);

	if (!bpf_session_is_return()) {
		if (*cookie != 0)
			__sync_fetch_and_add(&wrong_cookies, 1);
		*cookie = link << 32 | (depth + 1);
		__sync_fetch_and_add(&entries, 1);
		return (depth + link) % 3 == 0;
	}
	depth = PT_REGS_RC(ctx);
	if (*cookie != (link << 32 | (__u32)(depth + 1)) || (depth + link) % 3 == 0)
		__sync_fetch_and_add(&wrong_cookies, 1);
	__sync_fetch_and_add(&returns, 1);
	return 0;
}

char LICENSE[] SEC("license") = "GPL";
