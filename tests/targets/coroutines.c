// Coroutines on stacks of their own that hand over to each other from inside of one function.
//   coroutines ROUNDS: says how often each of three ran
#include <stdio.h>
#include <stdlib.h>
#include <ucontext.h>

#define COROUTINES 3

static ucontext_t scheduler, contexts[COROUTINES];
static long runs[COROUTINES];

__attribute__((noinline, noclone)) void work(ucontext_t *from, ucontext_t *to)
{
	swapcontext(from, to);
	__asm__ volatile("" ::: "memory");
}

static void coroutine(int which)
{
	for (;;) {
		runs[which]++;
		work(&contexts[which], &scheduler);
	}
}

int main(int argc, char **argv)
{
	long rounds = atol(argv[1]);

	for (int i = 0; i < COROUTINES; i++) {
		getcontext(&contexts[i]);
		contexts[i].uc_stack.ss_sp = malloc(65536);
		contexts[i].uc_stack.ss_size = 65536;
		makecontext(&contexts[i], (void (*)(void))coroutine, 1, i);
	}
	for (long i = 0; i < rounds; i++)
		work(&scheduler, &contexts[i % COROUTINES]);
	printf("runs %ld %ld %ld\n", runs[0], runs[1], runs[2]);
	return 0;
}
