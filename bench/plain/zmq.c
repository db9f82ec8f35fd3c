/* The ZeroMQ side of bench link.
 *   zmq serve                        answers REQ with what it got; prints its endpoint
 *   zmq call ENDPOINT BYTES MILLIS   one caller for MILLIS ms; prints calls, and the
 *                                    median and 99th percentile in microseconds */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <zmq.h>

static double now(void) {
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1e6 + t.tv_nsec / 1e3;
}

static int up(const void *a, const void *b) {
	double x = *(const double *)a, y = *(const double *)b;
	return (x > y) - (x < y);
}

static int serve(void *ctx) {
	void *s = zmq_socket(ctx, ZMQ_REP);
	char end[256];
	size_t n = sizeof end;
	if (zmq_bind(s, "tcp://127.0.0.1:*") || zmq_getsockopt(s, ZMQ_LAST_ENDPOINT, end, &n)) return 1;
	printf("%s\n", end);
	fflush(stdout);
	for (;;) {
		zmq_msg_t m;
		zmq_msg_init(&m);
		if (zmq_msg_recv(&m, s, 0) < 0 || zmq_msg_send(&m, s, 0) < 0) return 1;
	}
}

static int call(void *ctx, const char *end, int bytes, double ms) {
	void *s = zmq_socket(ctx, ZMQ_REQ);
	char *body = calloc(1, bytes), *back = malloc(bytes);
	size_t n = 0, cap = 1 << 16;
	double *took = malloc(cap * sizeof *took);
	if (zmq_connect(s, end)) return 1;
	double start = now();
	for (;;) {
		double t = now();
		if (zmq_send(s, body, bytes, 0) < 0 || zmq_recv(s, back, bytes, 0) != bytes) return 1;
		double u = now();
		if (n == cap) took = realloc(took, (cap *= 2) * sizeof *took);
		took[n++] = u - t;
		if (u - start > ms * 1e3) break;
	}
	qsort(took, n, sizeof *took, up);
	printf("%zu %f %f\n", n, took[n / 2], took[n * 99 / 100]);
	return 0;
}

int main(int argc, char **argv) {
	void *ctx = zmq_ctx_new();
	if (argc == 2 && !strcmp(argv[1], "serve")) return serve(ctx);
	if (argc == 5 && !strcmp(argv[1], "call")) return call(ctx, argv[2], atoi(argv[3]), atof(argv[4]));
	fprintf(stderr, "usage: zmq serve | zmq call ENDPOINT BYTES MILLIS\n");
	return 2;
}
