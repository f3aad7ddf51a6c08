// A function that calls itself, from several threads at once.
//   recursive THREADS ROUNDS DEPTH [before|within]   awaits a line at first, or also at the bottom of the tenth call
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int rounds, depth, within;

static void wait_for_line(void)
{
	puts("waits");
	fflush(stdout);
	while (getchar() != '\n')
		if (feof(stdin))
			exit(3);
}

int __attribute__((noinline)) deep(int left)
{
	int below = left ? deep(left - 1) : -1;

	if (!left && within && !--within)
		wait_for_line();
	asm volatile("" : "+r"(below));
	return below + 1;
}

static void *work(void *unused)
{
	long sum = 0;

	(void)unused;
	for (int i = 0; i < rounds; i++)
		sum += deep(depth);
	return (void *)sum;
}

int main(int argc, char **argv)
{
	int threads = argc > 3 ? atoi(argv[1]) : 1;
	pthread_t ids[64];

	rounds = argc > 3 ? atoi(argv[2]) : 1;
	depth = argc > 3 ? atoi(argv[3]) : 1;
	if (threads > 64)
		return 2;
	if (argc > 4)
		wait_for_line();
	within = argc > 4 && !strcmp(argv[4], "within") ? 10 : 0;
	for (int i = 0; i < threads; i++)
		if (pthread_create(&ids[i], NULL, work, NULL))
			return 1;
	for (int i = 0; i < threads; i++)
		pthread_join(ids[i], NULL);
	puts("done");
	return 0;
}
