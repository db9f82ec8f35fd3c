/* The C kind of bench agents: a counter that keeps one number, and echoes. */
#include "lode.h"

static int add(void) {
	int64_t n = 0, has = 0;
	char buf[21];
	if (lode_integer(lode_argument(lode_body(), 0), &n)) return lode_refuse(400, "invalid", "add takes a whole number");
	lode_result r = lode_state_get("n");
	if (r.status || (lode_found(&r) && lode_integer(r.m.body, &has))) return lode_error("State", "the number cannot be read");
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

static int echo(void) {
	lode_bytes b = lode_body();
	return lode_answer(200, "application/octet-stream", b.ptr, b.len);
}

/* say gives back a text; ask has another agent say 1 KB, so often as it is told. */
static int say(void) {
	lode_bytes b = lode_body();
	return lode_answer(200, "application/json", b.ptr, b.len);
}

static int ask(void) {
	static uint8_t text[1026];
	lode_bytes body = lode_body(), to = lode_argument(body, 0);
	int64_t n;
	char address[128];
	if (lode_integer(lode_argument(body, 1), &n) || to.len < 2 || to.len > sizeof address) return lode_refuse(400, "invalid", "ask takes an address and a number");
	lode_copy(address, to.ptr + 1, to.len - 2);
	address[to.len - 2] = 0;
	for (uint32_t i = 0; i < sizeof text; i++) text[i] = i == 0 || i == sizeof text - 1 ? '"' : 'x';
	for (int64_t i = 0; i < n; i++)
		if (lode_ask(address, "say", text, sizeof text, 0).status) return lode_error("Call", "the other agent does not answer");
	return lode_answer_integer(n);
}

/* keep stores what it gets. */
static int keep(void) {
	lode_bytes b = lode_body();
	return lode_state_put("v", b.ptr, b.len) ? lode_error("State", "the value cannot be stored") : lode_answer(204, NULL, NULL, 0);
}

/* relay counts, and has another agent of the kind count as well: sink0 to sink9. */
static int relay(void) {
	int64_t has = 0;
	char buf[21], to[128];
	lode_bytes at = lode_header(":address");
	uint32_t n = 0, h = 0;
	lode_result r = lode_state_get("n");
	if (r.status || (lode_found(&r) && lode_integer(r.m.body, &has))) return lode_error("State", "the number cannot be read");
	lode_bytes d = lode_signed(has + 1, buf);
	if (lode_state_put("n", d.ptr, d.len)) return lode_error("State", "the number cannot be stored");
	for (uint32_t i = 0; i < at.len; i++) h = h * 31 + at.ptr[i];
	while (n < at.len && n < 100 && at.ptr[n] != '/') to[n] = (char)at.ptr[n], n++;
	lode_copy(to + n, "/sink", 5);
	to[n + 5] = (char)('0' + h % 10);
	to[n + 6] = 0;
	if (lode_tell(to, "add", "1", 1, 0)) return lode_error("Send", "the message is not taken");
	return lode_answer_integer(has + 1);
}

LODE_EXPORTS(LODE_KIND("counter", LODE_METHOD("add", add) LODE_READ("get", get) LODE_READ("echo", echo) LODE_READ("say", say) LODE_READ("ask", ask) LODE_METHOD("keep", keep) LODE_METHOD("relay", relay)))
