// link: -lpthread
// A process whose own functions are called by programs. Each line on its standard input is a test, answered by one line:
//   sum, errno, vectors, narrow, fill, text, original, escape, block, end-thread, fork, signals, structure, allowed, quit
#define _GNU_SOURCE
#include <errno.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <unistd.h>

#define noinline __attribute__((noinline))

struct big { long a, b, c; };

static jmp_buf back;
static int calls_of_host, blocks[2], released[2];

/* ---- what programs call ---- */

/* Changes all that a callee may, and errno. */
noinline int host_twice(int number)
{
	calls_of_host++;
	errno = 77;
	if (__builtin_cpu_supports("avx512f"))
		asm volatile(".irp n,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31\n"
			     "vpternlogd $0xff, %%zmm\\n, %%zmm\\n, %%zmm\\n\n.endr\n"
			     ".irp n,1,2,3,4,5,6,7\nkxnorw %%k\\n, %%k\\n, %%k\\n\n.endr" ::: "memory");
	else if (__builtin_cpu_supports("avx2"))
		asm volatile(".irp n,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15\n"
			     "vpcmpeqd %%ymm\\n, %%ymm\\n, %%ymm\\n\n.endr" ::: "memory");
	else
		asm volatile(".irp n,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15\n"
			     "pcmpeqd %%xmm\\n, %%xmm\\n\n.endr" ::: "memory");
	unsigned rounding = 0x1f80 | 3 << 13;
	asm volatile("fninit; fldz; fldz; fldz; ldmxcsr %0" ::"m"(rounding));
	return 2 * number;
}

/* Keeps its argument registers as a whole; what it returns has other bits above the byte. */
long seen[5];
signed char host_narrow(signed char, unsigned short, unsigned char, _Bool, int);
asm(".globl host_narrow; .type host_narrow, @function\n"
    "host_narrow: mov %rdi, seen(%rip); mov %rsi, seen+8(%rip); mov %rdx, seen+16(%rip)\n"
    "mov %rcx, seen+24(%rip); mov %r8, seen+32(%rip); movabs $0x1234567812345680, %rax; ret\n"
    ".size host_narrow, . - host_narrow");

noinline long host_fill(char *to, unsigned long len)
{
	memset(to, 'f', len);
	return (unsigned long)to % 4096 != 0;
}

noinline long host_length(const char *text)
{
	return strlen(text);
}

noinline void host_escape(void)
{
	longjmp(back, 1);
}

noinline void host_block(void)
{
	char byte;

	if (write(blocks[1], "b", 1) != 1 || read(released[0], &byte, 1) != 1)
		abort();
}

noinline void host_end_thread(void)
{
	pthread_exit((void *)7L);
}

noinline int host_fork(void)
{
	return fork();
}

/* ---- what is probed ---- */

void probe_here(void);
asm(".globl probe_here; .type probe_here, @function\n"
    "probe_here: nop; nop; nop; nop; nop; nop; nop; nop; ret\n"
    ".size probe_here, . - probe_here");

noinline long sum(long a, long b)
{
	asm volatile("" : "+r"(a));
	return a + b;
}

noinline int text_length(const char *text)
{
	asm volatile("" : "+r"(text));
	return -1;
}

noinline int rate(int amount)
{
	asm volatile("" : "+r"(amount));
	return amount / 10;
}

noinline struct big structure(long a)
{
	struct big result = {a, a, a};

	asm volatile("" : "+m"(result));
	return result;
}

noinline _Bool allowed(int user)
{
	asm volatile("" : "+r"(user));
	return user == 0;
}

/* Each with text of its own, or the compiler makes one of them. */
#define PLACE(name) noinline void name(void) { asm volatile("nop; nop; nop; nop; nop # " #name); }
PLACE(escapes)
PLACE(blocks_here)
PLACE(ends_thread)
PLACE(forks)
PLACE(narrows)
PLACE(fills)

/* ---- the tests ---- */

static int vectors_survive(void)
{
	static unsigned char in[32 * 64], out[32 * 64] __attribute__((aligned(64)));
	unsigned control = 0x1f80 | 1 << 13, after;
	size_t len;
	double pi;

	for (size_t i = 0; i < sizeof(in); i++)
		in[i] = i * 7 + 3;
	memset(out, 0, sizeof(out));
	asm volatile("fldpi; ldmxcsr %0" ::"m"(control));
	if (__builtin_cpu_supports("avx512f")) {
		unsigned masks = 0;

		len = 32 * 64;
		asm volatile(".irp n,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31\n"
			     "vmovdqu64 64*\\n(%1), %%zmm\\n\n.endr\n"
			     "mov $0x5a5a, %%eax; kmovw %%eax, %%k1; kmovw %%eax, %%k7\n"
			     "call probe_here\n"
			     ".irp n,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31\n"
			     "vmovdqu64 %%zmm\\n, 64*\\n(%2)\n.endr\n"
			     "kmovw %%k1, %%eax; kmovw %%k7, %%ecx; and %%ecx, %%eax; mov %%eax, %0"
			     : "=m"(masks)
			     : "r"(in), "r"(out)
			     : "rax", "rcx", "memory");
		if (masks != 0x5a5a)
			return 1;
	} else {
		len = 16 * 16;
		asm volatile(".irp n,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15\n"
			     "movdqu 16*\\n(%0), %%xmm\\n\n.endr\n"
			     "call probe_here\n"
			     ".irp n,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15\n"
			     "movdqu %%xmm\\n, 16*\\n(%1)\n.endr"
			     :
			     : "r"(in), "r"(out)
			     : "rax", "rcx", "memory");
	}
	asm volatile("stmxcsr %0; fstpl %1" : "=m"(after), "=m"(pi));
	control = 0x1f80;
	asm volatile("ldmxcsr %0" ::"m"(control));
	if (memcmp(in, out, len))
		return 2;
	if ((after & ~0x3f) != (0x1f80 | 1 << 13))
		return 3;
	return pi < 3.14 || pi > 3.15 ? 4 : 0;
}

static volatile long wrong, handled;

static void on_alarm(int number)
{
	(void)number;
	int before = errno;

	handled++;
	if (sum(40, 2) != 42)
		wrong++;
	errno = before;
}

static long under_signals(void)
{
	struct itimerval often = {{0, 100}, {0, 100}}, never = {{0, 0}, {0, 0}};

	signal(SIGALRM, on_alarm);
	setitimer(ITIMER_REAL, &often, NULL);
	while (handled < 500) {
		errno = 5;
		if (sum(1, 2) != 3 || errno != 5 || vectors_survive())
			wrong++;
	}
	setitimer(ITIMER_REAL, &never, NULL);
	return wrong;
}

static void *block(void *unused)
{
	blocks_here();
	return unused;
}

static void *end(void *unused)
{
	ends_thread();
	return unused;
}

int main(void)
{
	char line[64], byte;
	pthread_t thread, blocked;
	void *result;

	if (pipe(blocks) || pipe(released))
		return 1;
	puts("ready");
	fflush(stdout);
	while (fgets(line, sizeof(line), stdin)) {
		line[strcspn(line, "\n")] = 0;
		if (!strcmp(line, "sum")) {
			printf("%ld\n", sum(20, 3));
		} else if (!strcmp(line, "errno")) {
			errno = 5;
			probe_here();
			printf("%d\n", errno);
		} else if (!strcmp(line, "vectors")) {
			int survived = vectors_survive();

			printf("%d %d\n", survived, calls_of_host);
		} else if (!strcmp(line, "narrow")) {
			narrows();
			printf("%lx %lx %lx %lx %lx\n", seen[0], seen[1], seen[2], seen[3], seen[4]);
		} else if (!strcmp(line, "fill")) {
			fills();
			puts("filled");
		} else if (!strcmp(line, "text")) {
			printf("%d\n", text_length("a text of the target"));
		} else if (!strcmp(line, "original")) {
			printf("%d\n", rate(120));
		} else if (!strcmp(line, "escape")) {
			volatile int turns = 0;

			if (setjmp(back) || turns < 100) {
				turns++;
				if (turns <= 100)
					escapes();
			}
			printf("%d\n", turns);
		} else if (!strcmp(line, "block")) {
			if (pthread_create(&blocked, NULL, block, NULL) || read(blocks[0], &byte, 1) != 1)
				return 1;
			puts("blocked");
		} else if (!strcmp(line, "release")) {
			if (write(released[1], "r", 1) != 1 || pthread_join(blocked, NULL))
				return 1;
			puts("released");
		} else if (!strcmp(line, "end-thread")) {
			if (pthread_create(&thread, NULL, end, NULL) || pthread_join(thread, &result))
				return 1;
			printf("%ld\n", (long)result);
		} else if (!strcmp(line, "fork")) {
			pid_t self = getpid();
			int status;

			forks();
			if (getpid() != self)
				_exit(sum(1, 1) == 2 ? 9 : 8);
			printf("%d\n", wait(&status) > 0 ? WEXITSTATUS(status) : -1);
		} else if (!strcmp(line, "signals")) {
			printf("%ld\n", under_signals());
		} else if (!strcmp(line, "structure")) {
			struct big made = structure(1);

			printf("%ld %ld %ld\n", made.a, made.b, made.c);
		} else if (!strcmp(line, "allowed")) {
			printf("%d\n", allowed(5));
		} else {
			break;
		}
		fflush(stdout);
	}
	return 0;
}
