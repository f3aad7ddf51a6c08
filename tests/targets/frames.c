// Calls three functions from each other; the innermost waits for a line on standard input.
//   frames NUMBER
#include <stdio.h>
#include <stdlib.h>

__attribute__((noinline, noclone)) long inner(long number)
{
	char line[16];

	if (!fgets(line, sizeof(line), stdin))
		exit(2);
	return number;
}

__attribute__((noinline, noclone)) long middle(long number)
{
	long result = inner(number);

	__asm__ volatile("" : "+r"(result));
	return result;
}

__attribute__((noinline, noclone)) long outer(long number)
{
	register long kept __asm__("rbx") = number + 1000;
	long result;

	__asm__ volatile("" : "+r"(kept));
	result = middle(number);
	__asm__ volatile("" : "+r"(kept));
	return kept + result - number;
}

int main(int argc, char **argv)
{
	char line[16];

	puts("ready");
	fflush(stdout);
	if (argc < 2 || !fgets(line, sizeof(line), stdin))
		return 2;
	printf("result %ld\n", outer(atol(argv[1])));
	return 0;
}
