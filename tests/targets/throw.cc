// Throws through ten frames of a function, again and again, and walks the stack from inside of it.
//   throw ROUNDS: says how many exceptions were caught, how many destructors ran, how many frames a backtrace saw
#include <cstdio>
#include <cstdlib>
#include <execinfo.h>
#include <stdexcept>

static long destructors, frames;

struct Guard {
	~Guard() { destructors++; }
};

extern "C" __attribute__((noinline, noclone)) long work(long depth, long throws)
{
	Guard guard;
	void *stack[64];

	if (depth == 0) {
		frames += backtrace(stack, 64);
		if (throws)
			throw std::runtime_error("from the bottom");
		return 1;
	}
	return work(depth - 1, throws) + 1;
}

int main(int argc, char **argv)
{
	long rounds = atol(argv[1]), caught = 0, sum = 0;

	for (long i = 0; i < rounds; i++) {
		try {
			sum += work(10, i & 1);
		} catch (const std::exception &) {
			caught++;
		}
	}
	printf("caught %ld destructors %ld frames %ld sum %ld\n", caught, destructors, frames, sum);
	return 0;
}
