/* lode.h: functions and jobs for Lode in C. Header only; include it in one file.
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
 * never freed: the sandbox is clean again before the next invocation.
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
	LODE_CALL = 1, LODE_DATA = 6, LODE_CONFIG = 8, LODE_SECRET = 9, LODE_FETCH = 10, LODE_QUEUE = 11, LODE_SELF = 13,
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
LODE_API void *lode_alloc(uint32_t n) { return malloc(n ? n : 1); }
LODE_API void *lode_pages(uint32_t n) { return aligned_alloc(LODE_PAGE, n); }
#else
extern unsigned char __heap_base;
static uintptr_t lode_heap;
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

/* lode_error says what went wrong; return what it returns. */
LODE_API int lode_error(const char *type, const char *message) {
	static const char hex[] = "0123456789abcdef";
	lode_builder b = {NULL, 0, 0};
	const char *parts[] = {"{\"type\":\"", type, "\",\"message\":\"", message, "\",\"stack\":[]}"};
	for (int i = 0; i < 5; i++) {
		for (const char *s = parts[i]; *s; s++) {
			if (i % 2 && (*s == '"' || *s == '\\')) lode_body_of(&b, "\\", 1);
			if (i % 2 && (uint8_t)*s < ' ') {
				char e[6] = {'\\', 'u', '0', '0', hex[*s >> 4], hex[*s & 15]};
				lode_body_of(&b, e, 6);
				continue;
			}
			lode_body_of(&b, s, 1);
		}
	}
	lode_fail(b.ptr, b.len);
	return 1;
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

/* ---- exports ---- */
typedef struct { const char *name; int (*run)(void); int (*merge)(void); int job; } lode_export;

#define LODE_FUNCTION(name, run) {name, run, NULL, 0},
#define LODE_JOB(name, map, merge) {name, map, merge, 1},
/* LODE_EXPORTS lists all handlers and jobs of the module, once. A job's merge is
 * NULL where a built-in reducer does it. */
#define LODE_EXPORTS(...) \
	static const lode_export lode_table[] = {__VA_ARGS__}; \
	LODE_EXPORT("lode_invoke") int lode_invoke(void) { return lode_dispatch(lode_table, sizeof lode_table / sizeof *lode_table); } \
	LODE_EXPORT("lode_describe") int lode_describe(void) { return lode_describe_table(lode_table, sizeof lode_table / sizeof *lode_table); }

LODE_API int lode_dispatch(const lode_export *t, uint32_t n) {
	if (lode_load()) return lode_error("Protocol", "the request's head does not decode");
	int merge = lode_same(lode_header(":kind"), "merge"), job = merge || lode_same(lode_header(":kind"), "job");
	for (int pass = job; pass >= 0; pass--) { /* a function may serve as a job's map */
		for (uint32_t i = 0; i < n; i++) {
			if (t[i].job != pass || !lode_same(lode_header(":handler"), t[i].name)) continue;
			if (!merge) return t[i].run();
			if (t[i].merge) return t[i].merge();
		}
	}
	return lode_error("NoHandler", "this module has no handler of that name");
}

LODE_API int lode_describe_table(const lode_export *t, uint32_t n) {
	lode_builder b = {NULL, 0, 0};
#define LODE_ADD(s) lode_body_of(&b, s, lode_length(s))
	LODE_ADD("{\"sdk\":\"c 1\",\"abi\":1");
	for (int job = 0; job < 2; job++) {
		LODE_ADD(job ? ",\"jobs\":[" : ",\"functions\":[");
		int first = 1;
		for (uint32_t i = 0; i < n; i++) {
			if (t[i].job != job) continue;
			LODE_ADD(first ? "{\"name\":\"" : ",{\"name\":\"");
			LODE_ADD(t[i].name);
			LODE_ADD(job ? (t[i].merge ? "\",\"reduce\":\"guest\"}" : "\"}") : "\",\"triggers\":[\"http\",\"call\",\"schedule\",\"queue\"]}");
			first = 0;
		}
		LODE_ADD("]");
	}
	LODE_ADD("}");
#undef LODE_ADD
	return lode_send(b.ptr, b.len);
}

#endif
