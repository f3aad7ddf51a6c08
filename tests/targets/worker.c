// link: -pthread
// Calls work() a known number of times, in several threads, in a forked child if asked, and says how often.
//   worker THREADS CALLS [wait] [fork]
// With `wait` it says "ready" and begins when a line comes on standard input, ends when another comes.
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

static long calls;

__attribute__((noinline, noclone)) long work(long a, long b)
{
	__asm__ volatile("" ::: "memory");
	return a * 3 + b;
}

static void *thread(void *argument)
{
	long sum = (long)argument;

	for (long i = 0; i < calls; i++)
		sum = work(sum, i);
	return (void *)sum;
}

static void run(int threads)
{
	pthread_t ids[threads];

	for (long i = 0; i < threads; i++)
		pthread_create(&ids[i], NULL, thread, (void *)i);
	for (int i = 0; i < threads; i++)
		pthread_join(ids[i], NULL);
	printf("pid %d work %ld\n", getpid(), calls * threads);
	fflush(stdout);
}

static void wait_for_line(void)
{
	char line[16];

	if (!fgets(line, sizeof(line), stdin))
		exit(2);
}

int main(int argc, char **argv)
{
	int threads = atoi(argv[1]), waits = 0, forks = 0;

	calls = atol(argv[2]);
	for (int i = 3; i < argc; i++) {
		waits |= !strcmp(argv[i], "wait");
		forks |= !strcmp(argv[i], "fork");
	}
	if (waits) {
		puts("ready");
		fflush(stdout);
		wait_for_line();
	}
	if (forks) {
		pid_t child = fork();
		if (child == 0) {
			run(threads);
			_exit(0);
		}
		waitpid(child, NULL, 0);
	}
	run(threads);
	if (waits)
		wait_for_line();
	return 0;
}
