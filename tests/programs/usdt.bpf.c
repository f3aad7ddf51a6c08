// SPDX-License-Identifier: MIT OR Apache-2.0
// Reads the arguments of statically defined probes with libbpf's usdt.bpf.h.
#include <linux/bpf.h>
#include <linux/ptrace.h>
#include <stdbool.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_tracing.h>
#include <bpf/usdt.bpf.h>

char LICENSE[] SEC("license") = "Dual MIT/GPL";

/* Of the latest hit of each program: error and value of each argument, count, cookie. */
struct seen {
	__u64 hits;
	__s64 error[12];
	__s64 value[12];
	__s64 count;
	__s64 cookie;
	char text[16];
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 2);
	__type(key, __u32);
	__type(value, struct seen);
} seen SEC(".maps");

/* Hits, sums of the first and second arguments. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 3);
	__type(key, __u32);
	__type(value, __u64);
} sums SEC(".maps");

static __always_inline void add(__u32 which, __u64 number)
{
	__u64 *sum = bpf_map_lookup_elem(&sums, &which);

	if (sum)
		__sync_fetch_and_add(sum, number);
}

SEC("usdt")
int on_forms(struct pt_regs *ctx)
{
	__u32 key = 0;
	struct seen *it = bpf_map_lookup_elem(&seen, &key);
	long value;

	if (!it)
		return 0;
	it->hits++;
	it->count = bpf_usdt_arg_cnt(ctx);
	it->cookie = bpf_usdt_cookie(ctx);
#pragma unroll
	for (int i = 0; i < 12; i++) {
		it->error[i] = bpf_usdt_arg(ctx, i, &value);
		it->value[i] = value;
	}
	return 0;
}

SEC("usdt")
int BPF_USDT(on_work, long first, int second, const char *text)
{
	__u32 key = 1;
	struct seen *it = bpf_map_lookup_elem(&seen, &key);

	add(0, 1);
	add(1, first);
	add(2, second);
	if (!it)
		return 0;
	__sync_fetch_and_add(&it->hits, 1);
	it->count = bpf_usdt_arg_cnt(ctx);
	it->cookie = bpf_usdt_cookie(ctx);
	bpf_probe_read_user_str(it->text, sizeof(it->text), text);
	return 0;
}
