// link: -lrt -pthread
// Signals ten thousand times a second, handled on an alternate stack by the same functions that they interrupt.
//   signals COUNT: runs until so many were handled; says whether everything was computed as it should
#define _GNU_SOURCE
#include "counted.h"
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

static volatile long handled, wrong, wanted;
COUNTED(quiet);
COUNTED(deep);
static _Thread_local char *low, *high;

PROBED long quiet(long a)
{
	ENTER(quiet);
	LEAVE(quiet);
	return a * 3 + 1;
}

PROBED long deep(long depth)
{
	long sum;

	ENTER(deep);
	sum = depth == 0 ? 1 : deep(depth - 1) + quiet(depth);
	LEAVE(deep);
	return sum;
}

static long expected(long depth)
{
	return 1 + 3 * depth * (depth + 1) / 2 + depth;
}

static void on(int signal)
{
	char here;

	(void)signal;
	if (&here < low || &here >= high)
		wrong++;
	if (deep(5) != expected(5))
		wrong++;
	__atomic_add_fetch(&handled, 1, __ATOMIC_RELAXED);
}

static void *work(void *argument)
{
	stack_t alternate = { .ss_size = 65536 };
	struct sigevent event;
	struct itimerspec period = { { 0, 100000 }, { 0, 100000 } };
	timer_t timer;

	(void)argument;
	low = alternate.ss_sp = malloc(alternate.ss_size);
	high = low + alternate.ss_size;
	sigaltstack(&alternate, NULL);
	memset(&event, 0, sizeof event);
	event.sigev_notify = SIGEV_THREAD_ID;
	event.sigev_signo = SIGRTMIN;
	event._sigev_un._tid = syscall(SYS_gettid);
	if (timer_create(CLOCK_MONOTONIC, &event, &timer) || timer_settime(timer, 0, &period, NULL))
		abort();
	for (long i = 0; handled < wanted; i++) {
		char text[32];
		if (deep(i % 30) != expected(i % 30))
			wrong++;
		snprintf(text, sizeof text, "%ld", quiet(i));
		if (atol(text) != i * 3 + 1)
			wrong++;
	}
	timer_delete(timer);
	return NULL;
}

int main(int argc, char **argv)
{
	struct sigaction action = { .sa_handler = on, .sa_flags = SA_ONSTACK | SA_RESTART };
	pthread_t thread;

	wanted = atol(argv[1]);
	sigaction(SIGRTMIN, &action, NULL);
	pthread_create(&thread, NULL, work, NULL);
	work(NULL);
	pthread_join(thread, NULL);
	printf("wrong %ld\n", wrong);
	REPORT(deep);
	REPORT(quiet);
	return 0;
}
