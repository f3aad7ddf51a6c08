// A function that throws and catches within itself, for programs to call; and one that lets its exception out.
#include <cstdio>
#include <cstring>
#include <stdexcept>
#include <string>

#define NOINLINE __attribute__((noinline))

struct Guard {
	static int ended;
	~Guard() { ended++; }
};
int Guard::ended;

NOINLINE static int thrower(int depth)
{
	Guard guard;

	if (depth == 0)
		throw std::runtime_error("deep");
	int below = thrower(depth - 1);
	asm volatile("" : "+r"(below));
	return below + 1;
}

extern "C" NOINLINE int host_catches(int depth)
{
	try {
		return thrower(depth);
	} catch (const std::exception &error) {
		return std::strcmp(error.what(), "deep") == 0 ? Guard::ended : -1;
	}
}

extern "C" NOINLINE int host_throws(int depth)
{
	return thrower(depth);
}

extern "C" NOINLINE int work(int depth)
{
	asm volatile("" : "+r"(depth));
	return depth;
}

int main(int argc, char **)
{
	for (int turn = 1; turn <= 100; turn++) {
		// Exceptions of its own go past the place as well.
		try {
			if (work(10) != 10 || thrower(3))
				return 3;
		} catch (const std::runtime_error &) {
		}
	}
	std::printf("%d\n", Guard::ended);
	return argc > 5;
}
