// link: -pthread
// Coroutines by makecontext: they yield from inside of probed frames, end through uc_link, and move from thread to thread
// between two returns.
//   contexts ROUNDS: says what came back, and how often each function was called
#include "counted.h"
#include <pthread.h>
#include <stdlib.h>
#include <ucontext.h>

#define COROUTINES 5
#define STACK 65536

static ucontext_t resumer[COROUTINES], self[COROUTINES];
static long result[COROUTINES], ended[COROUTINES];
COUNTED(deep);
COUNTED(quiet);
COUNTED(resume);
static pthread_barrier_t turn;

PROBED long quiet(long a)
{
	ENTER(quiet);
	LEAVE(quiet);
	return a * 3 + 1;
}

/* Yields at every level, on the way down and on the way up. */
PROBED long deep(int which, long depth)
{
	long sum = quiet(depth);

	ENTER(deep);
	swapcontext(&self[which], &resumer[which]);
	if (depth > 0)
		sum += deep(which, depth - 1);
	swapcontext(&self[which], &resumer[which]);
	LEAVE(deep);
	return sum + 1;
}

static void body(int which)
{
	result[which] += deep(which, which + 3);
	ended[which] = 1;
}

static void begin(int which)
{
	getcontext(&self[which]);
	if (!self[which].uc_stack.ss_sp)
		self[which].uc_stack.ss_sp = calloc(1, STACK);
	self[which].uc_stack.ss_size = STACK;
	self[which].uc_link = &resumer[which];
	ended[which] = 0;
	makecontext(&self[which], (void (*)(void))body, 1, which);
}

PROBED long resume(int which)
{
	long result;

	ENTER(resume);
	swapcontext(&resumer[which], &self[which]);
	result = quiet(which);
	LEAVE(resume);
	return result;
}

static void in_one_thread(long rounds)
{
	long running;

	for (long i = 0; i < rounds; i++) {
		for (int which = 0; which < COROUTINES; which++)
			begin(which);
		do {
			running = 0;
			for (int which = 0; which < COROUTINES; which++) {
				if (!ended[which])
					resume(which);
				running += !ended[which];
			}
		} while (running);
	}
}

/* Two threads resume the same coroutine in turns. */
static void *in_two_threads(void *argument)
{
	long me = (long)argument;

	for (long step = 0;; step++) {
		if (step % 2 == me)
			resume(0);
		pthread_barrier_wait(&turn);
		if (ended[0])
			return NULL;
		pthread_barrier_wait(&turn);
	}
}

int main(int argc, char **argv)
{
	long rounds = atol(argv[1]);
	pthread_t threads[2];

	in_one_thread(rounds);
	for (int which = 0; which < COROUTINES; which++)
		printf("result %ld\n", result[which]);
	pthread_barrier_init(&turn, NULL, 2);
	for (long i = 0; i < rounds / 4; i++) {
		begin(0);
		for (long k = 0; k < 2; k++)
			pthread_create(&threads[k], NULL, in_two_threads, (void *)k);
		for (int k = 0; k < 2; k++)
			pthread_join(threads[k], NULL);
	}
	printf("moved %ld\n", result[0]);
	REPORT(deep);
	REPORT(quiet);
	REPORT(resume);
	return 0;
}
