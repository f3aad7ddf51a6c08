// Calls step() as often as it is told, and answers with the number of calls that it has made by then. 0: all the time,
// from a thread of its own, until "stop". Ends at "end".
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>

static atomic_long made;
static atomic_int busy;

long __attribute__((noinline)) step(long number)
{
	asm volatile("" : : : "memory");
	return number * 3 + 1;
}

static void *all_the_time(void *unused)
{
	while (busy) {
		made++;
		step(made);
		if (made % 256 == 0)
			sched_yield();
	}
	return unused;
}

int main(void)
{
	pthread_t thread;
	char line[32];

	puts("ready");
	fflush(stdout);
	while (fgets(line, sizeof(line), stdin) && line[0] != 'e') {
		long count = atol(line);

		if (line[0] == '0') {
			busy = 1;
			pthread_create(&thread, NULL, all_the_time, NULL);
			continue;
		}
		if (line[0] == 's') {
			busy = 0;
			pthread_join(thread, NULL);
		}
		for (; count > 0; count--) {
			made++;
			step(made);
		}
		printf("%ld\n", (long)made);
		fflush(stdout);
	}
	return 0;
}
