// SPDX-License-Identifier: MIT OR Apache-2.0
// Garbage collections of Python by process: python's own USDT probes, which do nothing unless their semaphores say that
// somebody wants them.
#include <linux/bpf.h>
#include <linux/ptrace.h>
#include <stdbool.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_tracing.h>
#include <bpf/usdt.bpf.h>

char LICENSE[] SEC("license") = "Dual MIT/GPL";

struct collections {
	__u64 started;
	__u64 generations; /* sum */
	__u64 done;
	__u64 objects;
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1024);
	__type(key, __u32);
	__type(value, struct collections);
} by_process SEC(".maps");

static __always_inline struct collections *mine(void)
{
	__u32 pid = bpf_get_current_pid_tgid() >> 32;
	struct collections none = {};

	bpf_map_update_elem(&by_process, &pid, &none, BPF_NOEXIST);
	return bpf_map_lookup_elem(&by_process, &pid);
}

SEC("usdt")
int BPF_USDT(on_start, int generation)
{
	struct collections *it = mine();

	if (it) {
		__sync_fetch_and_add(&it->started, 1);
		__sync_fetch_and_add(&it->generations, generation);
	}
	return 0;
}

SEC("usdt")
int BPF_USDT(on_done, long objects)
{
	struct collections *it = mine();

	if (it) {
		__sync_fetch_and_add(&it->done, 1);
		__sync_fetch_and_add(&it->objects, objects);
	}
	return 0;
}
