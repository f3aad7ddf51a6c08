// SPDX-License-Identifier: MIT OR Apache-2.0
// Tells whether the C library has registered a `struct rseq` for the first thread and for another, as far as it wants to.
#include <pthread.h>
#include <stddef.h>
#include <stdio.h>

extern const unsigned int __rseq_size __attribute__((weak));
extern const ptrdiff_t __rseq_offset __attribute__((weak));

static void *look(void *unused)
{
	if (!&__rseq_size || !&__rseq_offset) {
		puts("none");
		return 0;
	}
	// cpu_id, less than 0 where it is not registered.
	int cpu = *(int *)((char *)__builtin_thread_pointer() + __rseq_offset + 4);

	printf("%u %s\n", __rseq_size, cpu < 0 ? "unregistered" : "registered");
	return unused;
}

int main(void)
{
	pthread_t thread;

	look(0);
	pthread_create(&thread, 0, look, 0);
	return pthread_join(thread, 0);
}
