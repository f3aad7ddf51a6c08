// link: -ldl
// Loads a library, and answers each line with the result of a function of its own.
//   plugin LIBRARY
#include <dlfcn.h>
#include <stdio.h>

__attribute__((noinline)) int answer(int number)
{
	asm volatile("" : "+r"(number));
	return number;
}

int main(int argc, char **argv)
{
	char line[64];

	if (argc < 2 || !dlopen(argv[1], RTLD_NOW))
		return 2;
	puts("ready");
	fflush(stdout);
	while (fgets(line, sizeof(line), stdin)) {
		printf("%d\n", answer(5));
		fflush(stdout);
	}
	return 0;
}
