/* Keeps the words without a digit: one byte for each line of the body. */
#include "lode.h"

static int filter(void) {
	lode_bytes b = lode_body();
	if (!b.ptr) return lode_error("Body", "the body broke off");
	uint8_t *out = lode_alloc(b.len);
	if (!out) return lode_error("Memory", "no room for the answer");
	uint32_t n = 0;
	uint8_t keep = '1';
	for (uint32_t i = 0; i < b.len; i++) {
		uint8_t c = b.ptr[i];
		if (c == '\n') {
			out[n++] = keep;
			keep = '1';
		} else if (c >= '0' && c <= '9') {
			keep = '0';
		}
	}
	return lode_answer(200, "text/plain", out, n);
}

LODE_EXPORTS(LODE_FUNCTION("", filter))
