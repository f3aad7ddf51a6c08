// link: -lssl -lcrypto
// A TLS client and server in one process, over a socket pair: a target for sslsniff that needs no network.
#include <openssl/err.h>
#include <openssl/ssl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

static void must(int ok, const char *what)
{
	if (!ok) {
		fprintf(stderr, "%s failed\n", what);
		ERR_print_errors_fp(stderr);
		exit(1);
	}
}

static SSL *over(SSL_CTX *context, int fd)
{
	SSL *ssl = SSL_new(context);

	must(ssl && SSL_set_fd(ssl, fd), "SSL_new");
	return ssl;
}

int main(int argc, char **argv)
{
	int pair[2], rounds = argc > 2 ? atoi(argv[2]) : 1;
	char buffer[256];

	must(argc > 1, "usage: selftalk CERTIFICATE.pem [ROUNDS]");
	must(socketpair(AF_UNIX, SOCK_STREAM, 0, pair) == 0, "socketpair");
	pid_t server = fork();
	if (server == 0) {
		SSL_CTX *context = SSL_CTX_new(TLS_server_method());
		must(SSL_CTX_use_certificate_file(context, argv[1], SSL_FILETYPE_PEM) == 1, "certificate");
		must(SSL_CTX_use_PrivateKey_file(context, argv[1], SSL_FILETYPE_PEM) == 1, "private key");
		SSL *ssl = over(context, pair[1]);
		must(SSL_accept(ssl) == 1, "SSL_accept");
		for (int i = 0; i < rounds; i++) {
			int n = SSL_read(ssl, buffer, sizeof(buffer));
			must(n > 0 && SSL_write(ssl, "HTTP/1.1 200 OK\r\n\r\n", 19) == 19, "answer");
		}
		_exit(0);
	}
	SSL_CTX *context = SSL_CTX_new(TLS_client_method());
	SSL *ssl = over(context, pair[0]);
	must(SSL_connect(ssl) == 1, "SSL_connect");
	for (int i = 0; i < rounds; i++) {
		int n = snprintf(buffer, sizeof(buffer), "GET /secret/%d HTTP/1.1\r\n\r\n", i);
		must(SSL_write(ssl, buffer, n) == n, "SSL_write");
		must(SSL_read(ssl, buffer, sizeof(buffer)) > 0, "SSL_read");
	}
	waitpid(server, NULL, 0);
	printf("%d rounds over %s\n", rounds, SSL_get_version(ssl));
	return 0;
}
