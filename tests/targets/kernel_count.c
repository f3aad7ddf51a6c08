// link: -lbpf
// The same object in the kernel, as the reference: loads it with libbpf, attaches what its sections name, says "ready",
// waits for a line, prints a map as `key word word…` (keys of 4 bytes, values of whole 8-byte words).
//   kernel_count OBJECT MAP [PROG PATH PROVIDER NAME]...     with the USDT probes of programs whose sections name none
#include <bpf/bpf.h>
#include <bpf/libbpf.h>
#include <stdio.h>
#include <stdlib.h>

static void fail(const char *what)
{
	perror(what);
	exit(1);
}

int main(int argc, char **argv)
{
	struct bpf_object *object = bpf_object__open_file(argv[1], NULL);
	struct bpf_program *program;
	char line[16];

	if (!object || bpf_object__load(object))
		fail("load");
	if (argc == 3)
		bpf_object__for_each_program(program, object)
			if (!bpf_program__attach(program))
				fail("attach");
	for (int i = 3; i + 3 < argc; i += 4) {
		program = bpf_object__find_program_by_name(object, argv[i]);
		if (!program || !bpf_program__attach_usdt(program, -1, argv[i + 1], argv[i + 2], argv[i + 3], NULL))
			fail("attach");
	}
	puts("ready");
	fflush(stdout);
	if (!fgets(line, sizeof(line), stdin))
		return 2;
	struct bpf_map *map = bpf_object__find_map_by_name(object, argv[2]);
	if (!map)
		fail("map");
	int fd = bpf_map__fd(map), words = bpf_map__value_size(map) / 8;
	unsigned key, *previous = NULL;
	unsigned long long value[words];
	for (; bpf_map_get_next_key(fd, previous, &key) == 0; previous = &key) {
		if (bpf_map_lookup_elem(fd, &key, value))
			fail("lookup");
		printf("%u", key);
		for (int i = 0; i < words; i++)
			printf(" %llu", value[i]);
		puts("");
	}
	return 0;
}
