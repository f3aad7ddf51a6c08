// SPDX-License-Identifier: MIT OR Apache-2.0
// How often each system call is made, and how often it fails.
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

char LICENSE[] SEC("license") = "Dual MIT/GPL";

#define NUMBERS 512

struct exit {
	__u64 common;
	__s64 id;
	__s64 ret;
};

struct enter {
	__u64 common;
	__s64 id;
	__u64 args[6];
};

struct usage {
	__u64 calls;
	__u64 errors;
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, NUMBERS);
	__type(key, __u32);
	__type(value, struct usage);
} usage SEC(".maps");

static __always_inline struct usage *usage_of(__s64 id)
{
	__u32 number = (__u32)id;

	return bpf_map_lookup_elem(&usage, &number);
}

SEC("tracepoint/raw_syscalls/sys_enter")
int count_call(struct enter *ctx)
{
	struct usage *u = usage_of(ctx->id);

	if (u)
		u->calls += 1;
	return 0;
}

SEC("tracepoint/raw_syscalls/sys_exit")
int count_error(struct exit *ctx)
{
	struct usage *u;

	if (ctx->ret >= 0 || ctx->ret < -4095)
		return 0;
	u = usage_of(ctx->id);
	if (u)
		u->errors += 1;
	return 0;
}
