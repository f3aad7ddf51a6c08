/* Programs as people write them: every one must be accepted. */
#include <linux/bpf.h>
#include <linux/ptrace.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_tracing.h>

struct { __uint(type, BPF_MAP_TYPE_HASH); __uint(max_entries, 64); __type(key, __u32); __type(value, __u64); } counts SEC(".maps");
struct { __uint(type, BPF_MAP_TYPE_ARRAY); __uint(max_entries, 4); __type(key, __u32); __type(value, __u64[16]); } slots SEC(".maps");
struct { __uint(type, BPF_MAP_TYPE_PERCPU_ARRAY); __uint(max_entries, 1); __type(key, __u32); __type(value, char[512]); } scratch SEC(".maps");
struct { __uint(type, BPF_MAP_TYPE_RINGBUF); __uint(max_entries, 4096); } ring SEC(".maps");

const volatile int wanted = 3;
char line[64];

struct bpf_map;

SEC("uprobe") int bounded_loop(struct pt_regs *ctx)
{
	__u64 sum = 0;
	for (int i = 0; i < 100; i++)
		sum += ctx->rdi >> (i & 31);
	return sum;
}

SEC("uprobe") int unknown_bound(struct pt_regs *ctx)
{
	__u32 key = 0, n = ctx->rsi;
	__u64 *value = bpf_map_lookup_elem(&slots, &key);
	if (!value)
		return 0;
	for (__u32 i = 0; i < n && i < 16; i++)
		value[i] += 1;
	return 0;
}

SEC("uprobe") int variable_offset(struct pt_regs *ctx)
{
	char buffer[32] = {};
	__u32 at = ctx->rdi & 15;
	buffer[at] = 1;
	buffer[at + 1] = 2;
	return buffer[ctx->rsi & 31];
}

SEC("uprobe") int run_time_length(struct pt_regs *ctx)
{
	__u32 key = 0;
	char *buffer = bpf_map_lookup_elem(&scratch, &key);
	if (!buffer)
		return 0;
	long n = bpf_probe_read_user_str(buffer, 256, (void *)ctx->rdi);
	if (n <= 0 || n > 256)
		return 0;
	return bpf_probe_read_user(buffer + n, 256, (void *)ctx->rsi);
}

struct event { __u32 pid; __u32 length; char text[56]; };

SEC("uprobe") int reserve(struct pt_regs *ctx)
{
	struct event *event = bpf_ringbuf_reserve(&ring, sizeof(*event), 0);
	if (!event)
		return 0;
	event->pid = bpf_get_current_pid_tgid() >> 32;
	if (bpf_probe_read_user_str(event->text, sizeof(event->text), (void *)ctx->rdi) < 0) {
		bpf_ringbuf_discard(event, 0);
		return 0;
	}
	bpf_ringbuf_submit(event, 0);
	return 0;
}

static __noinline int add(__u64 *to, __u64 what)
{
	if (!to)
		return -1;
	*to += what;
	return 0;
}

__noinline int global_function(struct pt_regs *ctx, int n)
{
	return n + ctx->rip;
}

SEC("uprobe") int subprograms(struct pt_regs *ctx)
{
	__u64 sum = 0;
	add(&sum, ctx->rdi);
	add(&sum, ctx->rsi);
	return sum + global_function(ctx, 3);
}

struct walk { __u64 sum; __u32 turns; };

static int turn(__u32 index, void *data)
{
	struct walk *walk = data;
	walk->sum += index;
	walk->turns++;
	return walk->sum > 1000;
}

SEC("uprobe") int called_back(struct pt_regs *ctx)
{
	struct walk walk = {};
	bpf_loop(ctx->rdi, turn, &walk, 0);
	return walk.sum + walk.turns;
}

static int each(struct bpf_map *map, __u32 *key, __u64 *value, struct walk *walk)
{
	walk->sum += *value + *key;
	*value = 0;
	return 0;
}

SEC("uprobe") int each_element(struct pt_regs *ctx)
{
	struct walk walk = {};
	bpf_for_each_map_elem(&counts, each, &walk, 0);
	return walk.sum;
}

SEC("uprobe") int count(struct pt_regs *ctx)
{
	__u32 key = bpf_get_current_pid_tgid();
	__u64 one = 1, *value = bpf_map_lookup_elem(&counts, &key);
	if (value)
		__sync_fetch_and_add(value, 1);
	else
		bpf_map_update_elem(&counts, &key, &one, 0);
	return 0;
}

SEC("uprobe") int constants(struct pt_regs *ctx)
{
	if (wanted == 4)
		((int (*)(void))195896080)();
	line[wanted] = 1;
	return 0;
}

struct row { __u64 common; __s64 id; __u64 args[6]; };

SEC("tracepoint/syscalls/sys_enter_openat") int record(struct row *ctx)
{
	bpf_printk("open %d", (int)ctx->args[0]);
	return 0;
}

char LICENSE[] SEC("license") = "GPL";
