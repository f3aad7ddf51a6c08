// link: -pthread
// Exceptions through frames of every kind: deep, rethrown, replaced in flight, kept and thrown in another thread, out of a
// constructor, through a C callback; backtraces from the bottom.
//   throw ROUNDS: says what was caught, and how often each function was called
#include "counted.h"
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <execinfo.h>
#include <new>
#include <stdexcept>
#include <string>
#include <thread>

static thread_local long destructors, frames;
COUNTED(deep);
COUNTED(rethrow);
COUNTED(compare);
COUNTED(quiet);

struct Guard {
	~Guard() { destructors++; }
};

extern "C" PROBED long quiet(long a)
{
	ENTER(quiet);
	LEAVE(quiet);
	return a * 3 + 1;
}

extern "C" PROBED long deep(long depth, int how)
{
	Guard guard;
	ENTER(deep);
	if (depth > 0) {
		long sum = deep(depth - 1, how) + quiet(depth);
		LEAVE(deep);
		return sum;
	}
	switch (how) {
	case 0: throw std::runtime_error("bottom");
	case 1: throw 42;
	case 2: throw std::bad_alloc();
	case 3: {
		void *stack[64];
		frames += backtrace(stack, 64);
		throw std::string("after a backtrace");
	}
	default:
		LEAVE(deep);
		return 0;
	}
}

extern "C" PROBED long rethrow(long depth, int how)
{
	ENTER(rethrow);
	try {
		long sum = depth > 0 ? rethrow(depth - 1, how) : deep(10, how);
		LEAVE(rethrow);
		return sum;
	} catch (const std::runtime_error &e) {
		if (depth % 2)
			throw;
		throw std::runtime_error(std::string(e.what()) + "+");
	}
}

// A frame of C between thrower and catcher.
extern "C" PROBED int compare(const void *a, const void *b)
{
	ENTER(compare);
	if (*(const int *)a == 7)
		throw 7;
	LEAVE(compare);
	return *(const int *)a - *(const int *)b;
}

struct Member {
	long value;
	explicit Member(long v) : value(quiet(v)) { if (v == 3) throw std::logic_error("member"); }
	~Member() { destructors++; }
};

extern "C" PROBED long one(long round)
{
	long sum = 0;

	try {
		sum += deep(10, round % 5);
	} catch (const std::bad_alloc &) {
		sum += 3;
	} catch (const std::exception &e) {
		sum += 1;
	} catch (int number) {
		sum += number;
	} catch (const std::string &text) {
		sum += text.size();
	}
	try {
		sum += rethrow(5, 0);
	} catch (const std::exception &e) {
		sum += std::string(e.what()).size();
	}
	int numbers[] = {5, 9, 7, 1, 3, 8};
	try {
		qsort(numbers, 6, sizeof *numbers, compare);
	} catch (int number) {
		sum += number;
	}
	try {
		Member a(1), b(2), c(3), d(4);
		sum += 1000000;
	} catch (const std::logic_error &) {
		sum += 5;
	}
	return sum;
}

static void work(long rounds, long *sum, long *gone, long *seen)
{
	for (long i = 0; i < rounds; i++)
		*sum += one(i);
	*gone = destructors;
	*seen = frames;
}

int main(int argc, char **argv)
{
	long rounds = atol(argv[1]), sum[3] = {}, gone[3] = {}, seen[3] = {};
	std::exception_ptr kept;

	std::thread a(work, rounds, &sum[0], &gone[0], &seen[0]), b(work, rounds, &sum[1], &gone[1], &seen[1]);
	work(rounds, &sum[2], &gone[2], &seen[2]);
	a.join();
	b.join();
	std::thread([&] { try { deep(20, 0); } catch (...) { kept = std::current_exception(); } }).join();
	try {
		std::rethrow_exception(kept);
	} catch (const std::runtime_error &e) {
		printf("kept %s\n", e.what());
	}
	for (int i = 0; i < 3; i++)
		printf("sum %ld destructors %ld frames %ld\n", sum[i], gone[i], i < 2 ? 0 : seen[i]);
	REPORT(deep);
	REPORT(rethrow);
	REPORT(compare);
	REPORT(quiet);
	return 0;
}
