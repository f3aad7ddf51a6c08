// link: -pthread -ldl
// Loads libraries, has threads call into each, unloads them, again and again.
//   loads CYCLES THREADS CALLS [wait] [new] [fork] LIBRARY...
// With `wait` it says "ready" and begins when a line comes, and ends when another comes; `new`: in name spaces of their own; `fork`:
// in a child. Says how often loaded_work() was called, and stops with status 3 when a result is wrong.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <pthread.h>
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
	printf("calls %ld\n", total);
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
	int threads = atoi(argv[2]), waits = 0, new = 0, forks = 0, at = 4;
	long cycles = atol(argv[1]);

	calls = atol(argv[3]);
	for (; at < argc && argv[at][0] != '/'; at++) {
		waits |= !strcmp(argv[at], "wait");
		new |= !strcmp(argv[at], "new");
		forks |= !strcmp(argv[at], "fork");
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
			_exit(0);
		}
		if (waitpid(child, &status, 0) != child || status)
			return 7;
	}
	run(argv + at, argc - at, cycles, threads, new);
	if (waits)
		wait_for_line();
	return 0;
}
