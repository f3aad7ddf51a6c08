// The same programs compiled for this machine: what the engines are compared with.
//   native REPEAT MEMORY_LENGTH prints nanoseconds of a run, in thousandths
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

unsigned long program(void *memory, unsigned long length);

int main(int argc, char **argv)
{
	long repeat = atol(argv[1]), length = atol(argv[2]);
	void *memory = calloc(1, length + 8);
	struct timespec a, b;
	unsigned long sum = 0;

	clock_gettime(CLOCK_MONOTONIC, &a);
	for (long i = 0; i < repeat; i++)
		sum += program(memory, length);
	clock_gettime(CLOCK_MONOTONIC, &b);
	printf("%ld %lu\n", (long)(((b.tv_sec - a.tv_sec) * 1e9 + (b.tv_nsec - a.tv_nsec)) / repeat * 1000), sum);
	return 0;
}
