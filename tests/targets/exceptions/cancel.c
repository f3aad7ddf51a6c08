// link: -pthread
// Threads cancelled and ended in the middle of probed frames: in a blocked system call, asynchronously in a loop, by
// pthread_exit() from the bottom; their cleanup handlers call probed functions.
//   cancel ROUNDS: says how the threads ended
#define _GNU_SOURCE
#include "counted.h"
#include <pthread.h>
#include <stdlib.h>
#include <unistd.h>

static long cleaned;
COUNTED(quiet);
COUNTED(deep);
static int silent[2];

PROBED long quiet(long a)
{
	ENTER(quiet);
	LEAVE(quiet);
	return a * 3 + 1;
}

static void cleanup(void *argument)
{
	__atomic_add_fetch(&cleaned, quiet((long)argument) % 2 + 1, __ATOMIC_RELAXED);
}

PROBED long deep(long depth, long how)
{
	long sum = 0;
	char byte;

	ENTER(deep);
	pthread_cleanup_push(cleanup, (void *)depth);
	if (depth > 0)
		sum = deep(depth - 1, how) + 1;
	else if (how == 0)
		sum = read(silent[0], &byte, 1);
	else if (how == 1)
		for (pthread_setcanceltype(PTHREAD_CANCEL_ASYNCHRONOUS, NULL);;)
			__asm__ volatile("" ::: "memory");
	else if (how == 2)
		pthread_exit((void *)77);
	else
		for (;;)
			usleep(1000);
	pthread_cleanup_pop(0);
	LEAVE(deep);
	return sum;
}

static void *thread(void *argument)
{
	return (void *)deep(10, (long)argument);
}

int main(int argc, char **argv)
{
	long rounds = atol(argv[1]), cancelled = 0, left = 0;

	if (pipe(silent))
		return 1;
	for (long i = 0; i < rounds; i++) {
		pthread_t ids[4];
		void *result;
		for (long how = 0; how < 4; how++)
			pthread_create(&ids[how], NULL, thread, (void *)how);
		for (long how = 0; how < 4; how++) {
			/* All of them get as deep as they go. */
			while (__atomic_load_n(&counted_deep.calls, __ATOMIC_RELAXED) < (i + 1) * 44)
				usleep(50);
			if (how != 2)
				pthread_cancel(ids[how]);
			pthread_join(ids[how], &result);
			cancelled += result == PTHREAD_CANCELED;
			left += result == (void *)77;
		}
	}
	printf("cancelled %ld left %ld cleaned %ld\n", cancelled, left, cleaned);
	REPORT(deep);
	REPORT(quiet);
	return 0;
}
