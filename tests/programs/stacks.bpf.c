// Keeps the stacks at a place: whole ones in order, and how often each was seen.
#include <linux/bpf.h>
#include <linux/ptrace.h>
#include <bpf/bpf_helpers.h>

#define DEPTH 96

struct stack {
	long bytes;
	__u64 ips[DEPTH];
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 64);
	__type(key, __u32);
	__type(value, struct stack);
} at_entry SEC(".maps"), at_return SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_STACK_TRACE);
	__uint(max_entries, 1024);
	__uint(key_size, 4);
	__uint(value_size, DEPTH * 8);
} stacks SEC(".maps");

struct key {
	__u32 pid;
	__s32 user_stack_id;
	char comm[16];
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1024);
	__type(key, struct key);
	__type(value, __u64);
} counts SEC(".maps");

struct build_ids {
	long bytes;
	struct bpf_stack_build_id frames[DEPTH];
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 64);
	__type(key, __u32);
	__type(value, struct build_ids);
} by_build_id SEC(".maps");

__u32 entries, returns;

SEC("uprobe")
int enter(struct pt_regs *ctx)
{
	__u32 index = entries++;
	struct stack *stack = bpf_map_lookup_elem(&at_entry, &index);
	struct build_ids *ids = bpf_map_lookup_elem(&by_build_id, &index);

	if (stack)
		stack->bytes = bpf_get_stack(ctx, stack->ips, sizeof(stack->ips), BPF_F_USER_STACK);
	if (ids)
		ids->bytes = bpf_get_stack(ctx, ids->frames, sizeof(ids->frames),
					   BPF_F_USER_STACK | BPF_F_USER_BUILD_ID);
	return 0;
}

SEC("uretprobe")
int leave(struct pt_regs *ctx)
{
	__u32 index = returns++;
	struct stack *stack = bpf_map_lookup_elem(&at_return, &index);

	if (stack)
		stack->bytes = bpf_get_stack(ctx, stack->ips, sizeof(stack->ips), BPF_F_USER_STACK);
	return 0;
}

SEC("uprobe")
int count(struct pt_regs *ctx)
{
	struct key key = {.pid = bpf_get_current_pid_tgid() >> 32};
	__u64 one = 1, *seen;

	key.user_stack_id = bpf_get_stackid(ctx, &stacks, BPF_F_USER_STACK);
	bpf_get_current_comm(key.comm, sizeof(key.comm));
	seen = bpf_map_lookup_elem(&counts, &key);
	if (seen)
		__sync_fetch_and_add(seen, 1);
	else
		bpf_map_update_elem(&counts, &key, &one, BPF_NOEXIST);
	return 0;
}

SEC("uretprobe")
int nothing(struct pt_regs *ctx)
{
	return 0;
}

char LICENSE[] SEC("license") = "GPL";
