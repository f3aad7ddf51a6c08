// link: -pthread -ldl
// Loads libraries, has threads call into each, unloads them, again and again.
//   loads CYCLES THREADS CALLS [wait] [new] [fork] [spawn] [busy] LIBRARY...
// With `wait` it says "ready" and begins when a line comes, and ends when another comes; `new`: in name spaces of their own; `fork`:
// in a child; `spawn`: while a thread of its own runs programs; `busy`: while two threads call busy_work(). Says how often those functions
// were called, and stops with status 3 when a result is wrong.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <pthread.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

static long calls, total;
static long (*function)(long);

static void *thread(void *argument)
{
	long first = function(0), step = function(1) - first;

	for (long i = 2; i < calls; i++)
		if (function(i) != first + i * step)
			exit(3);
	return argument;
}

static void cycle(const char *library, int threads, int new)
{
	pthread_t ids[threads];
	void *handle;

#ifdef LM_ID_NEWLM
	handle = new ? dlmopen(LM_ID_NEWLM, library, RTLD_NOW) : dlopen(library, RTLD_NOW);
#else
	handle = dlopen(library, RTLD_NOW);
#endif
	if (!handle) {
		fprintf(stderr, "%s\n", dlerror());
		exit(4);
	}
	function = (long (*)(long))dlsym(handle, "loaded_work");
	for (int i = 0; i < threads; i++)
		if (pthread_create(&ids[i], NULL, thread, NULL))
			exit(5);
	for (int i = 0; i < threads; i++)
		pthread_join(ids[i], NULL);
	total += 2 + threads * calls;
	if (dlclose(handle))
		exit(6);
}

static void run(char **libraries, int count, long cycles, int threads, int new)
{
	for (long i = 0; i < cycles; i++) {
		void *room = NULL;

		// Now and then something else lies where the library was.
		if (i % 7 == 6)
			room = mmap(NULL, 4096 * (1 + i % 64), PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
		cycle(libraries[i % count], threads, new);
		if (room)
			munmap(room, 4096 * (1 + i % 64));
	}
}

static void say(void)
{
	printf("calls %ld\n", total);
	fflush(stdout);
}

static volatile int over;

/* Its thread stands in the kernel until the child has executed its program. */
static void *spawn(void *argument)
{
	char *words[] = { "true", NULL }, *none[] = { NULL };

	while (!over) {
		pid_t child;
		int status;

		if (posix_spawn(&child, "/bin/true", NULL, NULL, words, none))
			exit(8);
		if (waitpid(child, &status, 0) != child || status)
			exit(9);
	}
	return argument;
}

__attribute__((noinline, noclone)) long busy_work(long a)
{
	__asm__ volatile("" ::: "memory");
	return a + 1;
}

static void *busy(void *argument)
{
	long n = 0;

	while (!over) {
		if (busy_work(n) != n + 1)
			exit(3);
		n++;
		if (n % 1000 == 0)
			usleep(100);
	}
	__atomic_fetch_add((long *)argument, n, __ATOMIC_RELAXED);
	return NULL;
}

static void wait_for_line(void)
{
	char line[16];

	if (!fgets(line, sizeof(line), stdin))
		exit(2);
}

int main(int argc, char **argv)
{
	int threads = atoi(argv[2]), waits = 0, new = 0, forks = 0, spawns = 0, at = 4;
	long cycles = atol(argv[1]);
	pthread_t spawner, busies[2];
	int is_busy = 0;

	calls = atol(argv[3]);
	for (; at < argc && argv[at][0] != '/'; at++) {
		waits |= !strcmp(argv[at], "wait");
		new |= !strcmp(argv[at], "new");
		forks |= !strcmp(argv[at], "fork");
		is_busy |= !strcmp(argv[at], "busy");
		spawns |= !strcmp(argv[at], "spawn");
	}
	if (waits) {
		puts("ready");
		fflush(stdout);
		wait_for_line();
	}
	if (forks) {
		pid_t child = fork();
		int status;

		if (child == 0) {
			run(argv + at, argc - at, cycles, threads, new);
			say();
			_exit(0);
		}
		if (waitpid(child, &status, 0) != child || status)
			return 7;
	}
	if (spawns && pthread_create(&spawner, NULL, spawn, NULL))
		return 5;
	for (int i = 0; is_busy && i < 2; i++)
		if (pthread_create(&busies[i], NULL, busy, &total))
			return 5;
	run(argv + at, argc - at, cycles, threads, new);
	over = 1;
	for (int i = 0; is_busy && i < 2; i++)
		pthread_join(busies[i], NULL);
	say();
	if (spawns)
		pthread_join(spawner, NULL);
	if (waits)
		wait_for_line();
	return 0;
}
