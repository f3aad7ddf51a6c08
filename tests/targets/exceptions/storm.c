// link: -pthread
// Threads that make children by vfork, posix_spawn and fork, all of which execute this program again or end.
//   storm ROUNDS: says how the children ended
#define _GNU_SOURCE
#include "counted.h"
#include <pthread.h>
#include <spawn.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

static char *program;
static long rounds, statuses;
COUNTED(launch);
COUNTED(quiet);

PROBED long quiet(long a)
{
	/* A child of vfork counts here too: it has our memory. */
	ENTER(quiet);
	LEAVE(quiet);
	return a * 3 + 1;
}

PROBED int launch(long how)
{
	char text[] = "0";
	char *arguments[] = { program, "child", text, NULL };
	char *environment[] = { "A=b", NULL };
	volatile pid_t pid = -1;
	int status = -1;

	ENTER(launch);
	text[0] = '0' + how;
	switch (how) {
	case 0:
		pid = vfork();
		if (pid == 0) {
			quiet(1);
			execve(program, arguments, environment);
			_exit(99);
		}
		break;
	case 1:
		pid = vfork();
		if (pid == 0)
			_exit(quiet(2));
		break;
	case 2: {
		pid_t spawned;
		if (posix_spawn(&spawned, program, NULL, NULL, arguments, environment))
			abort();
		pid = spawned;
		break;
	}
	case 3:
		pid = fork();
		if (pid == 0) {
			quiet(3);
			execve(program, arguments, environment);
			_exit(99);
		}
		break;
	case 4:
		/* Nothing to execute: vfork's child goes on in our frame. */
		pid = vfork();
		if (pid == 0) {
			execve("/nonexistent", arguments, environment);
			_exit(quiet(4));
		}
		break;
	}
	while (waitpid(pid, &status, 0) < 0)
		;
	LEAVE(launch);
	return WIFEXITED(status) ? WEXITSTATUS(status) : 1000 + status;
}

static void *thread(void *argument)
{
	static const int expected[] = { 10, 7, 12, 13, 13 };
	long wrong = 0;

	(void)argument;
	for (long i = 0; i < rounds; i++) {
		int status = launch(i % 5);
		wrong += status != expected[i % 5];
		__atomic_add_fetch(&statuses, status, __ATOMIC_RELAXED);
		wrong += quiet(i) != i * 3 + 1;
	}
	return (void *)wrong;
}

int main(int argc, char **argv)
{
	static const int elsewhere[] = { 1, 0, 1, 2, 0 };
	pthread_t threads[3];
	void *wrong;

	program = argv[0];
	if (argc == 3 && !strcmp(argv[1], "child"))
		return quiet(atol(argv[2])) >= 0 ? 10 + atol(argv[2]) : 1;
	rounds = atol(argv[1]);
	for (int i = 0; i < 3; i++)
		pthread_create(&threads[i], NULL, thread, NULL);
	for (int i = 0; i < 3; i++) {
		pthread_join(threads[i], &wrong);
		printf("wrong %ld\n", (long)wrong);
	}
	printf("statuses %ld\n", statuses);
	/* What a forked child and an executed program call is not in our memory. */
	for (long i = 0; i < 3 * rounds; i++)
		counted_quiet.calls += elsewhere[i / 3 % 5];
	counted_quiet.returns = counted_quiet.calls;
	REPORT(launch);
	REPORT(quiet);
	return 0;
}
