// A command: argv[1] says what to do.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int counter;

int main(int argc, char **argv) {
	const char *what = argc > 1 ? argv[1] : "cat";
	counter++;
	if (!strcmp(what, "cat")) {
		int c;
		while ((c = getchar()) != EOF) putchar(c);
	} else if (!strcmp(what, "env")) {
		const char *m = getenv("REQUEST_METHOD"), *q = getenv("QUERY_STRING"), *h = getenv("HTTP_X_A"), *u = getenv("MINE"), *p = getenv("PATH_INFO");
		printf("%s %s %s %s %s %s %d", argv[0], m ? m : "-", p ? p : "-", q ? q : "-", h ? h : "-", u ? u : "-", counter);
	} else if (!strcmp(what, "exit")) {
		printf("said %s", argv[2]);
		return atoi(argv[2]);
	} else if (!strcmp(what, "big")) {
		for (int i = 0; i < 200000; i++) printf("%09d\n", i);
	} else if (!strcmp(what, "shard")) {
		FILE *f = fopen(getenv("SHARD"), "r");
		if (!f) return 2;
		long n = 0, sum = 0;
		int c;
		while ((c = getc(f)) != EOF) n++, sum += c;
		printf("%ld %ld", n, sum);
	} else if (!strcmp(what, "abort")) {
		fprintf(stderr, "about to abort\n");
		abort();
	}
	return 0;
}
