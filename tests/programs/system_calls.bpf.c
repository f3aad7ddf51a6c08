// SPDX-License-Identifier: MIT OR Apache-2.0
// Every kind of section for system calls, on kill(2); results that programs choose.
#include <linux/bpf.h>
#include <linux/ptrace.h>
#include <bpf/bpf_helpers.h>
#include <stddef.h>

char LICENSE[] SEC("license") = "Dual MIT/GPL";

#define KILL 62

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 32);
	__type(key, __u32);
	__type(value, __u64);
} seen SEC(".maps");

struct enter {
	__u64 common;
	long id;
	unsigned long args[6];
};

struct leave {
	__u64 common;
	long id;
	long ret;
};

static void put(__u32 key, __u64 value)
{
	bpf_map_update_elem(&seen, &key, &value, 0);
}

static __u64 word(const void *registers, size_t offset)
{
	__u64 value = 0;

	bpf_probe_read_kernel(&value, sizeof(value), registers + offset);
	return value;
}

SEC("tp/syscalls/sys_enter_kill")
int enter_kill(struct enter *ctx)
{
	put(0, ctx->id);
	put(1, ctx->args[0]);
	put(2, ctx->args[1]);
	return 0;
}

SEC("tracepoint/syscalls/sys_exit_kill")
int exit_kill(struct leave *ctx)
{
	put(3, ctx->id);
	put(4, ctx->ret);
	return 0;
}

SEC("raw_tp/sys_enter")
int raw_enter(struct bpf_raw_tracepoint_args *ctx)
{
	const void *registers = (void *)ctx->args[0];

	if (ctx->args[1] != KILL)
		return 0;
	put(5, word(registers, offsetof(struct pt_regs, rdi)));
	put(6, word(registers, offsetof(struct pt_regs, rsi)));
	put(7, word(registers, offsetof(struct pt_regs, orig_rax)));
	put(8, word(registers, offsetof(struct pt_regs, rax)));
	return 0;
}

SEC("raw_tracepoint/sys_exit")
int raw_exit(struct bpf_raw_tracepoint_args *ctx)
{
	const void *registers = (void *)ctx->args[0];

	if (word(registers, offsetof(struct pt_regs, orig_rax)) != KILL)
		return 0;
	put(9, ctx->args[1]);
	put(10, word(registers, offsetof(struct pt_regs, rax)));
	return 0;
}

SEC("ksyscall/kill")
int on_kill(struct pt_regs *ctx)
{
	put(11, word((void *)ctx->rdi, offsetof(struct pt_regs, rdi)));
	put(12, word((void *)ctx->rdi, offsetof(struct pt_regs, rsi)));
	put(13, bpf_get_current_pid_tgid() >> 32);
	return 0;
}

SEC("kretsyscall/kill")
int on_kill_return(struct pt_regs *ctx)
{
	put(14, ctx->rax);
	return 0;
}

// The call is not made.
SEC("ksyscall/getpgid")
int instead_of_getpgid(struct pt_regs *ctx)
{
	bpf_override_return(ctx, 4242);
	return 0;
}

// The end of a call that is not made is an end all the same.
SEC("tp/syscalls/sys_exit_getpgid")
int exit_getpgid(struct leave *ctx)
{
	put(15, ctx->ret);
	return 0;
}

// The call is made, its result is another.
SEC("kretsyscall/getsid")
int after_getsid(struct pt_regs *ctx)
{
	bpf_override_return(ctx, 77);
	return 0;
}

// The arguments of the call are those in the registers, which a program that may write memory can change.
SEC("raw_tp/sys_enter")
int change_arguments(struct bpf_raw_tracepoint_args *ctx)
{
	__u64 none = 0;

	if (ctx->args[1] != 121 /* getpgid */ && ctx->args[1] != 140 /* getpriority */)
		return 0;
	// Whoever asks for process 1's priority is told its own.
	if (word((void *)ctx->args[0], offsetof(struct pt_regs, rsi)) == 1)
		bpf_probe_write_user((void *)ctx->args[0] + offsetof(struct pt_regs, rsi), &none, sizeof(none));
	return 0;
}
