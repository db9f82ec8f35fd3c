// Answers with its request's body, turned to upper case.
#include "lode.h"

static char buf[65536];

EXPORT(lode_describe) int describe(void) {
	put("{\"sdk\":\"c 1\",\"abi\":1,\"functions\":[{\"name\":\"\"}]}");
	return 0;
}

EXPORT(lode_invoke) int invoke(void) {
	int n;
	while ((n = lode_read(buf, sizeof buf)) > 0) {
		for (int i = 0; i < n; i++)
			if (buf[i] >= 'a' && buf[i] <= 'z') buf[i] -= 32;
		lode_write(buf, n);
	}
	return 0;
}
