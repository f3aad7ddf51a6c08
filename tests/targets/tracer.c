// Traces a child of its own, and says what came of it: "traced STATUS" or "refused".
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/ptrace.h>
#include <sys/wait.h>
#include <unistd.h>

__attribute__((noinline, noclone)) long work(long number)
{
	__asm__ volatile("" : "+r"(number));
	return number;
}

int main(void)
{
	int status;
	pid_t child = fork();

	if (child == 0) {
		if (ptrace(PTRACE_TRACEME, 0, NULL, NULL))
			_exit(9);
		raise(SIGSTOP);
		_exit(work(5));
	}
	waitpid(child, &status, 0);
	if (!WIFSTOPPED(status)) {
		puts("refused");
		return 1;
	}
	ptrace(PTRACE_CONT, child, NULL, NULL);
	waitpid(child, &status, 0);
	printf("traced %d\n", WEXITSTATUS(status));
	return 0;
}
