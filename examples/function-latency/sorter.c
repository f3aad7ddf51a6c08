// Sorts arrays of different lengths with a comparison function that is worth measuring.
#include <stdio.h>
#include <stdlib.h>

__attribute__((noinline)) long sort_once(long n, unsigned seed)
{
	long *a = malloc(n * sizeof(*a)), sum = 0;

	for (long i = 0; i < n; i++)
		a[i] = (seed = seed * 1103515245u + 12345u) >> 8;
	for (long i = 1; i < n; i++) {
		long v = a[i], j = i;
		for (; j > 0 && a[j - 1] > v; j--)
			a[j] = a[j - 1];
		a[j] = v;
	}
	sum = a[0] + a[n / 2] + a[n - 1];
	free(a);
	return sum;
}

int main(int argc, char **argv)
{
	long calls = argc > 1 ? atol(argv[1]) : 1000, sum = 0;

	for (long i = 0; i < calls; i++)
		sum += sort_once(1 + i % 200, i);
	printf("sort_once called %ld times, sum %ld\n", calls, sum);
	return 0;
}
