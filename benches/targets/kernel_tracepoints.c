// link: -lbpf
// The kernel's tracepoints: loads an object with libbpf, says "ready", attaches all its programs on a line "on", detaches
// them on "off", and says "ok" after each. They see every process, so it is on only while that is measured; a tracepoint of
// a system call costs every call of every process something.
//   kernel_tracepoints OBJECT
#include <bpf/bpf.h>
#include <bpf/libbpf.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define LINKS_MAX 16

static void fail(const char *what)
{
	perror(what);
	exit(1);
}

static struct bpf_link *links[LINKS_MAX];
static int count;

static void on(struct bpf_object *object)
{
	struct bpf_program *program;

	bpf_object__for_each_program(program, object) {
		if (count == LINKS_MAX || !(links[count] = bpf_program__attach(program)))
			fail("attach");
		count++;
	}
}

static void off(void)
{
	while (count > 0)
		bpf_link__destroy(links[--count]);
}

int main(int argc, char **argv)
{
	struct bpf_object *object = argc == 2 ? bpf_object__open_file(argv[1], NULL) : NULL;
	char line[16];

	if (!object || bpf_object__load(object))
		fail("load");
	/* Whoever may not attach is not ready. */
	on(object);
	off();
	puts("ready");
	fflush(stdout);
	while (fgets(line, sizeof(line), stdin)) {
		if (!strcmp(line, "on\n"))
			on(object);
		else
			off();
		puts("ok");
		fflush(stdout);
	}
	return 0;
}
