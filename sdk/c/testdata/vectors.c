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

/* The kind of the vectors of agents. */
static int set(int64_t n) {
	char buf[21];
	lode_bytes d = lode_signed(n, buf);
	return lode_state_put("n", d.ptr, d.len) != 0;
}

static int64_t has(void) {
	int64_t n = 0;
	lode_result r = lode_state_get("n");
	if (lode_found(&r)) lode_integer(r.m.body, &n);
	return n;
}

static int64_t number(void) {
	int64_t n = 0;
	lode_integer(lode_argument(lode_body(), 0), &n);
	return n;
}

static int add(void) {
	int64_t n = has() + number();
	return set(n) ? lode_error("State", "it is not stored") : lode_answer_integer(n);
}

static int get(void) { return lode_answer_integer(has()); }
static int lose(void) { set(number()); return lode_error("Lost", "lost"); }
static int refuse(void) { set(number()); return lode_refuse(409, "conflict", "lost"); }
static int nothing(uint32_t status) { return status ? lode_error("Operation", "it failed") : lode_answer(204, NULL, NULL, 0); }

static int keys(void) {
	lode_batch w = lode_batch_begin();
	lode_batch_put(&w, lode_text("k1"), lode_text("1"));
	lode_batch_put(&w, lode_text("k2"), lode_text("2"));
	lode_batch_put(&w, lode_text("k3"), lode_text("3"));
	if (lode_batch_end(&w) || lode_state_delete("k2")) return lode_error("State", "it is not stored");
	lode_result r = lode_state_list("k", NULL);
	lode_builder b = {NULL, 0, 0};
	lode_bytes key, value;
	for (uint32_t at = 0; lode_entry(r.m.body, &at, &key, &value);) {
		lode_body_of(&b, b.len ? ",\"" : "[\"", 2);
		lode_body_of(&b, key.ptr, key.len);
		lode_body_of(&b, "\"", 1);
	}
	lode_body_of(&b, "]", 1);
	return lode_answer(200, "application/json", b.ptr, b.len);
}

static int later(void) { return nothing(lode_timer("t", (uint64_t)number(), "add", "4", 1, 0)); }

static const char *address(void) {
	lode_bytes a = lode_argument(lode_body(), 0); /* a JSON string */
	char *s = lode_alloc(a.len);
	lode_copy(s, a.ptr + 1, a.len - 2);
	s[a.len - 2] = 0;
	return s;
}

static int tell(void) { return nothing(lode_tell(address(), "add", "2", 1, 0)); }
static int ask(void) { return body_of(lode_ask(address(), "add", "3", 1, 0)); }

LODE_EXPORTS(
	LODE_KIND("vector", LODE_METHOD("add", add) LODE_READ("get", get) LODE_METHOD("lose", lose) LODE_METHOD("refuse", refuse) LODE_METHOD("keys", keys)
		LODE_METHOD("later", later) LODE_METHOD("tell", tell) LODE_METHOD("ask", ask))
	LODE_FUNCTION("recode", recode) LODE_FUNCTION("ten", ten) LODE_FUNCTION("error", error_kind) LODE_FUNCTION("copy", copy)
	LODE_FUNCTION("secret", secret) LODE_FUNCTION("config", config) LODE_FUNCTION("fetch", fetch) LODE_FUNCTION("log", line)
	LODE_FUNCTION("fail", fail) LODE_JOB("", map, merge))
