// link: -pthread
// Its first thread ends at once. Another says "ready", calls work() 100 times when a line comes, and ends when another comes.
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>

__attribute__((noinline, noclone)) long work(long a)
{
	__asm__ volatile("" ::: "memory");
	return a + 1;
}

static void *thread(void *argument)
{
	char line[16];
	long sum = 0;

	puts("ready");
	fflush(stdout);
	if (!fgets(line, sizeof(line), stdin))
		exit(2);
	for (int i = 0; i < 100; i++)
		sum = work(sum);
	printf("%ld\n", sum);
	fflush(stdout);
	if (!fgets(line, sizeof(line), stdin))
		exit(2);
	exit(0);
	return argument;
}

int main(void)
{
	pthread_t id;

	if (pthread_create(&id, NULL, thread, NULL))
		return 1;
	pthread_exit(NULL);
}
