// link: -pthread
// Many threads, most of them blocked in different system calls, one calling work() all the time.
//   sleepers THREADS [eintr]
// With `eintr` it takes an interrupted epoll_wait(), the one call here that the kernel never restarts, for what it is, as
// programs have to. Says "ready"; on a line on standard input it stops, checks that no blocked call was disturbed, and says so.
#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <unistd.h>

static volatile int stop;
static int bears_eintr;
static long disturbed;
static int pipes[2];

__attribute__((noinline, noclone)) long work(long a, long b)
{
	__asm__ volatile("" ::: "memory");
	return a * 3 + b;
}

static void check(long result, const char *what)
{
	if (result < 0) {
		fprintf(stderr, "%s was disturbed: errno %d\n", what, errno);
		__sync_fetch_and_add(&disturbed, 1);
	}
}

static void *blocked(void *argument)
{
	char byte;
	struct epoll_event event = { .events = EPOLLIN };
	struct pollfd fd = { .fd = pipes[0], .events = POLLIN };
	int epoll = epoll_create1(0), result;

	epoll_ctl(epoll, EPOLL_CTL_ADD, pipes[0], &event);
	switch ((long)argument % 4) {
	case 0: check(read(pipes[0], &byte, 1), "read"); break;
	case 1: check(poll(&fd, 1, -1), "poll"); break;
	case 2:
		do
			result = epoll_wait(epoll, &event, 1, -1);
		while (result < 0 && errno == EINTR && bears_eintr);
		check(result, "epoll_wait");
		break;
	case 3:
		while (!stop)
			check(usleep(100000), "usleep");
	}
	return NULL;
}

static void *busy(void *argument)
{
	long sum = 0;

	while (!stop) {
		sum = work(sum, 1);
		if ((sum & 63) == 0)
			usleep(50);
	}
	return (void *)sum;
}

int main(int argc, char **argv)
{
	int threads = atoi(argv[1]);

	bears_eintr = argc > 2;
	pthread_t ids[threads + 1];
	char line[16];

	if (pipe(pipes))
		return 1;
	for (long i = 0; i < threads; i++)
		pthread_create(&ids[i], NULL, blocked, (void *)i);
	pthread_create(&ids[threads], NULL, busy, NULL);
	puts("ready");
	fflush(stdout);
	if (!fgets(line, sizeof(line), stdin))
		return 2;
	stop = 1;
	for (int i = 0; i < threads; i++)
		if (write(pipes[1], "x", 1) != 1)
			return 3;
	for (int i = 0; i <= threads; i++)
		pthread_join(ids[i], NULL);
	printf("disturbed %ld\n", disturbed);
	return disturbed != 0;
}
