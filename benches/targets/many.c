// Times calls of 4096 different functions in random order. On each line "NAME COUNT" it makes COUNT calls and answers
// with the nanoseconds of a call, in thousandths.
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#define FUNCTIONS 4096

/* many_0, many_1, ...: each in 64 bytes of its own, and a table of them. */
__asm__(".altmacro\n"
	".macro one n\n"
	".globl many_\\n\n.type many_\\n,@function\n.p2align 6\nmany_\\n:\n"
	"push %rbp\nmov %rsp,%rbp\npush %rbx\nmov %rdi,%rbx\nlea 1(%rdi,%rsi),%rax\npop %rbx\npop %rbp\nret\n"
	".size many_\\n,.-many_\\n\n"
	".pushsection .data.rel.ro.table,\"aw\",@progbits\n.quad many_\\n\n.popsection\n"
	".endm\n"
	".pushsection .data.rel.ro.table,\"aw\",@progbits\n.p2align 3\n.globl table\ntable:\n.popsection\n"
	".set i,0\n.rept 4096\none %i\n.set i,i+1\n.endr\n.noaltmacro\n");

extern long (*const table[FUNCTIONS])(long, long);

int main(void)
{
	static unsigned short order[1 << 16];
	const long mask = sizeof(order) / sizeof(order[0]) - 1;
	char name[32];
	long count;

	srand(1);
	for (long i = 0; i <= mask; i++)
		order[i] = rand() % FUNCTIONS;
	puts("ready");
	fflush(stdout);
	while (scanf("%31s %ld", name, &count) == 2) {
		struct timespec a, b;
		long sum = 0;

		clock_gettime(CLOCK_MONOTONIC, &a);
		for (long i = 0; i < count; i++)
			sum = table[order[i & mask]](sum, i);
		clock_gettime(CLOCK_MONOTONIC, &b);
		double ns = ((b.tv_sec - a.tv_sec) * 1e9 + (b.tv_nsec - a.tv_nsec)) / count;
		printf("%ld %ld\n", (long)(ns * 1000), sum);
		fflush(stdout);
	}
	return 0;
}
