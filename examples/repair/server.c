// link: -lpthread
// A small server with a known fault: it looks names up by bisection, and puts new ones behind the others, wherever they belong.
// One line in, one line out, any number of clients at once:
//   put NAME VALUE          -> ok
//   get NAME                -> the value, or "none"
//
//   server [PORT]           prints the port that it listens on
#include <arpa/inet.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

struct entry {
	char name[32];
	long value;
};

static struct entry table[4096] = {{"beta", 2}, {"alpha", 1}, {"gamma", 3}};
static int entries = 3;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

static int by_name(const void *a, const void *b)
{
	return strcmp(((const struct entry *)a)->name, ((const struct entry *)b)->name);
}

/* Puts the table in order. Only the start calls it: that is the fault. */
int __attribute__((noinline)) sort_table(void)
{
	qsort(table, entries, sizeof(*table), by_name);
	return entries;
}

/* With the lock held. */
int __attribute__((noinline)) put(const char *name, long value)
{
	if (entries == sizeof(table) / sizeof(*table))
		return -1;
	snprintf(table[entries].name, sizeof(table->name), "%s", name);
	table[entries++].value = value;
	return 0;
}

static void *serve(void *argument)
{
	int socket = (int)(long)argument;
	FILE *in = fdopen(socket, "r"), *out = fdopen(dup(socket), "w");
	char line[128];
	struct entry wanted, *found;

	while (in && out && fgets(line, sizeof(line), in)) {
		pthread_mutex_lock(&lock);
		if (sscanf(line, "put %31s %ld", wanted.name, &wanted.value) == 2) {
			fprintf(out, "%s\n", put(wanted.name, wanted.value) ? "full" : "ok");
		} else if (sscanf(line, "get %31s", wanted.name) == 1) {
			found = bsearch(&wanted, table, entries, sizeof(*table), by_name);
			if (found)
				fprintf(out, "%ld\n", found->value);
			else
				fprintf(out, "none\n");
		} else {
			fprintf(out, "what?\n");
		}
		pthread_mutex_unlock(&lock);
		fflush(out);
	}
	if (out)
		fclose(out);
	if (in)
		fclose(in);
	return NULL;
}

int main(int argc, char **argv)
{
	struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
	socklen_t len = sizeof(address);
	int listener = socket(AF_INET, SOCK_STREAM, 0), one = 1;

	sort_table();
	address.sin_port = htons(argc > 1 ? atoi(argv[1]) : 0);
	setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one));
	if (bind(listener, (struct sockaddr *)&address, len) || listen(listener, 64) ||
	    getsockname(listener, (struct sockaddr *)&address, &len)) {
		perror("listen");
		return 1;
	}
	printf("%d\n", ntohs(address.sin_port));
	fflush(stdout);
	for (;;) {
		long client = accept(listener, NULL, NULL);
		pthread_t thread;

		if (client >= 0 && pthread_create(&thread, NULL, serve, (void *)client) == 0)
			pthread_detach(thread);
	}
}
