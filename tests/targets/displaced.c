// SPDX-License-Identifier: MIT OR Apache-2.0
// Threads that read a byte at a time by a system call to which a branch leads, so that it cannot stay in its place while it is traced.
// For each line of standard input every thread gets a byte; "done" and how many came, when the input ends.
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#define THREADS 8

// Reads again until something comes: the branch at its end leads to the call itself.
asm(".text\n.globl read_some\n.type read_some, @function\nread_some:\n"
    "xor %eax, %eax\n mov $1, %edx\n"
    "1: syscall\n cmp $-4, %rax\n mov $0, %ecx\n cmove %rcx, %rax\n je 1b\n ret\n"
    ".size read_some, . - read_some\n");

static int pipes[THREADS][2];
static long came[THREADS];

// `read(from, byte, 1)`, without errno.
long read_some(long from, char *byte);

static void *reader(void *number)
{
	long which = (long)number;
	char byte;

	while (read_some(pipes[which][0], &byte) == 1 && byte == 'x')
		came[which]++;
	return NULL;
}

int main(void)
{
	pthread_t threads[THREADS];
	long total = 0;
	char byte;

	for (long i = 0; i < THREADS; i++)
		if (pipe(pipes[i]) != 0 || pthread_create(&threads[i], NULL, reader, (void *)i) != 0)
			return 9;
	puts("ready");
	fflush(stdout);
	while (read(0, &byte, 1) == 1)
		for (int i = 0; i < THREADS; i++)
			if (write(pipes[i][1], "x", 1) != 1)
				return 9;
	for (int i = 0; i < THREADS; i++) {
		close(pipes[i][1]);
		pthread_join(threads[i], NULL);
		total += came[i];
	}
	printf("done %ld\n", total);
	return 0;
}
