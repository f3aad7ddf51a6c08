// link: -lbpf
// The kernel's uprobe for one process: loads an object with libbpf and attaches programs to a function.
//   kernel_probe OBJECT PID PATH FUNCTION PROGRAM[:ret]…
// Says "ready"; empties the ring buffer `ring`, if there is one, and says "ok" on each line; ends with its input.
#include <bpf/bpf.h>
#include <bpf/libbpf.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void fail(const char *what)
{
	perror(what);
	exit(1);
}

static int ignore(void *context, void *data, size_t size)
{
	return 0;
}

int main(int argc, char **argv)
{
	struct bpf_object *object = bpf_object__open_file(argv[1], NULL);
	struct ring_buffer *ring = NULL;
	char line[16];

	if (argc < 6 || !object || bpf_object__load(object))
		fail("load");
	for (int i = 5; i < argc; i++) {
		char *suffix = strstr(argv[i], ":ret");
		if (suffix)
			*suffix = 0;
		LIBBPF_OPTS(bpf_uprobe_opts, options, .func_name = argv[4], .retprobe = suffix != NULL);
		struct bpf_program *program = bpf_object__find_program_by_name(object, argv[i]);
		if (!program || !bpf_program__attach_uprobe_opts(program, atoi(argv[2]), argv[3], 0, &options))
			fail(argv[i]);
	}
	struct bpf_map *map = bpf_object__find_map_by_name(object, "ring");
	if (map)
		ring = ring_buffer__new(bpf_map__fd(map), ignore, NULL, NULL);
	puts("ready");
	fflush(stdout);
	while (fgets(line, sizeof(line), stdin)) {
		if (ring)
			ring_buffer__consume(ring);
		puts("ok");
		fflush(stdout);
	}
	return 0;
}
