/* Agents in C: a counter, and what else they can do. */
#include "lode.h"

static int add(void) {
	int64_t n, has = 0;
	if (lode_integer(lode_argument(lode_body(), 0), &n)) return lode_refuse(400, "invalid", "add takes a whole number");
	lode_result r = lode_state_get("n");
	if (r.status || (lode_found(&r) && lode_integer(r.m.body, &has))) return lode_error("State", "the number cannot be read");
	if (n < 0) return lode_refuse(409, "conflict", "it only \"goes\" up");
	char buf[21];
	lode_bytes d = lode_signed(has + n, buf);
	if (lode_state_put("n", d.ptr, d.len)) return lode_error("State", "the number cannot be stored");
	return lode_answer_integer(has + n);
}

static int get(void) {
	int64_t n = 0;
	lode_result r = lode_state_get("n");
	if (lode_found(&r)) lode_integer(r.m.body, &n);
	return lode_answer_integer(n);
}

/* adds counts the turns that this sandbox ran for the agent without a break. */
static int adds(void) {
	static int64_t n;
	n = lode_is_warm() ? n + 1 : 1;
	return lode_answer_integer(n);
}

static int many(void) {
	lode_batch w = lode_batch_begin();
	for (char c = 'a'; c <= 'e'; c++) {
		char key[2] = {'k', c};
		lode_batch_put(&w, (lode_bytes){(uint8_t *)key, 2}, (lode_bytes){(uint8_t *)&c, 1});
	}
	lode_batch_delete(&w, lode_text("kb"));
	if (lode_batch_end(&w) || lode_state_delete("kc")) return lode_error("State", "nothing was written");
	lode_result r = lode_state_list("k", NULL);
	lode_bytes key, value;
	for (uint32_t at = 0; lode_entry(r.m.body, &at, &key, &value);) lode_send(value.ptr, value.len);
	return 0;
}

static int pick(void) {
	lode_bytes body = lode_body(), a = lode_argument(body, 1);
	if (!a.ptr) return lode_answer(204, NULL, NULL, 0);
	return lode_answer(200, "application/json", a.ptr, a.len);
}

static int remind(void) {
	if (lode_timer("t", 5, "add", "7", 1, 0) || lode_timer("u", 5, "add", "7", 1, 0) || lode_timer_clear("u")) return lode_error("Timer", "it is not set");
	if (lode_tell("counter/other", "add", "[1]", 3, 1)) return lode_error("Send", "it is not sent");
	return 0;
}

static int ask(void) {
	lode_result r = lode_ask("counter/other", "add", "5", 1, 0);
	if (r.status) return lode_error("Call", "nobody answers");
	return lode_answer(200, "application/json", r.m.body.ptr, r.m.body.len);
}

/* waste allocates 1 MiB, which the next turn has again. */
static int waste(void) { return lode_alloc(1 << 20) ? lode_answer(204, NULL, NULL, 0) : lode_error("Memory", "there is no more"); }

static int hello(void) { return lode_answer(200, "text/plain", "hello", 5); }

LODE_EXPORTS(
	LODE_FUNCTION("", hello)
	LODE_KIND("counter", LODE_METHOD("add", add) LODE_READ("get", get) LODE_METHOD("adds", adds) LODE_METHOD("many", many) LODE_METHOD("pick", pick)
		LODE_METHOD("remind", remind) LODE_METHOD("ask", ask) LODE_METHOD("waste", waste)))
