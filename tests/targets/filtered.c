// SPDX-License-Identifier: MIT OR Apache-2.0
// Installs a seccomp filter that kills at every call but those that the rest needs, then makes threads: `filtered prctl`, or `filtered`
// for seccomp(2).
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <pthread.h>
#include <stddef.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

static const int allowed[] = {
	SYS_write,	   SYS_clone3, SYS_clone,   SYS_mmap, SYS_mprotect,   SYS_munmap, SYS_futex,	     SYS_rt_sigprocmask,
	SYS_set_robust_list, SYS_rseq,   SYS_madvise, SYS_exit, SYS_exit_group, SYS_brk,	  SYS_rt_sigaction, SYS_getrandom,
};

#define COUNT (sizeof(allowed) / sizeof(*allowed))

static void *work(void *unused)
{
	if (write(1, "thread\n", 7) != 7)
		_exit(7);
	return unused;
}

int main(int argc, char **argv)
{
	struct sock_filter filter[2 * COUNT + 2];
	struct sock_fprog program = { 2 * COUNT + 2, filter };
	pthread_t thread;

	(void)argv;
	filter[0] = (struct sock_filter)BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr));
	for (unsigned int i = 0; i < COUNT; i++) {
		filter[2 * i + 1] = (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, allowed[i], 0, 1);
		filter[2 * i + 2] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW);
	}
	filter[2 * COUNT + 1] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS);
	if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0)
		return 9;
	if (argc > 1 ? prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) :
		       syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, 0, &program))
		return 8;
	for (int i = 0; i < 3; i++)
		if (pthread_create(&thread, NULL, work, NULL) != 0 || pthread_join(thread, NULL) != 0)
			return 6;
	return 0;
}
