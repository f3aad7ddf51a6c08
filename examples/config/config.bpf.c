// SPDX-License-Identifier: MIT OR Apache-2.0
// Global data: constants that the verifier sees, variables that `beeline map` can change while probes run.
#include <linux/bpf.h>
#include <linux/ptrace.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_tracing.h>

char LICENSE[] SEC("license") = "Dual MIT/GPL";

const volatile __u64 sample_mask = 0;	/* .rodata: frozen at load */
__u64 threshold = 64;			/* .data: change it with `beeline map update` */
__u64 seen;				/* .bss */
__u64 above;

SEC("uprobe/libc.so.6:malloc")
int BPF_KPROBE(on_malloc, __u64 size)
{
	__u64 n = __sync_fetch_and_add(&seen, 1);

	if (sample_mask && (n & sample_mask))
		return 0;
	if (size >= threshold)
		__sync_fetch_and_add(&above, 1);
	return 0;
}
