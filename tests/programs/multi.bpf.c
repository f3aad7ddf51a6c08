// SPDX-License-Identifier: MIT OR Apache-2.0
// Counts hits by the address and by the cookie of the place; entries and returns apart; the order of programs.
#include <linux/bpf.h>
#include <linux/ptrace.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_tracing.h>

char LICENSE[] SEC("license") = "Dual MIT/GPL";

#define COUNTS(name)                                      \
	struct {                                          \
		__uint(type, BPF_MAP_TYPE_HASH);          \
		__uint(max_entries, 256);                 \
		__type(key, __u64);                       \
		__type(value, __u64);                     \
	} name SEC(".maps")

COUNTS(entries_by_address);
COUNTS(entries_by_cookie);
COUNTS(returns_by_address);
COUNTS(returns_by_cookie);

__u64 result_sum;
__u64 wrong_ip;
/* The programs that ran last, as digits; one map for all objects. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
	__type(key, __u32);
	__type(value, __u64);
} order SEC(".maps");

static __always_inline int ran(int digit)
{
	__u32 key = 0;
	__u64 *digits = bpf_map_lookup_elem(&order, &key);

	if (digits)
		*digits = *digits * 10 + digit;
	return 0;
}

static __always_inline void count(void *map, __u64 key)
{
	__u64 one = 1, *n = bpf_map_lookup_elem(map, &key);

	if (n)
		__sync_fetch_and_add(n, 1);
	else if (bpf_map_update_elem(map, &key, &one, BPF_NOEXIST)) {
		n = bpf_map_lookup_elem(map, &key);
		if (n)
			__sync_fetch_and_add(n, 1);
	}
}

SEC("uprobe.multi")
int on_entry(struct pt_regs *ctx)
{
	count(&entries_by_address, bpf_get_func_ip(ctx));
	count(&entries_by_cookie, bpf_get_attach_cookie(ctx));
	if (bpf_get_func_ip(ctx) != PT_REGS_IP(ctx))
		wrong_ip++;
	return 0;
}

SEC("uretprobe.multi")
int on_return(struct pt_regs *ctx)
{
	count(&returns_by_address, bpf_get_func_ip(ctx));
	count(&returns_by_cookie, bpf_get_attach_cookie(ctx));
	__sync_fetch_and_add(&result_sum, PT_REGS_RC(ctx));
	return 0;
}

SEC("uprobe")
int first(struct pt_regs *ctx)
{
	return ran(1);
}

SEC("uprobe")
int second(struct pt_regs *ctx)
{
	return ran(2);
}
