// SPDX-License-Identifier: MIT OR Apache-2.0
// The plain text that a program sends and receives through OpenSSL.
#include <linux/bpf.h>
#include <linux/ptrace.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_tracing.h>

char LICENSE[] SEC("license") = "Dual MIT/GPL";

#define TEXT_MAX 256

enum direction { READ, WRITE };

struct message {
	__u32 pid;
	__u32 direction;
	__u32 len;	/* bytes of the whole message */
	__u32 copied;	/* bytes of text below */
	char comm[16];
	char text[TEXT_MAX];
};

const struct message *unused_message __attribute__((unused));

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 256 * 1024);
} messages SEC(".maps");

/* Where SSL_read was told to put the text, per thread. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1024);
	__type(key, __u64);
	__type(value, __u64);
} reading SEC(".maps");

static int emit(enum direction direction, const void *text, int len)
{
	struct message *m;
	__u32 n = len;

	if (len <= 0)
		return 0;
	m = bpf_ringbuf_reserve(&messages, sizeof(*m), 0);
	if (!m)
		return 0;
	m->pid = bpf_get_current_pid_tgid() >> 32;
	m->direction = direction;
	m->len = n;
	if (n > TEXT_MAX - 1)
		n = TEXT_MAX - 1;
	/* clang would drop the mask as needless; the verifier needs it, because it does not see the bound through a spill. */
	barrier_var(n);
	n &= TEXT_MAX - 1;
	m->copied = bpf_probe_read_user(m->text, n, text) ? 0 : n;
	bpf_get_current_comm(m->comm, sizeof(m->comm));
	bpf_ringbuf_submit(m, 0);
	return 0;
}

SEC("uprobe/libssl.so.3:SSL_write")
int BPF_KPROBE(on_write, void *ssl, const void *text, int len)
{
	return emit(WRITE, text, len);
}

SEC("uprobe/libssl.so.3:SSL_read")
int BPF_KPROBE(on_read, void *ssl, void *text)
{
	__u64 thread = bpf_get_current_pid_tgid(), address = (__u64)text;

	bpf_map_update_elem(&reading, &thread, &address, BPF_ANY);
	return 0;
}

SEC("uretprobe/libssl.so.3:SSL_read")
int BPF_KRETPROBE(on_read_done, int len)
{
	__u64 thread = bpf_get_current_pid_tgid();
	__u64 *address = bpf_map_lookup_elem(&reading, &thread);

	if (!address)
		return 0;
	emit(READ, (const void *)*address, len);
	bpf_map_delete_elem(&reading, &thread);
	return 0;
}
