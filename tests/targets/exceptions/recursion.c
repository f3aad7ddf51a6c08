// Recursion 100,000 deep that comes back, that jumps out from the bottom, and both in turn with shallow calls in between.
//   recursion ROUNDS: says what came back, and how often each function was called
#include "counted.h"
#include <setjmp.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <unistd.h>

#define DEPTH 100000

static jmp_buf target;
COUNTED(deep);
COUNTED(jumper);
COUNTED(quiet);

PROBED long quiet(long a)
{
	ENTER(quiet);
	LEAVE(quiet);
	return a * 3 + 1;
}

PROBED long deep(long depth)
{
	long sum;

	ENTER(deep);
	sum = depth == 0 ? quiet(0) : deep(depth - 1) + 1;
	LEAVE(deep);
	return sum;
}

PROBED long jumper(long depth)
{
	long sum;

	ENTER(jumper);
	if (depth == 0)
		longjmp(target, 1);
	sum = depth < 0 ? 0 : jumper(depth - 1);
	LEAVE(jumper);
	return sum;
}

int main(int argc, char **argv)
{
	struct rlimit limit = { 256 << 20, RLIM_INFINITY };
	volatile long rounds = atol(argv[1]), sum = 0;

	/* More stack than usual takes effect with the next program. */
	if (argc < 3) {
		setrlimit(RLIMIT_STACK, &limit);
		execl(argv[0], argv[0], argv[1], "again", NULL);
		return 1;
	}
	for (volatile long i = 0; i < rounds; i++) {
		sum += deep(DEPTH);
		if (setjmp(target) == 0)
			sum += jumper(DEPTH);
		for (long k = 0; k < 100; k++)
			sum += quiet(k) + deep(3);
		if (setjmp(target) == 0)
			sum += jumper(600);
		sum += deep(1000);
	}
	printf("sum %ld\n", sum);
	REPORT(deep);
	REPORT(jumper);
	REPORT(quiet);
	return 0;
}
