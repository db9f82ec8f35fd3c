/* Guests that try to keep the cores for themselves. */
#include "lode.h"

static int loop(void) {
	for (volatile uint32_t i = 0;; i++) {}
	return 0;
}

static int fill(void) {
	uint32_t n = 64u << 20;
	uint8_t *p = lode_alloc(n);
	if (!p) return lode_error("Memory", "no 64 MiB");
	for (uint8_t i = 0;; i++) {
		__builtin_memset(p, i, n);
		__asm__ volatile("" ::: "memory");
	}
	return 0;
}

LODE_EXPORTS(LODE_FUNCTION("loop", loop) LODE_FUNCTION("fill", fill))
