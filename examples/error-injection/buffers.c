// Asks for large buffers, one after the other, and says how often there was none.
//   buffers [COUNT]
#include <stdio.h>
#include <stdlib.h>

int main(int argc, char **argv)
{
	long count = argc > 1 ? atol(argv[1]) : 10, none = 0;

	for (long i = 0; i < count; i++) {
		char *buffer = malloc((2 << 20) + i);

		asm volatile("" : "+r"(buffer));
		if (!buffer)
			none++;
		free(buffer);
	}
	printf("%ld of %ld buffers were not there\n", none, count);
	return 0;
}
