// A function with instructions shorter than a jump at its start.
#include <stdio.h>
#include <stdlib.h>

__asm__(".text\n.globl nearby\n.type nearby,@function\nnearby:\n"
	"push %rbx\nmov %rdi,%rbx\nmov %rbx,%rax\nadd %rsi,%rax\nnop\nnop\nnop\npop %rbx\nret\n.size nearby,.-nearby\n");

long nearby(long, long);

int main(int argc, char **argv)
{
	long calls = atol(argv[1]), sum = 0;

	for (long i = 0; i < calls; i++)
		sum += nearby(i, i * 2);
	printf("sum %ld\n", sum);
	return 0;
}
