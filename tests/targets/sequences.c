// link: -pthread
// Threads whose `struct rseq` names a restartable sequence of a probe: of one that has ended, and of the main one.
#include <pthread.h>
#include <sched.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

extern const ptrdiff_t __rseq_offset __attribute__((weak));
extern const unsigned int __rseq_size __attribute__((weak));

static volatile uint64_t *ended;

__attribute__((noinline)) long work(long a, long b) { __asm__ volatile("nop\nnop\nnop\nnop\nnop" ::: "memory"); return a + b; }
__attribute__((noinline)) long other(long a, long b) { __asm__ volatile("nop\nnop\nnop\nnop\nnop" ::: "memory"); return a - b; }

/* The word behind cpu_id_start and cpu_id. */
static volatile uint64_t *word(void)
{
	return (volatile uint64_t *)((char *)__builtin_thread_pointer() + __rseq_offset + 8);
}

/* Calls until the word is set: an interruption clears it. */
static int set(long (*function)(long, long))
{
	for (int i = 0; i < 1000000; i++) {
		function(i, 1);
		if (*word())
			return 1;
	}
	return 0;
}

static void *call(void *function)
{
	ended = word();
	return (void *)(intptr_t)set((long (*)(long, long))function);
}

static void *yield(void *unused)
{
	for (int i = 0; i < 10000; i++)
		sched_yield();
	return unused;
}

int main(void)
{
	char line[32];

	puts(&__rseq_size && __rseq_size ? "ready" : "none");
	fflush(stdout);
	while (fgets(line, sizeof(line), stdin) && strncmp(line, "end", 3)) {
		long (*function)(long, long) = strncmp(line, "work", 4) ? other : work;
		pthread_t thread;
		void *was_set = 0;

		if (!strncmp(line, "look", 4)) {
			/* The memory of a thread that has ended is kept for the next one. */
			uint64_t words[] = { *ended, *word() };

			pthread_create(&thread, 0, yield, 0);
			pthread_join(thread, 0);
			printf("%d %d\n", words[0] != 0, words[1] != 0);
		} else {
			pthread_create(&thread, 0, call, (void *)function);
			pthread_join(thread, &was_set);
			printf("%d %d\n", was_set && *ended, set(function));
		}
		fflush(stdout);
	}
	return 0;
}
