// Statically defined probes: arguments in every form that x86-64 code can have them in, a semaphore, <sys/sdt.h>.
//   usdt CALLS [wait]     says "ready" and reads a line before and after it works
// Prints the semaphore each time, then for each argument of `forms:all` and `forms:more` the value that a tracer must see.
#define SDT_USE_VARIADIC 1
#define _SDT_HAS_SEMAPHORES 1
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/sdt.h>

__extension__ volatile unsigned short app_work_semaphore __attribute__((used, section(".probes")));

long table[8] = {10, 11, 12, 13, -14, 15, 16, 17};
static volatile int counter __attribute__((used)) = 0x12345678;

/* A note as <sys/sdt.h> writes it, with arguments of our choice. */
#define NOTE(provider, name, arguments)                                                            \
	"990: nop\n"                                                                               \
	".pushsection .note.stapsdt,\"\",\"note\"\n"                                               \
	".balign 4\n"                                                                              \
	".4byte 992f-991f, 994f-993f, 3\n"                                                         \
	"991: .asciz \"stapsdt\"\n"                                                                \
	"992: .balign 4\n"                                                                         \
	"993: .8byte 990b, _.stapsdt.base, 0\n"                                                    \
	".asciz \"" provider "\"\n"                                                                \
	".asciz \"" name "\"\n"                                                                    \
	".asciz \"" arguments "\"\n"                                                               \
	"994: .balign 4\n"                                                                         \
	".popsection\n"

static void __attribute__((noinline)) all_forms(long i)
{
	register unsigned long rax asm("rax") = 0x1122334455667788;
	register long r8 asm("r8") = (long)&table[1];
	register long rbx asm("rbx") = -2;

	asm volatile(NOTE("forms", "all",
			  "8@%%rax -4@%%eax 2@%%ax -1@%%al 1@%%ah -8@%%rbx 4@%%ebx -8@$-9 4@$71 8@(%%r8) -8@24(%%r8) 8@-8(%%r8)")
		     "nop\nnop\nnop\nnop\n"
		     : : "r"(rax), "r"(r8), "r"(rbx), "r"(i));
}

static void __attribute__((noinline)) more_forms(long i)
{
	register long r9 asm("r9") = (long)table;
	register long r10 asm("r10") = i;

	asm volatile(NOTE("forms", "more",
			  "8@(%%r9,%%r10,8) -4@8(%%r9, %%r10, 8) 2@(%%r9,%%r10) -8@table+32(%%rip) 4@counter(%%rip) -1@%%r10b")
		     "nop\nnop\nnop\nnop\n"
		     : : "r"(r9), "r"(r10));
}

static void __attribute__((noinline)) work(long i, const char *text)
{
	STAP_PROBE3(app, work, i, (int)-i, text);
	asm volatile("nop\nnop\nnop\nnop" : : : "memory");
}

/* The same probe at a second place. */
static void __attribute__((noinline)) rest(long i, const char *text)
{
	char copy[32];

	strncpy(copy, text, sizeof(copy));
	STAP_PROBE3(app, work, i + 1000, (short)i, copy);
	asm volatile("nop\nnop\nnop\nnop" : : "r"(copy) : "memory");
}

int main(int argc, char **argv)
{
	long calls = argc > 1 ? atol(argv[1]) : 1;
	char line[16];

	printf("semaphore %u at %p\n", app_work_semaphore, (void *)&app_work_semaphore);
	if (argc > 2) {
		puts("ready");
		fflush(stdout);
		if (!fgets(line, sizeof(line), stdin))
			return 2;
		printf("semaphore %u at %p\n", app_work_semaphore, (void *)&app_work_semaphore);
	}
	for (long i = 0; i < calls; i++) {
		work(i, "some text");
		rest(i, "other text");
	}
	all_forms(3);
	more_forms(2);
	printf("worked\n");
	fflush(stdout);
	while (argc > 2 && fgets(line, sizeof(line), stdin) && line[0] != 'e') {
		printf("semaphore %u at %p\n", app_work_semaphore, (void *)&app_work_semaphore);
		fflush(stdout);
	}
	return 0;
}
