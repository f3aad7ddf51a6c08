// SPDX-License-Identifier: MIT OR Apache-2.0
// How long system calls take: for each number a histogram of powers of two (nanoseconds).
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

char LICENSE[] SEC("license") = "Dual MIT/GPL";

#define NUMBERS 512
#define SLOTS 32

struct enter {
	__u64 common;
	__s64 id;
	__u64 args[6];
};

struct exit {
	__u64 common;
	__s64 id;
	__s64 ret;
};

struct histogram {
	__u64 slots[SLOTS];
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 10240);
	__type(key, __u32);
	__type(value, __u64);
} begun SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, NUMBERS);
	__type(key, __u32);
	__type(value, struct histogram);
} durations SEC(".maps");

static __always_inline __u32 log2_of(__u64 v)
{
	__u32 r = 0;

	if (v >> 32) { v >>= 32; r += 32; }
	if (v >> 16) { v >>= 16; r += 16; }
	if (v >> 8) { v >>= 8; r += 8; }
	if (v >> 4) { v >>= 4; r += 4; }
	if (v >> 2) { v >>= 2; r += 2; }
	if (v >> 1) r += 1;
	return r;
}

SEC("tracepoint/raw_syscalls/sys_enter")
int call_begins(struct enter *ctx)
{
	__u32 tid = (__u32)bpf_get_current_pid_tgid();
	__u64 now = bpf_ktime_get_ns();

	bpf_map_update_elem(&begun, &tid, &now, BPF_ANY);
	return 0;
}

SEC("tracepoint/raw_syscalls/sys_exit")
int call_ends(struct exit *ctx)
{
	__u32 tid = (__u32)bpf_get_current_pid_tgid();
	__u64 *start = bpf_map_lookup_elem(&begun, &tid);
	__u32 number = (__u32)ctx->id, slot;
	struct histogram *h;

	if (!start)
		return 0;
	slot = log2_of(bpf_ktime_get_ns() - *start);
	bpf_map_delete_elem(&begun, &tid);
	if (slot >= SLOTS)
		slot = SLOTS - 1;
	h = bpf_map_lookup_elem(&durations, &number);
	if (h)
		h->slots[slot] += 1;
	return 0;
}
