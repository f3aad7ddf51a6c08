// link: -pthread
// longjmp of every kind over frames whose return is probed: from the bottom of deep calls, again and again at the same depth,
// out of signal handlers on the stack and on an alternate one, in threads.
//   jumps ROUNDS: says what came back, and how often each function was called
#include "counted.h"
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdlib.h>

static _Thread_local jmp_buf target;
static _Thread_local sigjmp_buf signal_target;
COUNTED(deep);
COUNTED(quiet);
COUNTED(landing);
COUNTED(nested);

PROBED long quiet(long a)
{
	ENTER(quiet);
	LEAVE(quiet);
	return a * 3 + 1;
}

PROBED long deep(long depth, int how)
{
	long sum = 1;

	ENTER(deep);
	if (depth > 0)
		sum = deep(depth - 1, how) + quiet(depth);
	else if (how == 1)
		longjmp(target, 7);
	else if (how == 2)
		raise(SIGUSR1);
	else if (how == 3)
		raise(SIGUSR2);
	LEAVE(deep);
	return sum;
}

PROBED long landing(long depth, int how)
{
	volatile long sum = quiet(how);

	ENTER(landing);
	if (how >= 2) {
		if (sigsetjmp(signal_target, 1) == 0)
			sum += deep(depth, how);
		else
			sum += quiet(how);
	} else if (setjmp(target) == 0) {
		sum += deep(depth, how);
	} else {
		sum += quiet(100);
	}
	LEAVE(landing);
	return sum;
}

/* A landing inside of frames that stay. */
PROBED long nested(long depth, int how)
{
	long sum;

	ENTER(nested);
	sum = depth == 0 ? landing(9, how) + landing(40, how) : nested(depth - 1, how) + quiet(depth);
	LEAVE(nested);
	return sum;
}

static void on(int signal)
{
	siglongjmp(signal_target, signal);
}

static void *work(void *argument)
{
	long rounds = *(long *)argument, sum = 0;
	stack_t alternate = { .ss_sp = malloc(65536), .ss_size = 65536 };

	sigaltstack(&alternate, NULL);
	for (long i = 0; i < rounds; i++)
		sum += nested(i % 12, i % 4) + deep(i % 50, 0);
	return (void *)sum;
}

int main(int argc, char **argv)
{
	long rounds = atol(argv[1]);
	struct sigaction here = { .sa_handler = on }, there = { .sa_handler = on, .sa_flags = SA_ONSTACK };
	pthread_t threads[2];
	void *sum;

	sigaction(SIGUSR1, &here, NULL);
	sigaction(SIGUSR2, &there, NULL);
	for (int i = 0; i < 2; i++)
		pthread_create(&threads[i], NULL, work, &rounds);
	printf("sum %ld\n", (long)work(&rounds));
	for (int i = 0; i < 2; i++) {
		pthread_join(threads[i], &sum);
		printf("sum %ld\n", (long)sum);
	}
	REPORT(deep);
	REPORT(quiet);
	REPORT(landing);
	REPORT(nested);
	return 0;
}
