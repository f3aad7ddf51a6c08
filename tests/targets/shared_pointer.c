// Makes a thread without a thread pointer of its own, as no C library does, which makes system calls as the first one does. Argument "wait":
// says "ready" before, and waits for a line.
#define _GNU_SOURCE
#include <sched.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>

#define STACK (64 << 10)

static volatile long wrong, ended, waits, rounds = 200000;

static inline __attribute__((always_inline)) long call(long number, long a)
{
	long result;

	__asm__ volatile("syscall" : "=a"(result) : "a"(number), "D"(a) : "rcx", "r11", "memory");
	return result;
}

__attribute__((noinline, used)) static void body(void)
{
	long parent = call(SYS_getppid, 0), self = call(SYS_gettid, 0);

	while (waits)
		call(SYS_sched_yield, 0);
	for (long i = 0; i < rounds; i++)
		if (call(SYS_getppid, 0) != parent || call(SYS_gettid, 0) != self || call(SYS_close, -1) != -9)
			wrong = 1;
	__atomic_fetch_add(&ended, 1, __ATOMIC_SEQ_CST);
}

static void thread(void)
{
	char *stack = mmap(NULL, STACK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	long flags = CLONE_VM | CLONE_FS | CLONE_FILES | CLONE_SIGHAND | CLONE_THREAD | CLONE_SYSVSEM;
	long result;
	register long r10 __asm__("r10") = 0;

	__asm__ volatile("syscall\n\ttest %%rax, %%rax\n\tjnz 1f\n\txor %%ebp, %%ebp\n\tcall body\n\t"
			 "mov $60, %%eax\n\txor %%edi, %%edi\n\tsyscall\n1:"
			 : "=a"(result)
			 : "a"(SYS_clone), "D"(flags), "S"(stack + STACK), "d"(0), "r"(r10)
			 : "rcx", "r11", "memory");
}

int main(int argc, char **argv)
{
	char line[16];

	waits = argc > 1 && !strcmp(argv[1], "wait");
	for (int i = 0; i < 3; i++)
		thread();
	if (waits) {
		puts("ready");
		fflush(stdout);
		if (!fgets(line, sizeof(line), stdin))
			return 2;
		waits = 0;
	}
	body();
	while (ended < 4)
		call(SYS_sched_yield, 0);
	puts(wrong ? "wrong" : "right");
	return 0;
}
