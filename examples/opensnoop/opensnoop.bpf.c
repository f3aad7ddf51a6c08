// SPDX-License-Identifier: MIT OR Apache-2.0
// One event for each file that a program opens or fails to open.
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

char LICENSE[] SEC("license") = "Dual MIT/GPL";

/* The fields of the tracepoints, as their `format` files in tracefs give them. */
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

struct open {
	const char *path;
	__u64 flags;
};

struct event {
	__u32 pid;
	__u32 tid;
	__s32 ret;
	__u32 flags;
	char comm[16];
	char path[256];
};

const struct event *unused_event __attribute__((unused));

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 10240);
	__type(key, __u32);
	__type(value, struct open);
} begun SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 1024 * 1024);
} opens SEC(".maps");

/* Events that found no room. */
__u64 lost;

static __always_inline int begin(const char *path, __u64 flags)
{
	struct open open = { .path = path, .flags = flags };
	__u32 tid = (__u32)bpf_get_current_pid_tgid();

	bpf_map_update_elem(&begun, &tid, &open, BPF_ANY);
	return 0;
}

static __always_inline int end(__s64 ret)
{
	__u64 id = bpf_get_current_pid_tgid();
	__u32 tid = (__u32)id;
	struct open *open = bpf_map_lookup_elem(&begun, &tid);
	struct event *e;

	if (!open)
		return 0;
	e = bpf_ringbuf_reserve(&opens, sizeof(*e), 0);
	if (e) {
		e->pid = id >> 32;
		e->tid = tid;
		e->ret = (__s32)ret;
		e->flags = (__u32)open->flags;
		bpf_get_current_comm(e->comm, sizeof(e->comm));
		/* Read here, not at the beginning: the kernel has read it meanwhile, so its page is there. */
		if (bpf_probe_read_user_str(e->path, sizeof(e->path), open->path) < 0)
			e->path[0] = 0;
		bpf_ringbuf_submit(e, 0);
	} else {
		__sync_fetch_and_add(&lost, 1);
	}
	bpf_map_delete_elem(&begun, &tid);
	return 0;
}

SEC("tracepoint/syscalls/sys_enter_openat")
int openat_begins(struct enter *ctx)
{
	return begin((const char *)ctx->args[1], ctx->args[2]);
}

SEC("tracepoint/syscalls/sys_exit_openat")
int openat_ends(struct exit *ctx)
{
	return end(ctx->ret);
}

SEC("tracepoint/syscalls/sys_enter_open")
int open_begins(struct enter *ctx)
{
	return begin((const char *)ctx->args[0], ctx->args[1]);
}

SEC("tracepoint/syscalls/sys_exit_open")
int open_ends(struct exit *ctx)
{
	return end(ctx->ret);
}
