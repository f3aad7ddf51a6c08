// Calls look() with addresses on its stack, at the end of the stack, elsewhere and nowhere. On each line that comes: says for each
// call, and for 1, 2, 4 and 8 bytes, what is there, or "none".
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <ucontext.h>

#define STACK 65536

static unsigned char *stack;
static uint64_t index_;

__attribute__((noinline)) void look(const void *address, uint64_t index)
{
	__asm__ volatile("nop\nnop\nnop\nnop\nnop" : : "r"(address), "r"(index) : "memory");
}

/* `there` bytes can be read. */
static void check(const unsigned char *address, uint64_t there)
{
	uint64_t values[4] = { 0 };

	for (int i = 0; i < 4; i++)
		if (there >= 1u << i)
			memcpy(&values[i], address, 1u << i);
	look(address, index_++);
	for (int i = 0; i < 4; i++)
		if (there >= 1u << i)
			printf("%lu ", values[i]);
		else
			printf("none ");
}

static void on_stack(void)
{
	volatile uint64_t here = 0x0123456789abcdef;
	uintptr_t page = ((uintptr_t)&here | 4095) + 1;

	check((unsigned char *)&here, 8);
	for (int back = 9; back >= 0; back--) {
		unsigned char *at = (unsigned char *)page - back;

		check(at, at + 8 <= stack + STACK ? 8 : stack + STACK - at);
	}
	/* Below the stack pointer, where the program's own frame is not. */
	check(stack + 64, 8);
}

int main(void)
{
	static ucontext_t back, there;
	char line[8];

	/* The page behind it is not to be read. */
	stack = mmap(0, STACK + 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	mprotect(stack + STACK, 4096, PROT_NONE);
	for (int i = 0; i < STACK; i++)
		stack[i] = i % 251;
	puts("ready");
	fflush(stdout);
	while (fgets(line, sizeof(line), stdin) && strncmp(line, "end", 3)) {
		index_ = 0;
		getcontext(&there);
		there.uc_stack.ss_sp = stack;
		/* Some words stay above, in the same page. */
		there.uc_stack.ss_size = STACK - 1024;
		there.uc_link = &back;
		makecontext(&there, on_stack, 0);
		swapcontext(&back, &there);
		check((unsigned char *)"elsewhere", 8);
		check(0, 0);
		check((unsigned char *)UINT64_MAX, 0);
		check((unsigned char *)(UINT64_MAX << 47), 0);
		puts("");
		fflush(stdout);
	}
	return 0;
}
