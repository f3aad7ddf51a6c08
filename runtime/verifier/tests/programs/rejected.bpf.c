/* Programs that must be refused, each with the reason that follows its `reason:`. */
#include <linux/bpf.h>
#include <linux/ptrace.h>
#include <bpf/bpf_helpers.h>

struct { __uint(type, BPF_MAP_TYPE_HASH); __uint(max_entries, 64); __type(key, __u32); __type(value, __u64); } counts SEC(".maps");
struct { __uint(type, BPF_MAP_TYPE_RINGBUF); __uint(max_entries, 4096); } ring SEC(".maps");

/* reason: R0 invalid mem access 'map_value_or_null' */
SEC("uprobe") int no_null_check(struct pt_regs *ctx)
{
	__u32 key = 0;
	return *(__u64 *)bpf_map_lookup_elem(&counts, &key);
}

/* reason: R0 max value is outside of the allowed memory range */
SEC("uprobe") int outside(struct pt_regs *ctx)
{
	__u32 key = 0;
	char *value = bpf_map_lookup_elem(&counts, &key);
	return value ? value[ctx->rdi & 15] : 0;
}

/* reason: reference leak */
SEC("uprobe") int leak(struct pt_regs *ctx)
{
	__u64 *record = bpf_ringbuf_reserve(&ring, 8, 0);
	if (record)
		*record = ctx->rdi;
	return 0;
}

/* reason: invalid mem access 'scalar' */
SEC("uprobe") int dereference(struct pt_regs *ctx)
{
	return *(int *)ctx->rdi;
}

/* reason: invalid bpf_context access off=168 size=8 */
SEC("uprobe") int beyond_context(struct pt_regs *ctx)
{
	return ((__u64 *)ctx)[21];
}

/* reason: invalid bpf_context access off=112 size=8 */
SEC("uprobe") int write_context(struct pt_regs *ctx)
{
	ctx->rdi = 1;
	return 0;
}

/* reason: program is too large */
SEC("uprobe") int unbounded(struct pt_regs *ctx)
{
	__u64 n = 0;
	for (__u64 i = 0; i < ctx->rdi; i++)
		n += bpf_get_prandom_u32();
	return n;
}

/* reason: R2 min value is negative */
SEC("uprobe") int negative_size(struct pt_regs *ctx)
{
	char buffer[64];
	int n = ctx->rsi;
	if (n < 64)
		bpf_probe_read_user(buffer, n, (void *)ctx->rdi);
	return buffer[0];
}

static int too_much(__u32 index, void *data)
{
	return 2;
}

/* reason: At callback return the register R0 has smin=2 smax=2 should have been in [0, 1] */
SEC("uprobe") int callback_result(struct pt_regs *ctx)
{
	return bpf_loop(10, too_much, 0, 0);
}

static int out_of_bounds(__u32 index, char *data)
{
	data[index] = 1;
	return 0;
}

/* reason: R2 unbounded memory access|invalid unbounded variable-offset write to stack|invalid variable-offset write to stack */
SEC("uprobe") int callback_index(struct pt_regs *ctx)
{
	char buffer[16] = {};
	bpf_loop(16, out_of_bounds, buffer, 0);
	return buffer[3];
}

struct counter { __u32 at; char bytes[16]; };

static int creeping(__u32 index, struct counter *counter)
{
	counter->bytes[counter->at++] = 1;
	return 0;
}

/* reason: invalid variable-offset write to stack|invalid unbounded variable-offset write to stack|math between fp pointer|invalid write to stack */
SEC("uprobe") int callback_counter(struct pt_regs *ctx)
{
	struct counter counter = {};
	bpf_loop(ctx->rdi, creeping, &counter, 0);
	return counter.at;
}

char LICENSE[] SEC("license") = "GPL";
