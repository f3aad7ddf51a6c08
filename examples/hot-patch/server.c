// link: -lpthread
// A small server with a known fault: it divides a bill among as many guests as the client says, and never asks whether
// there are any. One line in, one line out, any number of clients at once:
//   share TOTAL GUESTS      -> what each guest pays
//   served                  -> how many shares were computed
//
//   server [PORT]           prints the port that it listens on
#include <arpa/inet.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static atomic_long served;

/* The fault: a division by zero ends the process. */
long __attribute__((noinline)) share_of(long total, long guests)
{
	long share = total / guests;

	served++;
	return share;
}

static void *serve(void *argument)
{
	int socket = (int)(long)argument;
	FILE *in = fdopen(socket, "r"), *out = fdopen(dup(socket), "w");
	char line[128];
	long total, guests;

	while (in && out && fgets(line, sizeof(line), in)) {
		if (sscanf(line, "share %ld %ld", &total, &guests) == 2)
			fprintf(out, "%ld\n", share_of(total, guests));
		else if (strncmp(line, "served", 6) == 0)
			fprintf(out, "%ld\n", served);
		else
			fprintf(out, "what?\n");
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
