// Many functions of similar names, called different numbers of times; prints what a tracer must count.
//   many [ROUNDS] [wait]     says "ready" and reads a line before it works, prints, reads a line before it ends
//   many ROUNDS fork         the same, and a forked child works too before its parent prints
#include <stdio.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

#define FUNCTION(n)                                                  \
	long __attribute__((noinline)) many_##n(long a, long b)      \
	{                                                            \
		asm volatile("" : : : "memory");                     \
		return a * 3 + b + n;                                \
	}
#define ALL(DO) DO(0) DO(1) DO(2) DO(3) DO(4) DO(5) DO(6) DO(7) DO(8) DO(9) DO(10) DO(11)
ALL(FUNCTION)

#define ENTRY(n) many_##n,
static long (*const functions[])(long, long) = {ALL(ENTRY)};
enum { COUNT = sizeof(functions) / sizeof(functions[0]) };

static long work(long rounds)
{
	long sum = 0;

	for (long round = 0; round < rounds; round++)
		for (int i = 0; i < COUNT; i++)
			for (int call = 0; call <= i; call++)
				sum += functions[i](round, call);
	return sum;
}

int main(int argc, char **argv)
{
	long rounds = argc > 1 ? atol(argv[1]) : 1;
	char line[16];

	if (argc > 2) {
		puts("ready");
		fflush(stdout);
		if (!fgets(line, sizeof(line), stdin))
			return 2;
	}
	long sum = work(rounds);
	if (argc > 2 && argv[2][0] == 'f') {
		pid_t child = fork();

		if (child == 0)
			_exit(work(rounds) != sum);
		int status;
		if (waitpid(child, &status, 0) != child || status)
			return 3;
	}
	for (int i = 0; i < COUNT; i++)
		printf("many_%d %lx %ld\n", i, (unsigned long)functions[i], rounds * (i + 1));
	printf("sum %ld\n", sum);
	fflush(stdout);
	if (argc > 2)
		(void)!fgets(line, sizeof(line), stdin);
	return 0;
}
