// SPDX-License-Identifier: MIT OR Apache-2.0
// Empty programs at one or two system calls: -DFIRST=openat -DSECOND=close, and -DEXITS for their ends too.
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

char LICENSE[] SEC("license") = "Dual MIT/GPL";

#define AT_(when, call)                            \
	SEC("tracepoint/syscalls/sys_" #when "_" #call) \
	int when##_##call(void *ctx)               \
	{                                          \
		return 0;                          \
	}
#define AT(when, call) AT_(when, call)

AT(enter, FIRST)
#ifdef SECOND
AT(enter, SECOND)
#endif

#ifdef EXITS
AT(exit, FIRST)
#ifdef SECOND
AT(exit, SECOND)
#endif
#endif
