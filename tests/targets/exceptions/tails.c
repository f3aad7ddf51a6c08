// Tail calls: chains, two functions that call each other 10,000 times on one frame, through pointers, into the C library, with
// arguments on the stack.
//   tails ROUNDS: says what came back, and how often each function was called
#include "counted.h"
#include <stdlib.h>

COUNTED(quiet);
COUNTED(first);
COUNTED(second);
COUNTED(third);
COUNTED(even);
COUNTED(odd);

PROBED long quiet(long a)
{
	ENTER(quiet);
	LEAVE(quiet);
	return a * 3 + 1;
}

PROBED long third(long a)
{
	ENTER(third);
	LEAVE(third);
	return quiet(a + 1);
}

PROBED long second(long a)
{
	ENTER(second);
	LEAVE(second);
	return third(a + 1);
}

PROBED long first(long a)
{
	ENTER(first);
	LEAVE(first);
	return second(a + 1);
}

long odd(long n);
PROBED long even(long n)
{
	ENTER(even);
	LEAVE(even);
	return n == 0 ? 1 : odd(n - 1);
}

PROBED long odd(long n)
{
	ENTER(odd);
	LEAVE(odd);
	return n == 0 ? 0 : even(n - 1);
}

static long (*volatile pointer)(long) = first;
PROBED long indirect(long a) { return pointer(a); }

PROBED long library(const char *text) { return atol(text); }

PROBED long many(long a, long b, long c, long d, long e, long f, long g, long h)
{
	return a == 0 ? b + c + d + e + f + g + h : many(a - 1, c, d, e, f, g, h, b);
}

PROBED long arguments(long a, long b, long c, long d, long e, long f, long g, long h)
{
	return many(a + 1, b, c, d, e, f, h, g);
}

/* A frame of its own below the tail call, and one above. */
PROBED long around(long depth, long a)
{
	long sum = depth == 0 ? first(a) : around(depth - 1, a) + indirect(a);

	__asm__ volatile("" : "+r"(sum));
	return sum;
}

int main(int argc, char **argv)
{
	long rounds = atol(argv[1]), sum = 0;

	for (long i = 0; i < rounds; i++) {
		sum += first(i) + indirect(i) + around(20, i) + library(argv[1]);
		sum += even(i % 100 ? i % 37 : 10000);
		sum += arguments(i % 5, 1, 2, 3, 4, 5, i, 7);
	}
	printf("sum %ld\n", sum);
	REPORT(quiet);
	REPORT(first);
	REPORT(second);
	REPORT(third);
	REPORT(even);
	REPORT(odd);
	return 0;
}
