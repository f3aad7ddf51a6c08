// SPDX-License-Identifier: MIT OR Apache-2.0
// What the benchmarks run at a probe: from nothing at all to what real tools do.
#include <linux/bpf.h>
#include <linux/ptrace.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_tracing.h>

char LICENSE[] SEC("license") = "Dual MIT/GPL";

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u64);
} percpu SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u64);
} shared SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1024);
	__type(key, __u64);
	__type(value, __u64);
} hash SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 16 * 1024 * 1024);
} ring SEC(".maps");

struct histogram {
	__u64 slots[64];
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct histogram);
} histogram SEC(".maps");

SEC("uprobe")
int empty(struct pt_regs *ctx)
{
	return 0;
}

/* Every word of the context. */
SEC("uprobe")
int whole_regs(struct pt_regs *ctx)
{
	__u64 *words = (__u64 *)ctx, sum = 0;

#pragma unroll
	for (int i = 0; i < (int)(sizeof(*ctx) / sizeof(*words)); i++)
		sum += words[i];
	return sum == 1;
}

/* Eight bytes of the target's memory. */
SEC("uprobe")
int read_user(struct pt_regs *ctx)
{
	__u64 word = 0;

	bpf_probe_read_user(&word, sizeof(word), (void *)PT_REGS_SP(ctx));
	return word == 1;
}

/* A part of the histogram: the clock. */
SEC("uprobe")
int clock(struct pt_regs *ctx)
{
	return bpf_ktime_get_ns() == 1;
}

SEC("uprobe")
int count_percpu(struct pt_regs *ctx)
{
	__u32 zero = 0;
	__u64 *n = bpf_map_lookup_elem(&percpu, &zero);

	if (n)
		*n += 1;
	return 0;
}

SEC("uprobe")
int count_atomic(struct pt_regs *ctx)
{
	__u32 zero = 0;
	__u64 *n = bpf_map_lookup_elem(&shared, &zero);

	if (n)
		__sync_fetch_and_add(n, 1);
	return 0;
}

SEC("uprobe")
int update_hash(struct pt_regs *ctx)
{
	__u64 key = PT_REGS_PARM2(ctx) & 255, value = key;

	bpf_map_update_elem(&hash, &key, &value, BPF_ANY);
	return 0;
}

struct event {
	__u64 words[4];
};

SEC("uprobe")
int send_event(struct pt_regs *ctx)
{
	struct event *e = bpf_ringbuf_reserve(&ring, sizeof(*e), 0);

	if (!e)
		return 0;
	e->words[0] = PT_REGS_PARM1(ctx);
	e->words[1] = PT_REGS_PARM2(ctx);
	e->words[2] = 2;
	e->words[3] = 3;
	bpf_ringbuf_submit(e, BPF_RB_NO_WAKEUP);
	return 0;
}

SEC("uretprobe")
int on_return(struct pt_regs *ctx)
{
	return 0;
}

SEC("uprobe")
int enter(struct pt_regs *ctx)
{
	__u64 thread = bpf_get_current_pid_tgid(), now = bpf_ktime_get_ns();

	bpf_map_update_elem(&hash, &thread, &now, BPF_ANY);
	return 0;
}

SEC("uretprobe")
int leave(struct pt_regs *ctx)
{
	__u64 thread = bpf_get_current_pid_tgid(), *start = bpf_map_lookup_elem(&hash, &thread), took;
	__u32 zero = 0, slot = 0;
	struct histogram *h;

	if (!start)
		return 0;
	took = bpf_ktime_get_ns() - *start;
	if (took >> 16) { took >>= 16; slot += 16; }
	if (took >> 8) { took >>= 8; slot += 8; }
	if (took >> 4) { took >>= 4; slot += 4; }
	if (took >> 2) { took >>= 2; slot += 2; }
	if (took >> 1) slot += 1;
	h = bpf_map_lookup_elem(&histogram, &zero);
	if (h)
		h->slots[slot & 63] += 1;
	return 0;
}
