/* The C guest of bench invoke: it reads the body, hashes it, writes a line. */
#include "lode.h"

/* It makes modules differ where a bench needs many. */
static const char variant[] = "LODE-VARIANT-00000000";

static int hash(void) {
	static uint8_t buf[4096];
	static const char hex[] = "0123456789abcdef";
	uint32_t h = 2166136261u;
	int32_t n;
	while ((n = lode_next(buf, sizeof buf)) > 0)
		for (int32_t i = 0; i < n; i++) h = (h ^ buf[i]) * 16777619u;
	if (lode_same(lode_header("x-variant"), "1")) return lode_answer(200, "text/plain", variant, sizeof variant - 1);
	if (n < 0) return lode_error("Body", "the body broke off");
	char line[9];
	for (int i = 0; i < 8; i++) line[i] = hex[h >> (28 - 4 * i) & 15];
	line[8] = '\n';
	return lode_answer(200, "text/plain", line, sizeof line);
}

LODE_EXPORTS(LODE_FUNCTION("", hash))
