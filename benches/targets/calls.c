// Times calls of one function. On each line "NAME COUNT" it calls that function COUNT times and answers with the
// nanoseconds of a call, in thousandths.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define BODY "lea 1(%rdi,%rsi), %rax\n"

/* First instruction `push`: the kernel emulates it at a uprobe. */
__asm__(".globl first_push\n.type first_push,@function\n.p2align 6\nfirst_push:\n"
	"push %rbp\nmov %rsp,%rbp\npush %rbx\nmov %rdi,%rbx\n" BODY "pop %rbx\npop %rbp\nret\n.size first_push,.-first_push\n");
/* First instruction a 5-byte nop: the kernel's fastest uprobe. */
__asm__(".globl first_nop\n.type first_nop,@function\n.p2align 6\nfirst_nop:\n"
	".byte 0x0f,0x1f,0x44,0x00,0x00\npush %rbx\nmov %rdi,%rbx\n" BODY "pop %rbx\nret\n.size first_nop,.-first_nop\n");
/* First instruction `sub`: the kernel single-steps it. */
__asm__(".globl first_sub\n.type first_sub,@function\n.p2align 6\nfirst_sub:\n"
	"sub $24,%rsp\nmov %rdi,8(%rsp)\n" BODY "add $24,%rsp\nret\n.size first_sub,.-first_sub\n");
/* A branch to its second byte, never taken: no jump fits. */
__asm__(".globl no_room\n.type no_room,@function\n.p2align 6\nno_room:\n"
	"push %rbx\n1: mov %rdi,%rbx\n" BODY "cmp %rsp,%rbx\nje 1b\npop %rbx\nret\n.size no_room,.-no_room\n");

long first_push(long, long), first_nop(long, long), first_sub(long, long), no_room(long, long);

int main(void)
{
	char name[32];
	long count;

	puts("ready");
	fflush(stdout);
	while (scanf("%31s %ld", name, &count) == 2) {
		long (*volatile function)(long, long) =
			!strcmp(name, "first_push") ? first_push : !strcmp(name, "first_nop") ? first_nop :
			!strcmp(name, "no_room") ? no_room : first_sub;
		long (*called)(long, long) = function;
		struct timespec a, b;
		long sum = 0;

		clock_gettime(CLOCK_MONOTONIC, &a);
		for (long i = 0; i < count; i++)
			sum = called(sum, i);
		clock_gettime(CLOCK_MONOTONIC, &b);
		double ns = ((b.tv_sec - a.tv_sec) * 1e9 + (b.tv_nsec - a.tv_nsec)) / count;
		printf("%ld %ld\n", (long)(ns * 1000), sum);
		fflush(stdout);
	}
	return 0;
}
