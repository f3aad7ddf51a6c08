// Calls `leaf` along different ways and prints the stack that it has there, as backtrace() sees it: address of leaf, then the
// return addresses.
//   stacks [wait]     says "ready" and reads a line before it works, reads a line before it ends
#include <execinfo.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#ifdef __cplusplus
#define C extern "C"
#else
#define C
#endif
#define NOINLINE __attribute__((noinline))

static char buffer[1 << 16];
static int used;

// By itself: the frames in `leaf` and its callers would not be alike otherwise.
C NOINLINE int leaf(int value);
NOINLINE static void record(void)
{
	void *addresses[96];
	int count = backtrace(addresses, 96);

	used += sprintf(buffer + used, "%lx", (unsigned long)leaf);
	for (int i = 2; i < count; i++)
		used += sprintf(buffer + used, " %lx", (unsigned long)addresses[i]);
	used += sprintf(buffer + used, "\n");
}

C NOINLINE int mark(int value)
{
	asm volatile("" : "+r"(value));
	return value * 3;
}

C NOINLINE int leaf(int value)
{
	// Its return comes before the unwinder does, which ends return probes that are under way.
	value = mark(value);
	record();
	return value + used;
}

C NOINLINE int deep(int depth, int value)
{
	char space[100];

	memset(space, value, sizeof(space));
	asm volatile("" : : "r"(space) : "memory");
	return (depth ? deep(depth - 1, value + 1) : leaf(value)) + space[depth % 100];
}

C NOINLINE int wide(int value)
{
	volatile char space[100000];

	space[value % 1000] = 1;
	return deep(2, value) + space[value % 1000];
}

// Its frame is addressed by rbp, and the stack pointer is aligned.
C NOINLINE int aligned(int value)
{
	char space[value % 7 + 100] __attribute__((aligned(64)));

	memset(space, value, sizeof(space));
	asm volatile("" : : "r"(space) : "memory");
	return leaf(value) + space[3];
}

static int compare(const void *a, const void *b)
{
	int less = *(const int *)a - *(const int *)b;

	deep(1, less);
	return less;
}

static void on_signal(int number)
{
	deep(1, number);
}

C NOINLINE int tail(int value)
{
	return deep(0, value + 1);
}

C NOINLINE int work(int value)
{
	int items[2] = {2, 1};

	value += leaf(value);
	value += deep(5, value);
	value += wide(value);
	value += aligned(value);
	value += tail(value);
	qsort(items, 2, sizeof(items[0]), compare);
	raise(SIGUSR1);
	return value + items[0];
}

int main(int argc, char **argv)
{
	char line[16];

	(void)argv;
	// The C library loads the unwinder at the first call.
	void *first[1];
	backtrace(first, 1);
	signal(SIGUSR1, on_signal);
	if (argc > 1) {
		puts("ready");
		fflush(stdout);
		if (!fgets(line, sizeof(line), stdin))
			return 1;
	}
	int value = work(3);
	fputs(buffer, stdout);
	printf("done %d\n", value != 0);
	fflush(stdout);
	if (argc > 1 && !fgets(line, sizeof(line), stdin))
		return 1;
	return 0;
}
