/* The C SDK's side of the ABI vectors. */
#include "lode.h"

static int text(lode_bytes b) { return lode_answer(200, "text/plain", b.ptr, b.len); }

static int recode(void) {
	lode_bytes raw = lode_body();
	lode_message m;
	if (!raw.ptr || lode_decode(raw.ptr, raw.len, &m)) return text(lode_text("malformed"));
	lode_builder b = lode_build();
	const uint8_t *p = m.head.ptr;
	for (uint32_t i = 0; i < m.pairs; i++) {
		uint32_t k = lode_u32(p), v = lode_u32(p + 4);
		char *key = lode_alloc(k + 1);
		lode_copy(key, p + 8, k);
		key[k] = 0;
		lode_pair(&b, key, (lode_bytes){p + 8 + k, v});
		p += 8 + k + v;
	}
	lode_body_of(&b, m.body.ptr, m.body.len);
	return lode_answer(200, NULL, b.ptr, b.len);
}

static int ten(void) {
	int32_t ids[10];
	for (int i = 0; i < 10; i++) {
		char digit = (char)('0' + i);
		ids[i] = lode_call_start("echo", &digit, 1);
	}
	for (int i = 0; i < 10; i++) {
		lode_result r = lode_finish(ids[i]);
		if (r.status || lode_send(r.m.body.ptr, r.m.body.len)) return lode_error("Call", "a call failed");
	}
	return 0;
}

static int error_kind(void) {
	lode_result r = lode_call("nobody", NULL, 0);
	if (r.status != LODE_NOT_FOUND) return lode_error("Call", "nobody was found");
	return text(lode_get(&r.m, ":error"));
}

static int copy(void) {
	uint8_t buf[64];
	for (;;) {
		int32_t n = lode_next(buf, sizeof buf);
		if (n <= 0) return n;
		if (lode_send(buf, (uint32_t)n)) return 1;
	}
}

static int body_of(lode_result r) { return r.status ? lode_error("Operation", "it failed") : text(r.m.body); }
static int secret(void) { return body_of(lode_secret("KEY")); }
static int config(void) { return body_of(lode_config("MODE")); }
static int fetch(void) { return body_of(lode_fetch("GET", "http://example.com/x", NULL, 0)); }
static int line(void) { lode_log(LODE_WARN, "hello"); return 0; }
static int fail(void) { return lode_error("Teapot", "short and stout"); }

static int map(void) {
	lode_bytes s = lode_shard();
	if (!s.ptr || (uintptr_t)s.ptr % LODE_PAGE) return lode_error("Shard", "it is not mapped");
	uint64_t sum = 0;
	for (uint32_t i = 0; i < s.len; i++) sum += s.ptr[i];
	char digits[20];
	return text(lode_digits(sum, digits));
}

static int merge(void) {
	lode_bytes a, b;
	if (lode_partials(&a, &b)) return lode_error("Merge", "cut short");
	char digits[20];
	return text(lode_digits((uint64_t)(lode_number(a) + lode_number(b)), digits));
}

LODE_EXPORTS(
	LODE_FUNCTION("recode", recode) LODE_FUNCTION("ten", ten) LODE_FUNCTION("error", error_kind) LODE_FUNCTION("copy", copy)
	LODE_FUNCTION("secret", secret) LODE_FUNCTION("config", config) LODE_FUNCTION("fetch", fetch) LODE_FUNCTION("log", line)
	LODE_FUNCTION("fail", fail) LODE_JOB("", map, merge))
