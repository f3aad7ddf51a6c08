// SPDX-License-Identifier: MIT OR Apache-2.0
// Reads arguments as libbpf 1.7 does, which knows index registers: the layout is that of its usdt.bpf.h.
#include <linux/bpf.h>
#include <linux/ptrace.h>
#include <bpf/bpf_helpers.h>

char LICENSE[] SEC("license") = "Dual MIT/GPL";

enum { CONSTANT, REGISTER, MEMORY, INDEXED };

struct argument {
	__u64 value;
	__u8 kind;
	__u16 index_and_scale __attribute__((packed));
	__u8 reserved;
	__s16 reg;
	__u8 is_signed;
	__s8 shift;
};

struct spec {
	struct argument arguments[12];
	__u64 cookie;
	__s16 count;
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 16);
	__type(key, int);
	__type(value, struct spec);
} __bpf_usdt_specs SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 12);
	__type(key, __u32);
	__type(value, __s64);
} values SEC(".maps");

__u64 hits;
__u64 errors;

static __always_inline long read_register(void *ctx, __u16 at)
{
	long value = 0;

	if (bpf_probe_read_kernel(&value, sizeof(value), ctx + at))
		errors++;
	return value;
}

SEC("usdt")
int on_more(struct pt_regs *ctx)
{
	int id = bpf_get_attach_cookie(ctx);
	struct spec *spec = bpf_map_lookup_elem(&__bpf_usdt_specs, &id);

	if (!spec)
		return 0;
	hits++;
	for (__u32 i = 0; i < 12; i++) {
		struct argument *it = &spec->arguments[i];
		long value = it->value;

		if (i >= spec->count)
			break;
		if (it->kind != CONSTANT)
			value = read_register(ctx, it->reg);
		if (it->kind == INDEXED)
			value += read_register(ctx, it->index_and_scale & 0xfff) << (it->index_and_scale >> 12);
		if (it->kind == MEMORY || it->kind == INDEXED)
			if (bpf_probe_read_user(&value, sizeof(value), (void *)value + it->value))
				errors++;
		value <<= it->shift;
		value = it->is_signed ? value >> it->shift : (long)((unsigned long)value >> it->shift);
		bpf_map_update_elem(&values, &i, &value, BPF_ANY);
	}
	return 0;
}
