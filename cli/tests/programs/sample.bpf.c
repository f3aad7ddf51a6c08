// SPDX-License-Identifier: MIT OR Apache-2.0
// A bit of everything that the command line shows.
#include <linux/bpf.h>
#include <linux/ptrace.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_tracing.h>

char LICENSE[] SEC("license") = "Dual MIT/GPL";

enum color { RED, GREEN = 5 };

struct usage {
	__u64 calls;
	__s32 delta;
	enum color color;
	char comm[8];
};

struct event {
	__u32 number;
	char text[12];
};

const struct event *unused_event __attribute__((unused));

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 16);
	__type(key, __u32);
	__type(value, struct usage);
} usages SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u64);
} per_cpu SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 4096);
} events SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 2);
	__type(key, __u32);
	__type(value, __u64);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} shared SEC(".maps");

const volatile __u32 limit = 7;
__u64 total = 3;

SEC("uprobe/libc.so.6:malloc")
int on_malloc(struct pt_regs *ctx)
{
	__u32 key = 1;
	__u64 *count = bpf_map_lookup_elem(&per_cpu, &key);

	if (count)
		*count += 1;
	total += limit;
	return 42;
}

SEC("uretprobe")
int on_return(struct pt_regs *ctx)
{
	struct event *event = bpf_ringbuf_reserve(&events, sizeof(*event), 0);
	__u32 key = 0;
	__u64 *n = bpf_map_lookup_elem(&shared, &key);

	if (n)
		__sync_fetch_and_add(n, 1);
	if (!event)
		return 1;
	event->number = 9;
	__builtin_memcpy(event->text, "hello", 6);
	__builtin_memset(event->text + 6, 0, 6);
	bpf_ringbuf_submit(event, 0);
	bpf_printk("event %d", 9);
	return PT_REGS_RC(ctx);
}

SEC("?uprobe/libc.so.6:free")
int left_out(void *ctx)
{
	return 0;
}
