// SPDX-License-Identifier: MIT OR Apache-2.0
// Ends threads without a stack, forbids itself what we might do in it, makes children and odd calls: as argv[1] says.
#define _GNU_SOURCE
#include <pthread.h>
#include <semaphore.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#define THREADS 200
#define MARK 0x5eed

static sem_t ended;

static void *thread(void *unused)
{
	getppid();
	sem_post(&ended);
	return unused;
}

/* Threads that nobody joins. */
static int detached(void)
{
	pthread_attr_t attributes;

	sem_init(&ended, 0, 0);
	pthread_attr_init(&attributes);
	pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
	for (int i = 0; i < THREADS; i++) {
		pthread_t it;

		if (pthread_create(&it, &attributes, thread, 0))
			return 1;
		sem_wait(&ended);
	}
	return 0;
}

/* Until somebody sends a line, if argv[2] wants that. */
static int waits;

static void wait_for_line(void)
{
	char line[8];

	if (!waits)
		return;
	write(1, "ready\n", 6);
	read(0, line, sizeof(line));
}

/* The time stamp counter. */
static int counter(void)
{
	if (prctl(PR_SET_TSC, PR_TSC_SIGSEGV, 0, 0, 0))
		return 1;
	wait_for_line();
	for (int i = 0; i < 3; i++)
		getppid();
	return 0;
}

/* All calls but a few: nothing may be made on behalf of us. */
static int strict(void)
{
	if (prctl(PR_SET_SECCOMP, 1))
		return 1;
	write(1, "done\n", 5);
	syscall(SYS_exit, 0);
	return 1;
}

static volatile char selector;
static volatile int handed;

static void hand(int signal)
{
	selector = 0;
	handed++;
	(void)signal;
}

/* Calls come to the process itself while `selector` says so. */
static int dispatch(void)
{
	signal(SIGSYS, hand);
	if (prctl(59 /* PR_SET_SYSCALL_USER_DISPATCH */, 1, 0, 0, &selector))
		return 1;
	wait_for_line();
	for (int i = 0; i < 3; i++) {
		selector = 1;
		getppid();
		selector = 0;
	}
	return handed != 3;
}

/* rcx and r11 behind calls: the address, and the flags. */
static int registers(void)
{
	long bad = 0;

	for (int i = 0; i < 3; i++) {
		unsigned long here, rcx, r11, flags;
		volatile long number = SYS_getpgid;

		__asm__ volatile("mov $121, %%eax\n\tsyscall\n1:\n\tcmp $-4096, %%rax\n\tmov %%rcx, %0\n\tmov %%r11, %1\n\t"
				 "lea 1b(%%rip), %2\n\tpushfq\n\tpop %3"
				 : "=&r"(rcx), "=&r"(r11), "=&r"(here), "=&r"(flags)
				 : "D"(0L)
				 : "rax", "rcx", "r11", "memory");
		bad += rcx != here || (r11 & ~0xcd5ul) != (flags & ~0xcd5ul);
		__asm__ volatile("mov %4, %%rax\n\tsyscall\n1:\n\tcmp $-4096, %%rax\n\tmov %%rcx, %0\n\tmov %%r11, %1\n\t"
				 "lea 1b(%%rip), %2\n\tpushfq\n\tpop %3"
				 : "=&r"(rcx), "=&r"(r11), "=&r"(here), "=&r"(flags)
				 : "m"(number), "D"(0L)
				 : "rax", "rcx", "r11", "memory");
		bad += rcx != here || (r11 & ~0xcd5ul) != (flags & ~0xcd5ul);
	}
	return bad != 0;
}

int main(int argc, char **argv)
{
	const char *way = argc > 1 ? argv[1] : "";
	int failed = 1;

	waits = argc > 2;
	setvbuf(stdout, 0, _IONBF, 0);
	if (!strcmp(way, "detached"))
		failed = detached();
	if (!strcmp(way, "counter"))
		failed = counter();
	if (!strcmp(way, "strict"))
		failed = strict();
	if (!strcmp(way, "dispatch"))
		failed = dispatch();
	if (!strcmp(way, "registers"))
		failed = registers();
	if (!strcmp(way, "children")) {
		printf("%d\n", getpid());
		failed = system("exit 0") | system("exit 0");
		for (int i = 0; i < 10; i++)
			getppid();
	}
	if (!strcmp(way, "upper"))
		failed = syscall(0xffffffff0000006eul, MARK) != getppid();
	if (!strcmp(way, "none"))
		failed = syscall(-1l, MARK) != -1;
	if (!strcmp(way, "order"))
		failed = getpgid(0) < 0;
	puts(failed ? "failed" : "done");
	return failed;
}
