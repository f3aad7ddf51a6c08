// SPDX-License-Identifier: MIT OR Apache-2.0
// Every line that an interactive bash reads.
#include <linux/bpf.h>
#include <linux/ptrace.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_tracing.h>

char LICENSE[] SEC("license") = "Dual MIT/GPL";

struct line {
	__u32 pid;
	char comm[16];
	char text[80];
};

/* Keeps the type in the object's BTF, for `beeline events --type line`. */
const struct line *unused_line __attribute__((unused));

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 64 * 1024);
} lines SEC(".maps");

SEC("uretprobe//bin/bash:readline")
int BPF_KRETPROBE(on_line, const void *text)
{
	struct line *line;

	if (!text)
		return 0;
	line = bpf_ringbuf_reserve(&lines, sizeof(*line), 0);
	if (!line)
		return 0;
	line->pid = bpf_get_current_pid_tgid() >> 32;
	bpf_get_current_comm(&line->comm, sizeof(line->comm));
	bpf_probe_read_user_str(&line->text, sizeof(line->text), text);
	bpf_ringbuf_submit(line, 0);
	return 0;
}
