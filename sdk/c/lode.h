/* lode.h: functions, jobs and agents for Lode in C. Header only; include it in one file.
 *
 *     #include "lode.h"
 *     static int hello(void) {
 *         lode_bytes body = lode_body();
 *         return lode_answer(200, "text/plain", body.ptr, body.len);
 *     }
 *     LODE_EXPORTS(LODE_FUNCTION("", hello))
 *
 * It needs nothing: it compiles freestanding (clang --target=wasm32 -nostdlib)
 * and with wasi-libc. A handler returns 0, or what lode_error returned. Strings
 * are not ended by a zero byte; lengths are always given. Memory from lode_alloc is
 * never freed: the sandbox is clean again before the next invocation. An agent's is
 * not: there, memory from lode_alloc is valid until the turn ends, and what is static
 * is a cache, see lode_is_warm.
 * Numbers and bytes are those of the guest ABI, version 1.
 */
#ifndef LODE_H
#define LODE_H

#include <stddef.h>
#include <stdint.h>

#define LODE_IMPORT(name) __attribute__((import_module("lode_v1"), import_name(name))) extern
#define LODE_EXPORT(name) __attribute__((export_name(name), visibility("default"), used))
#define LODE_API static __attribute__((unused))

/* ---- the imports, as the ABI has them ---- */
LODE_IMPORT("request") int32_t lode_request(void *p, uint32_t cap);
LODE_IMPORT("read") int32_t lode_read(void *p, uint32_t cap);
LODE_IMPORT("respond") int32_t lode_respond(const void *p, uint32_t len);
LODE_IMPORT("write") int32_t lode_write(const void *p, uint32_t len);
LODE_IMPORT("submit") int32_t lode_submit(uint32_t op, const void *p, uint32_t len);
LODE_IMPORT("wait") int32_t lode_wait(int64_t timeout, void *out);
LODE_IMPORT("take") int32_t lode_take(int32_t id, void *p, uint32_t cap);
LODE_IMPORT("cancel") int32_t lode_cancel(int32_t id);
LODE_IMPORT("log") void lode_log_line(int32_t level, const void *p, uint32_t len);
LODE_IMPORT("fail") void lode_fail(const void *p, uint32_t len);
LODE_IMPORT("window") int64_t lode_window(int64_t offset, void *p, uint32_t len);

enum {
	LODE_CALL = 1, LODE_SEND = 2, LODE_STATE = 4, LODE_TIMER = 5, LODE_DATA = 6, LODE_CONFIG = 8, LODE_SECRET = 9, LODE_FETCH = 10, LODE_QUEUE = 11, LODE_SELF = 13,
	LODE_BODY_READ = 14, LODE_BODY_WRITE = 15, LODE_STREAM_READ = 16, LODE_STREAM_CLOSE = 17, LODE_SLEEP = 18
};
enum { LODE_AGAIN = -1, LODE_BEGUN = -2, LODE_TOO_MANY = -3, LODE_MALFORMED = -4, LODE_UNKNOWN_OP = -5, LODE_IDLE = -6 };
enum { LODE_DEBUG = -4, LODE_INFO = 0, LODE_WARN = 4, LODE_ERROR = 8 };
enum { LODE_MAX_PAIRS = 1024, LODE_MAX_FIELD = 64 << 10, LODE_MAX_MESSAGE = 16 << 20, LODE_PAGE = 64 << 10 };
/* Status numbers; 0 is done. */
enum { LODE_INVALID = 1, LODE_DENIED = 3, LODE_NOT_FOUND = 4, LODE_CONFLICT = 6, LODE_OVERLOADED = 12, LODE_CANCELLED = 13, LODE_INTERNAL = 14,
	LODE_CRASHED = 15, LODE_UNAVAILABLE = 16, LODE_DEADLINE = 17 };

/* Bytes that somebody else owns. ptr is NULL where there is nothing at all. */
typedef struct { const uint8_t *ptr; uint32_t len; } lode_bytes;

/* ---- memory ---- */
#ifdef __wasi__
#include <stdlib.h>
static struct lode_block { struct lode_block *next; uint32_t pad[3]; } *lode_blocks;
LODE_API void *lode_alloc(uint32_t n) {
	struct lode_block *b = n + sizeof *b < n ? NULL : malloc(n + sizeof *b);
	if (!b) return NULL;
	b->next = lode_blocks;
	lode_blocks = b;
	return b + 1;
}
/* lode_forget frees what came from lode_alloc since the invocation began; a turn begins
 * with it. What was allocated before the first invocation stays. */
LODE_API void lode_forget(void) {
	static int begun;
	if (!begun) lode_blocks = NULL;
	begun = 1;
	while (lode_blocks) {
		struct lode_block *next = lode_blocks->next;
		free(lode_blocks);
		lode_blocks = next;
	}
}
LODE_API void *lode_pages(uint32_t n) { return aligned_alloc(LODE_PAGE, n); }
#else
extern unsigned char __heap_base;
static uintptr_t lode_heap;
static uintptr_t lode_floor; /* what was allocated before the first invocation stays */
LODE_API void lode_forget(void) {
	if (!lode_floor) lode_floor = lode_heap ? lode_heap : (uintptr_t)&__heap_base;
	lode_heap = lode_floor;
}
/* lode_alloc gives 16-aligned memory, NULL if there is no more. */
LODE_API void *lode_alloc_at(uint32_t n, uintptr_t align) {
	if (!lode_heap) lode_heap = (uintptr_t)&__heap_base;
	uintptr_t p = (lode_heap + align - 1) & ~(align - 1), end = p + n;
	if (end < p) return NULL;
	uintptr_t have = __builtin_wasm_memory_size(0) * (uintptr_t)LODE_PAGE;
	if (end > have && __builtin_wasm_memory_grow(0, (end - have + LODE_PAGE - 1) / LODE_PAGE) == (size_t)-1) return NULL;
	lode_heap = end;
	return (void *)p;
}
LODE_API void *lode_alloc(uint32_t n) { return lode_alloc_at(n, 16); }
LODE_API void *lode_pages(uint32_t n) { return lode_alloc_at(n, LODE_PAGE); }
#endif

LODE_API uint32_t lode_length(const char *s) { uint32_t n = 0; while (s[n]) n++; return n; }
LODE_API void lode_copy(void *to, const void *from, uint32_t n) { __builtin_memcpy(to, from, n); }
LODE_API lode_bytes lode_text(const char *s) { return (lode_bytes){(const uint8_t *)s, lode_length(s)}; }
LODE_API int lode_same(lode_bytes b, const char *s) {
	for (uint32_t i = 0; i < b.len; i++) if (!s[i] || (uint8_t)s[i] != b.ptr[i]) return 0;
	return s[b.len] == 0;
}
/* lode_number reads decimal digits; what follows them is ignored. */
LODE_API int64_t lode_number(lode_bytes b) {
	int64_t n = 0;
	for (uint32_t i = 0; i < b.len && b.ptr[i] >= '0' && b.ptr[i] <= '9'; i++) n = n * 10 + (b.ptr[i] - '0');
	return n;
}
/* lode_digits writes n in decimal into buf, of 20 bytes, and returns the text. */
LODE_API lode_bytes lode_digits(uint64_t n, char buf[20]) {
	uint32_t i = 20;
	do { buf[--i] = (char)('0' + n % 10); n /= 10; } while (n);
	return (lode_bytes){(const uint8_t *)buf + i, 20 - i};
}

/* ---- messages ---- */
/* A decoded message; its bytes are those it was decoded from. */
typedef struct { lode_bytes head; uint32_t pairs; lode_bytes body; } lode_message;

LODE_API uint32_t lode_u32(const uint8_t *p) { return p[0] | p[1] << 8 | p[2] << 16 | (uint32_t)p[3] << 24; }

/* lode_decode checks a whole message. 0, or LODE_MALFORMED. */
LODE_API int lode_decode(const void *raw, uint32_t len, lode_message *m) {
	const uint8_t *p = raw;
	if (len < 4 || len > LODE_MAX_MESSAGE) return LODE_MALFORMED;
	uint32_t n = lode_u32(p), at = 4;
	if (n > LODE_MAX_PAIRS) return LODE_MALFORMED;
	for (uint32_t i = 0; i < n; i++) {
		if (len - at < 8) return LODE_MALFORMED;
		uint32_t k = lode_u32(p + at), v = lode_u32(p + at + 4);
		at += 8;
		if (k > LODE_MAX_FIELD || v > LODE_MAX_FIELD || k + v > len - at) return LODE_MALFORMED;
		at += k + v;
	}
	*m = (lode_message){{p + 4, at - 4}, n, {p + at, len - at}};
	return 0;
}

/* lode_get is the first value of a key; ptr is NULL if there is none. */
LODE_API lode_bytes lode_get(const lode_message *m, const char *key) {
	const uint8_t *p = m->head.ptr;
	for (uint32_t i = 0; i < m->pairs; i++) {
		uint32_t k = lode_u32(p), v = lode_u32(p + 4);
		if (lode_same((lode_bytes){p + 8, k}, key)) return (lode_bytes){p + 8 + k, v};
		p += 8 + k + v;
	}
	return (lode_bytes){NULL, 0};
}

/* A message being written: pairs first, then the body. */
typedef struct { uint8_t *ptr; uint32_t len, cap; } lode_builder;

LODE_API void lode_grow(lode_builder *b, uint32_t n) {
	if (b->cap - b->len >= n) return;
	uint32_t cap = (b->len + n) * 2 + 64;
	uint8_t *p = lode_alloc(cap);
	if (!p) __builtin_trap();
	if (b->len) lode_copy(p, b->ptr, b->len);
	b->ptr = p;
	b->cap = cap;
}
LODE_API void lode_put_u32(uint8_t *p, uint32_t n) { p[0] = (uint8_t)n; p[1] = (uint8_t)(n >> 8); p[2] = (uint8_t)(n >> 16); p[3] = (uint8_t)(n >> 24); }
LODE_API lode_builder lode_build(void) {
	lode_builder b = {NULL, 0, 0};
	lode_grow(&b, 4);
	lode_put_u32(b.ptr, 0);
	b.len = 4;
	return b;
}
LODE_API void lode_body_of(lode_builder *b, const void *p, uint32_t n) {
	lode_grow(b, n);
	if (n) lode_copy(b->ptr + b->len, p, n);
	b->len += n;
}
LODE_API void lode_pair(lode_builder *b, const char *key, lode_bytes value) {
	uint32_t k = lode_length(key);
	lode_grow(b, 8 + k + value.len);
	lode_put_u32(b->ptr, lode_u32(b->ptr) + 1);
	lode_put_u32(b->ptr + b->len, k);
	lode_put_u32(b->ptr + b->len + 4, value.len);
	b->len += 8;
	lode_body_of(b, key, k);
	lode_body_of(b, value.ptr, value.len);
}

/* ---- operations ---- */
/* What became of an operation: status 0 is done, else an error's number. */
typedef struct { uint32_t status; lode_message m; } lode_result;

static struct { uint32_t id, status, length; } lode_seen[LODE_MAX_PAIRS];
static uint32_t lode_seen_count;

/* lode_start submits; the id is > 0, else one of the refusals above. */
LODE_API int32_t lode_start(uint32_t op, const lode_builder *b) { return lode_submit(op, b->ptr, b->len); }

/* lode_finish waits for one operation; others may end meanwhile and are kept. */
LODE_API lode_result lode_finish(int32_t id) {
	lode_result r = {LODE_INTERNAL, {{NULL, 0}, 0, {NULL, 0}}};
	if (id <= 0) { r.status = id == LODE_TOO_MANY ? LODE_OVERLOADED : id == LODE_UNKNOWN_OP ? LODE_UNAVAILABLE : LODE_INVALID; return r; }
	for (;;) {
		for (uint32_t i = 0; i < lode_seen_count; i++) {
			if (lode_seen[i].id != (uint32_t)id) continue;
			uint32_t n = lode_seen[i].length;
			r.status = lode_seen[i].status;
			lode_seen[i] = lode_seen[--lode_seen_count];
			uint8_t *p = lode_alloc(n ? n : 1);
			if (!p || lode_take(id, p, n) != (int32_t)n || lode_decode(p, n, &r.m)) r.status = r.status ? r.status : LODE_INTERNAL;
			return r;
		}
		uint8_t out[12];
		if (lode_seen_count == LODE_MAX_PAIRS || lode_wait(-1, out) != 1) return r;
		lode_seen[lode_seen_count].id = lode_u32(out);
		lode_seen[lode_seen_count].status = lode_u32(out + 4);
		lode_seen[lode_seen_count++].length = lode_u32(out + 8);
	}
}

LODE_API lode_result lode_operate(uint32_t op, const lode_builder *b) { return lode_finish(lode_start(op, b)); }

/* lode_call_start and lode_fetch_start begin a call of a function, or a request to
 * the outside; lode_finish ends it, so that several overlap. */
LODE_API int32_t lode_call_start(const char *address, const void *body, uint32_t len) {
	lode_builder b = lode_build();
	lode_pair(&b, ":address", lode_text(address));
	lode_body_of(&b, body, len);
	return lode_start(LODE_CALL, &b);
}
LODE_API lode_result lode_call(const char *address, const void *body, uint32_t len) { return lode_finish(lode_call_start(address, body, len)); }
LODE_API int32_t lode_fetch_start(const char *method, const char *url, const void *body, uint32_t len) {
	lode_builder b = lode_build();
	lode_pair(&b, ":method", lode_text(method));
	lode_pair(&b, ":url", lode_text(url));
	lode_body_of(&b, body, len);
	return lode_start(LODE_FETCH, &b);
}
LODE_API lode_result lode_fetch(const char *method, const char *url, const void *body, uint32_t len) {
	return lode_finish(lode_fetch_start(method, url, body, len));
}
LODE_API lode_result lode_keyed(uint32_t op, const char *key) {
	lode_builder b = lode_build();
	lode_pair(&b, ":key", lode_text(key));
	return lode_operate(op, &b);
}
/* lode_config and lode_secret give a value as the result's body. */
LODE_API lode_result lode_config(const char *key) { return lode_keyed(LODE_CONFIG, key); }
LODE_API lode_result lode_secret(const char *key) { return lode_keyed(LODE_SECRET, key); }
/* lode_put puts JSON into a queue; the result's ":id" names the message. */
LODE_API lode_result lode_put(const char *queue, const void *json, uint32_t len) {
	lode_builder b = lode_build();
	lode_pair(&b, ":queue", lode_text(queue));
	lode_pair(&b, "content-type", lode_text("application/json"));
	lode_body_of(&b, json, len);
	return lode_operate(LODE_QUEUE, &b);
}
LODE_API uint32_t lode_await(uint32_t op) {
	lode_builder b = lode_build();
	return lode_operate(op, &b).status;
}
LODE_API void lode_log(int32_t level, const char *text) { lode_log_line(level, text, lode_length(text)); }

/* ---- the request ---- */
static lode_message lode_current;

/* lode_header is a field of the request's head, ":path" and its like too. */
LODE_API lode_bytes lode_header(const char *key) { return lode_get(&lode_current, key); }

/* lode_load reads the head; the exports do it before a handler runs. */
LODE_API int lode_load(void) {
	static uint8_t small[2048];
	int32_t n = lode_request(small, sizeof small);
	uint8_t *p = small;
	if (n > (int32_t)sizeof small) {
		if (!(p = lode_alloc((uint32_t)n))) return LODE_MALFORMED;
		lode_request(p, (uint32_t)n);
	}
	return n < 0 ? LODE_MALFORMED : lode_decode(p, (uint32_t)n, &lode_current);
}

/* lode_next reads the next piece of the body into p: its length, 0 at the end,
 * < 0 when it broke off. It waits. */
LODE_API int32_t lode_next(void *p, uint32_t cap) {
	for (;;) {
		int32_t n = lode_read(p, cap);
		if (n != LODE_AGAIN) return n;
		if (lode_await(LODE_BODY_READ)) return LODE_MALFORMED;
	}
}

/* lode_body reads the whole body. ptr is NULL if it broke off or has no room. */
LODE_API lode_bytes lode_body(void) {
	lode_bytes size = lode_header("content-length");
	uint32_t cap = size.ptr ? (uint32_t)lode_number(size) + 1 : 4096, len = 0;
	uint8_t *buf = lode_alloc(cap);
	while (buf) {
		int32_t n = lode_next(buf + len, cap - len);
		if (n < 0) break;
		if (n == 0) return (lode_bytes){buf, len};
		len += (uint32_t)n;
		if (len < cap) continue;
		uint8_t *more = lode_alloc(cap * 2);
		if (!more) break;
		lode_copy(more, buf, len);
		buf = more;
		cap *= 2;
	}
	return (lode_bytes){NULL, 0};
}

/* ---- the answer ---- */
/* lode_send appends to the answer's body, waiting for credit. 0, or < 0. */
LODE_API int lode_send(const void *p, uint32_t len) {
	const uint8_t *at = p;
	while (len) {
		int32_t n = lode_write(at, len);
		if (n < 0) return n;
		at += n;
		len -= (uint32_t)n;
		if (len && lode_await(LODE_BODY_WRITE)) return -1;
	}
	return 0;
}

/* lode_answer sends status, content type and body: a short answer in one call of
 * the host. More may follow by lode_send. 0, or < 0. */
LODE_API int lode_answer(int status, const char *type, const void *body, uint32_t len) {
	static uint8_t room[1024];
	lode_builder b = {room, 4, sizeof room};
	char digits[20];
	lode_put_u32(room, 0);
	if (status != 200) lode_pair(&b, ":status", lode_digits((uint64_t)status, digits));
	if (type) lode_pair(&b, "content-type", lode_text(type));
	int whole = len <= LODE_PAGE;
	if (whole) lode_body_of(&b, body, len);
	int32_t rc = lode_respond(b.ptr, b.len);
	return rc < 0 ? rc : whole ? 0 : lode_send(body, len);
}

/* lode_quoted appends text as it stands between the quotes of a JSON string. */
LODE_API void lode_quoted(lode_builder *b, const char *text) {
	static const char hex[] = "0123456789abcdef";
	for (const char *s = text; *s; s++) {
		if (*s == '"' || *s == '\\') lode_body_of(b, "\\", 1);
		if ((uint8_t)*s < ' ') {
			char e[6] = {'\\', 'u', '0', '0', hex[*s >> 4], hex[*s & 15]};
			lode_body_of(b, e, 6);
			continue;
		}
		lode_body_of(b, s, 1);
	}
}

/* lode_error says what went wrong; return what it returns. */
LODE_API int lode_error(const char *type, const char *message) {
	lode_builder b = {NULL, 0, 0};
	const char *parts[] = {"{\"type\":\"", type, "\",\"message\":\"", message, "\",\"stack\":[]}"};
	for (int i = 0; i < 5; i++) {
		if (i % 2) lode_quoted(&b, parts[i]);
		else lode_body_of(&b, parts[i], lode_length(parts[i]));
	}
	lode_fail(b.ptr, b.len);
	return 1;
}

/* lode_refuse is lode_error for the method of an agent whose caller is to know the kind:
 * the word and the HTTP status of an error, "conflict" and 409. Such an answer undoes the
 * turn. */
LODE_API int lode_refuse(int status, const char *kind, const char *message) {
	char digits[20];
	lode_bytes number = lode_digits((uint64_t)status, digits);
	lode_builder b = {NULL, 0, 0};
	const char *parts[] = {"{\"type\":\"urn:lode:error:", kind, "\",\"kind\":\"", kind, "\",\"detail\":\"", message, "\",\"status\":"};
	for (int i = 0; i < 7; i++) {
		if (i % 2) lode_quoted(&b, parts[i]);
		else lode_body_of(&b, parts[i], lode_length(parts[i]));
	}
	lode_body_of(&b, number.ptr, number.len);
	lode_body_of(&b, "}", 1);
	return lode_answer(status, "application/problem+json", b.ptr, b.len) ? lode_error(kind, message) : 0;
}

/* ---- jobs ---- */
/* lode_shard lays the whole shard of a job into memory, aligned to a page, so that
 * vectors may be loaded from it. ptr is NULL if that failed. */
LODE_API lode_bytes lode_shard(void) {
	int64_t size = lode_number(lode_header(":shard-bytes")), at = 0;
	if (size <= 0 || size > (int64_t)1 << 31) return (lode_bytes){size == 0 ? (const uint8_t *)"" : NULL, 0};
	uint32_t whole = ((uint32_t)size + LODE_PAGE - 1) / LODE_PAGE * LODE_PAGE;
	uint8_t *p = lode_pages(whole);
	while (p && at < size) {
		int64_t n = lode_window(at, p + at, whole - (uint32_t)at);
		if (n <= 0 || (at + n < size && n % LODE_PAGE)) return (lode_bytes){NULL, 0};
		at += n;
	}
	return (lode_bytes){p, p ? (uint32_t)size : 0};
}

/* lode_partials splits the body of a merge into its two partial results. 0 or < 0. */
LODE_API int lode_partials(lode_bytes *a, lode_bytes *b) {
	lode_bytes m = lode_body();
	if (!m.ptr || m.len < 4 || lode_u32(m.ptr) > m.len - 4) return LODE_MALFORMED;
	*a = (lode_bytes){m.ptr + 4, lode_u32(m.ptr)};
	*b = (lode_bytes){a->ptr + a->len, m.len - 4 - a->len};
	return 0;
}

/* ---- agents ---- */
/* What is told of a turn: its kind, the agent's key, its method. */
LODE_API lode_bytes lode_turn(void) { return lode_header(":turn"); }
LODE_API lode_bytes lode_agent(void) { return lode_header(":agent"); }
LODE_API lode_bytes lode_method_name(void) { return lode_header(":verb"); }
/* lode_is_warm tells that this sandbox ran the agent's last turn, and that it took
 * effect: what was kept of the agent in memory then is its state. Else it is stale. */
LODE_API int lode_is_warm(void) { return lode_same(lode_header(":warm"), "1"); }

/* lode_skip is where the JSON value at i ends. Not a check: the text was not made here. */
LODE_API uint32_t lode_skip(lode_bytes b, uint32_t i) {
	int deep = 0, quoted = 0;
	for (; i < b.len; i++) {
		uint8_t c = b.ptr[i];
		if (quoted) {
			if (c == '\\') i++;
			else if (c == '"') quoted = 0;
		} else if (c == '"') quoted = 1;
		else if (c == '[' || c == '{') deep++;
		else if ((c == ']' || c == '}' || c == ',') && deep == 0) break;
		else if (c == ']' || c == '}') deep--;
	}
	return i < b.len ? i : b.len;
}
/* lode_argument is the n-th argument of a turn, from 0 on, as JSON (or bytes); body is
 * lode_body(). ptr is NULL if there is none. */
LODE_API lode_bytes lode_argument(lode_bytes body, uint32_t n) {
	if (!lode_same(lode_header("content-type"), "application/vnd.lode.args+json")) return n || !body.len ? (lode_bytes){NULL, 0} : body;
	uint32_t i = 0;
	while (i < body.len && body.ptr[i] != '[') i++;
	for (i++; i < body.len && body.ptr[i] != ']'; i++) {
		uint32_t end;
		while (i < body.len && body.ptr[i] <= ' ') i++;
		end = lode_skip(body, i);
		if (n-- == 0) return end > i ? (lode_bytes){body.ptr + i, end - i} : (lode_bytes){NULL, 0};
		if ((i = end) >= body.len || body.ptr[i] != ',') break;
	}
	return (lode_bytes){NULL, 0};
}
/* lode_integer reads a JSON number that is one, or the text of lode_signed. 0, or < 0. */
LODE_API int lode_integer(lode_bytes b, int64_t *n) {
	uint32_t i = 0, from;
	uint64_t x = 0;
	int minus = b.len && b.ptr[0] == '-';
	for (i = from = (uint32_t)minus; i < b.len && b.ptr[i] >= '0' && b.ptr[i] <= '9' && i < 19; i++) x = x * 10 + (uint64_t)(b.ptr[i] - '0');
	*n = minus ? -(int64_t)x : (int64_t)x;
	uint32_t digits = i - from;
	while (i < b.len && b.ptr[i] <= ' ') i++;
	return digits && i == b.len ? 0 : LODE_MALFORMED;
}
/* lode_signed writes n in decimal into buf, of 21 bytes, and returns the text. */
LODE_API lode_bytes lode_signed(int64_t n, char buf[21]) {
	lode_bytes d = lode_digits(n < 0 ? -(uint64_t)n : (uint64_t)n, buf + 1);
	if (n >= 0) return d;
	((char *)(uintptr_t)d.ptr)[-1] = '-';
	return (lode_bytes){d.ptr - 1, d.len + 1};
}
LODE_API int lode_answer_integer(int64_t n) {
	char buf[21];
	lode_bytes d = lode_signed(n, buf);
	return lode_answer(200, "application/json", d.ptr, d.len);
}

LODE_API lode_builder lode_verb(const char *verb) {
	lode_builder b = lode_build();
	lode_pair(&b, ":verb", lode_text(verb));
	return b;
}
LODE_API lode_result lode_state(const char *verb, lode_bytes key, const void *value, uint32_t len) {
	lode_builder b = lode_verb(verb);
	lode_pair(&b, ":key", key);
	lode_body_of(&b, value, len);
	return lode_operate(LODE_STATE, &b);
}
/* lode_state_get gives a value as the result's body; lode_found tells whether there is
 * one. lode_state_put and lode_state_delete give a status: 0, or an error's number. */
LODE_API lode_result lode_state_get(const char *key) { return lode_state("get", lode_text(key), NULL, 0); }
LODE_API int lode_found(const lode_result *r) { return !r->status && lode_same(lode_get(&r->m, ":found"), "1"); }
LODE_API uint32_t lode_state_put(const char *key, const void *value, uint32_t len) { return lode_state("put", lode_text(key), value, len).status; }
LODE_API uint32_t lode_state_delete(const char *key) { return lode_state("delete", lode_text(key), NULL, 0).status; }

/* A batch writes many keys with one operation: lode_batch_begin, puts and deletes,
 * lode_batch_end, which gives a status. */
typedef struct { lode_builder b; uint32_t at; } lode_batch;
LODE_API lode_batch lode_batch_begin(void) {
	static const uint8_t none[4];
	lode_batch w = {lode_verb("write"), 0};
	w.at = w.b.len;
	lode_body_of(&w.b, none, 4);
	return w;
}
LODE_API void lode_batch_change(lode_batch *w, uint8_t what, lode_bytes key, lode_bytes value) {
	lode_put_u32(w->b.ptr + w->at, lode_u32(w->b.ptr + w->at) + 1);
	lode_grow(&w->b, 9 + key.len + value.len);
	w->b.ptr[w->b.len] = what;
	lode_put_u32(w->b.ptr + w->b.len + 1, key.len);
	lode_put_u32(w->b.ptr + w->b.len + 5, value.len);
	w->b.len += 9;
	lode_body_of(&w->b, key.ptr, key.len);
	lode_body_of(&w->b, value.ptr, value.len);
}
LODE_API void lode_batch_put(lode_batch *w, lode_bytes key, lode_bytes value) { lode_batch_change(w, 1, key, value); }
LODE_API void lode_batch_delete(lode_batch *w, lode_bytes key) { lode_batch_change(w, 2, key, (lode_bytes){NULL, 0}); }
LODE_API uint32_t lode_batch_end(lode_batch *w) { return lode_operate(LODE_STATE, &w->b).status; }

/* lode_state_list gives the keys that begin with prefix: the result's body, for
 * lode_entry. ":more" is 1 if there are more after them. */
LODE_API lode_result lode_state_list(const char *prefix, const char *start) {
	lode_builder b = lode_verb("list");
	lode_pair(&b, ":prefix", lode_text(prefix));
	if (start) lode_pair(&b, ":start", lode_text(start));
	return lode_operate(LODE_STATE, &b);
}
/* lode_entry takes the next key and value of a list's body; *at is 0 first. 0 at the end. */
LODE_API int lode_entry(lode_bytes body, uint32_t *at, lode_bytes *key, lode_bytes *value) {
	if (!*at) *at = 4;
	if (body.len < *at || body.len - *at < 8) return 0;
	uint32_t k = lode_u32(body.ptr + *at), v = lode_u32(body.ptr + *at + 4), rest = body.len - *at - 8;
	if (k > rest || v > rest - k) return 0;
	*key = (lode_bytes){body.ptr + *at + 8, k};
	*value = (lode_bytes){key->ptr + k, v};
	*at += 8 + k + v;
	return 1;
}

/* Arguments below are JSON, a list if they are several: "[1,2]" with list = 1. */
LODE_API void lode_arguments(lode_builder *b, const void *json, uint32_t len, int list) {
	if (len) lode_pair(b, "content-type", lode_text(list ? "application/vnd.lode.args+json" : "application/json"));
	lode_body_of(b, json, len);
}
/* lode_ask calls a method of an agent; lode_ask_start begins it, for lode_finish. */
LODE_API int32_t lode_ask_start(const char *address, const char *method, const void *json, uint32_t len, int list) {
	lode_builder b = lode_verb(method);
	lode_pair(&b, ":address", lode_text(address));
	lode_arguments(&b, json, len, list);
	return lode_start(LODE_CALL, &b);
}
LODE_API lode_result lode_ask(const char *address, const char *method, const void *json, uint32_t len, int list) {
	return lode_finish(lode_ask_start(address, method, json, len, list));
}
/* lode_tell sends an agent a message that nobody waits for. A status. */
LODE_API uint32_t lode_tell(const char *address, const char *method, const void *json, uint32_t len, int list) {
	lode_builder b = lode_verb(method);
	lode_pair(&b, ":address", lode_text(address));
	lode_arguments(&b, json, len, list);
	return lode_operate(LODE_SEND, &b).status;
}
/* lode_timer runs a method of this agent after some milliseconds; lode_timer_clear
 * removes the timer. A status. */
LODE_API uint32_t lode_timer(const char *name, uint64_t after, const char *method, const void *json, uint32_t len, int list) {
	char digits[20];
	lode_builder b = lode_verb("set");
	lode_pair(&b, ":name", lode_text(name));
	lode_pair(&b, ":after", lode_digits(after, digits));
	lode_pair(&b, ":call", lode_text(method));
	lode_arguments(&b, json, len, list);
	return lode_operate(LODE_TIMER, &b).status;
}
LODE_API uint32_t lode_timer_clear(const char *name) {
	lode_builder b = lode_verb("clear");
	lode_pair(&b, ":name", lode_text(name));
	return lode_operate(LODE_TIMER, &b).status;
}

/* ---- exports ---- */
typedef struct { const char *name; int (*run)(void); int read; } lode_method;
typedef struct { const char *name; int (*run)(void); int (*merge)(void); int form; const lode_method *methods; } lode_export;
enum { LODE_A_FUNCTION, LODE_A_JOB, LODE_A_KIND };

#define LODE_FUNCTION(name, run) {name, run, NULL, LODE_A_FUNCTION, NULL},
#define LODE_JOB(name, map, merge) {name, map, merge, LODE_A_JOB, NULL},
/* A kind of agents and its methods; those of LODE_READ only read:
 *
 *     LODE_EXPORTS(LODE_KIND("counter", LODE_METHOD("add", add) LODE_READ("get", get)))
 */
#define LODE_KIND(name, ...) {name, NULL, NULL, LODE_A_KIND, (const lode_method[]){__VA_ARGS__ {NULL, NULL, 0}}},
#define LODE_METHOD(name, run) {name, run, 0},
#define LODE_READ(name, run) {name, run, 1},
/* LODE_EXPORTS lists all handlers, jobs and kinds of the module, once. A job's merge is
 * NULL where a built-in reducer does it. */
#define LODE_EXPORTS(...) \
	static const lode_export lode_table[] = {__VA_ARGS__}; \
	LODE_EXPORT("lode_invoke") int lode_invoke(void) { return lode_dispatch(lode_table, sizeof lode_table / sizeof *lode_table); } \
	LODE_EXPORT("lode_describe") int lode_describe(void) { return lode_describe_table(lode_table, sizeof lode_table / sizeof *lode_table); }

LODE_API int lode_dispatch_turn(const lode_export *t, uint32_t n) {
	lode_bytes class = lode_header(":class"), verb = lode_method_name();
	for (uint32_t i = 0; i < n; i++) {
		if (t[i].form != LODE_A_KIND || (class.len && !lode_same(class, t[i].name))) continue;
		for (const lode_method *m = t[i].methods; m->name; m++)
			if (lode_same(verb, m->name)) return m->run();
		return lode_refuse(404, "not_found", "the kind has no method of that name");
	}
	return lode_error("NoHandler", "this module has no kind of agents of that name");
}

LODE_API int lode_dispatch(const lode_export *t, uint32_t n) {
	lode_seen_count = 0;
	lode_forget(); /* of the turn before; in a clean sandbox there is nothing */
	if (lode_load()) return lode_error("Protocol", "the request's head does not decode");
	lode_bytes kind = lode_header(":kind");
	if (lode_same(kind, "agent")) return lode_dispatch_turn(t, n);
	int merge = lode_same(kind, "merge"), job = merge || lode_same(kind, "job");
	for (int pass = job; pass >= 0; pass--) { /* a function may serve as a job's map */
		for (uint32_t i = 0; i < n; i++) {
			if (t[i].form != pass || !lode_same(lode_header(":handler"), t[i].name)) continue;
			if (!merge) return t[i].run();
			if (t[i].merge) return t[i].merge();
		}
	}
	return lode_error("NoHandler", "this module has no handler of that name");
}

#define LODE_ADD(s) lode_body_of(b, s, lode_length(s))
/* lode_describe_methods lists the methods of a kind, or those that only read. */
LODE_API void lode_describe_methods(lode_builder *b, const lode_method *m, int read) {
	LODE_ADD(read ? ",\"read\":[" : "\",\"methods\":[");
	for (int first = 1; m->name; m++) {
		if (read && !m->read) continue;
		LODE_ADD(first ? "\"" : ",\"");
		LODE_ADD(m->name);
		LODE_ADD("\"");
		first = 0;
	}
	LODE_ADD("]");
}

LODE_API void lode_describe_entry(lode_builder *b, const lode_export *e) {
	switch (e->form) {
	case LODE_A_FUNCTION: LODE_ADD("\",\"triggers\":[\"http\",\"call\",\"schedule\",\"queue\"]}"); break;
	case LODE_A_JOB: LODE_ADD(e->merge ? "\",\"reduce\":\"guest\"}" : "\"}"); break;
	case LODE_A_KIND:
		lode_describe_methods(b, e->methods, 0);
		lode_describe_methods(b, e->methods, 1);
		LODE_ADD("}");
	}
}

LODE_API int lode_describe_table(const lode_export *t, uint32_t n) {
	static const char *const lists[] = {",\"functions\":[", ",\"jobs\":[", ",\"kinds\":["};
	lode_builder built = {NULL, 0, 0}, *b = &built;
	LODE_ADD("{\"sdk\":\"c 1\",\"abi\":1");
	for (int form = LODE_A_FUNCTION; form <= LODE_A_KIND; form++) {
		int first = 1;
		for (uint32_t i = 0; i < n; i++) {
			if (t[i].form != form) continue;
			LODE_ADD(first ? lists[form] : ",");
			LODE_ADD("{\"name\":\"");
			LODE_ADD(t[i].name);
			lode_describe_entry(b, &t[i]);
			first = 0;
		}
		if (!first) LODE_ADD("]");
	}
	LODE_ADD("}");
	return lode_send(b->ptr, b->len);
}
#undef LODE_ADD

#endif
