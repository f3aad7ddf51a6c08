// Leaves work() by siglongjmp out of a signal handler, again and again, then calls after() 1000 times from the same frame and 1000
// times from frames below it.
#define _GNU_SOURCE
#include <setjmp.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#define NOT_INLINE __attribute__((noinline, noclone))

NOT_INLINE long work(long a)
{
	__asm__ volatile("" ::: "memory");
	return a + 1;
}

NOT_INLINE long after(long a)
{
	__asm__ volatile("" ::: "memory");
	return a + 1;
}

static sigjmp_buf jump;

static void handler(int signal)
{
	siglongjmp(jump, 1);
}

NOT_INLINE static long below(long a)
{
	char room[8192];

	memset(room, 0, sizeof(room));
	__asm__ volatile("" ::"r"(room) : "memory");
	return after(a) + room[a % 100];
}

int main(void)
{
	volatile int jumps = 0;
	volatile long sum = 0;

	signal(SIGALRM, handler);
	sigsetjmp(jump, 1);
	if (jumps++ < 200) {
		ualarm(300, 0);
		for (;;)
			sum = work(sum);
	}
	sum = 0;
	for (int i = 0; i < 1000; i++)
		sum = after(sum);
	for (int i = 0; i < 1000; i++)
		sum = below(sum);
	printf("%ld\n", sum);
	return 0;
}
