/* A job in C: sums the little-endian 64-bit numbers of a shard. The shard's file
 * is laid into the guest's memory without a copy, and four vectors are added at a time. */
#include "lode.h"
#include <wasm_simd128.h>

static int sum(void) {
	lode_bytes s = lode_shard();
	if (!s.ptr) return lode_error("Shard", "the shard could not be laid into memory");
	v128_t a = wasm_i64x2_splat(0), b = a, c = a, d = a;
	const v128_t *p = (const v128_t *)s.ptr, *end = p + s.len / 64 * 4;
	for (; p < end; p += 4) {
		a = wasm_i64x2_add(a, wasm_v128_load(p));
		b = wasm_i64x2_add(b, wasm_v128_load(p + 1));
		c = wasm_i64x2_add(c, wasm_v128_load(p + 2));
		d = wasm_i64x2_add(d, wasm_v128_load(p + 3));
	}
	a = wasm_i64x2_add(wasm_i64x2_add(a, b), wasm_i64x2_add(c, d));
	uint64_t total = (uint64_t)wasm_i64x2_extract_lane(a, 0) + (uint64_t)wasm_i64x2_extract_lane(a, 1);
	for (uint32_t i = s.len / 64 * 64; i + 8 <= s.len; i += 8) { /* what is left behind the last four vectors */
		uint64_t v;
		lode_copy(&v, s.ptr + i, sizeof v);
		total += v;
	}
	char digits[20];
	lode_bytes text = lode_digits(total, digits);
	return lode_answer(200, "application/json", text.ptr, text.len);
}

LODE_EXPORTS(LODE_JOB("", sum, NULL))
