// SPDX-License-Identifier: MIT OR Apache-2.0
// Makes system calls: `calls kinds`, `calls wait` until a line comes, `calls lines`, `calls storm N`.
#define _GNU_SOURCE
#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static void fail(const char *what)
{
	fprintf(stderr, "%s: %s\n", what, strerror(errno));
	_exit(9);
}

static int kinds(void)
{
	kill(getpid(), 0);
	printf("%d %d %ld %ld", getpgid(0), getsid(0), syscall(SYS_getpgid, 0L), syscall(SYS_getsid, 0L));
	if (kill(-99999999, 0) != -1 || errno != ESRCH)
		fail("kill");
	kill(getpid(), 0);
	errno = 0;
	if (setpriority(PRIO_PROCESS, 0, 5) != 0)
		fail("setpriority");
	printf(" %d %d\n", getpriority(PRIO_PROCESS, 1), getpriority(PRIO_PROCESS, 0));
	return 0;
}

static int pipes[2][2];

static void *reader(void *number)
{
	long which = (long)number;
	char byte;

	for (;;) {
		long got = which ? syscall(SYS_read, pipes[1][0], &byte, 1L) : read(pipes[0][0], &byte, 1);

		if (got != 1 || byte != 'x')
			fail("read");
	}
	return NULL;
}

static void *sleeper(void *unused)
{
	struct timespec time = { 0, 2000000 };

	for (;;)
		if (nanosleep(&time, NULL) != 0)
			fail("nanosleep");
	return unused;
}

// Threads that wait in calls of all kinds, until standard input ends.
static int wait_here(void)
{
	pthread_t thread;
	char byte;

	if (pipe(pipes[0]) != 0 || pipe(pipes[1]) != 0)
		fail("pipe");
	for (long i = 0; i < 4; i++)
		if (pthread_create(&thread, NULL, reader, (void *)(i % 2)) != 0)
			fail("pthread_create");
	if (pthread_create(&thread, NULL, sleeper, NULL) != 0)
		fail("pthread_create");
	puts("ready");
	fflush(stdout);
	while (read(0, &byte, 1) == 1)
		if (write(pipes[0][1], "x", 1) != 1 || write(pipes[1][1], "x", 1) != 1)
			fail("write");
	puts("done");
	return 0;
}

static volatile sig_atomic_t handled;

static void handler(int signal)
{
	(void)signal;
	getppid();
	handled++;
}

static void cleanup(void *count)
{
	++*(int *)count;
}

static void *cancelled(void *count)
{
	char byte;

	pthread_cleanup_push(cleanup, count);
	getppid();
	if (read(pipes[0][0], &byte, 1) != 0)
		fail("read of nothing");
	pthread_cleanup_pop(1);
	return NULL;
}

static void *worker(void *unused)
{
	getppid();
	syscall(SYS_getppid);
	return unused;
}

static void expect_exit(pid_t child, int status)
{
	int found;

	if (child < 0 || waitpid(child, &found, 0) != child || !WIFEXITED(found) || WEXITSTATUS(found) != status)
		fail("child");
}

// Every round makes getppid(2) eight times: two here, one in a handler, one each in three children, two in a thread. One more is made
// by the thread that is cancelled.
static int storm(int rounds)
{
	extern char **environ;
	char *arguments[] = { "true", NULL };
	int cancellations = 0;

	if (pipe(pipes[0]) != 0)
		fail("pipe");
	signal(SIGUSR1, handler);
	for (int i = 0; i < rounds; i++) {
		pthread_t thread;
		pid_t child;

		getppid();
		syscall(SYS_getppid);
		raise(SIGUSR1);
		child = fork();
		if (child == 0) {
			getppid();
			_exit(7);
		}
		expect_exit(child, 7);
		child = vfork();
		if (child == 0) {
			getppid();
			_exit(8);
		}
		expect_exit(child, 8);
		child = syscall(SYS_clone, (long)SIGCHLD, 0L, 0L, 0L, 0L);
		if (child == 0) {
			syscall(SYS_getppid);
			syscall(SYS_exit_group, 6L);
		}
		expect_exit(child, 6);
		if (posix_spawn(&child, "/bin/true", NULL, NULL, arguments, environ) != 0)
			fail("posix_spawn");
		expect_exit(child, 0);
		if (pthread_create(&thread, NULL, worker, NULL) != 0 || pthread_join(thread, NULL) != 0)
			fail("worker");
		if (pthread_create(&thread, NULL, cancelled, &cancellations) != 0)
			fail("pthread_create");
		pthread_cancel(thread);
		pthread_join(thread, NULL);
	}
	printf("%d %d\n", handled, cancellations);
	return 0;
}

// On each line: ten times getppid(2), by libc's function and by syscall(2), and what getpgid(2) says.
static int lines(void)
{
	char line[16];

	puts("ready");
	fflush(stdout);
	while (fgets(line, sizeof(line), stdin)) {
		for (int i = 0; i < 10; i++) {
			getppid();
			syscall(SYS_getppid);
		}
		printf("%d %ld\n", getpgid(0), syscall(SYS_getpgid, 0L));
		fflush(stdout);
	}
	return 0;
}

int main(int argc, char **argv)
{
	if (argc > 1 && strcmp(argv[1], "lines") == 0)
		return lines();
	if (argc > 1 && strcmp(argv[1], "kinds") == 0)
		return kinds();
	if (argc > 1 && strcmp(argv[1], "wait") == 0)
		return wait_here();
	if (argc > 2 && strcmp(argv[1], "storm") == 0)
		return storm(atoi(argv[2]));
	return 2;
}
