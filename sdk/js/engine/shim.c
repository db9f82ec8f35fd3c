/* The bridge between QuickJS-ng and the guest ABI: exports lode_init,
 * lode_describe, lode_warm and lode_invoke, and the object __lode through
 * which the prelude reaches the host. Everything that is not about bytes or
 * the event loop is in the prelude.
 *
 * The bytes of the custom section lode.init, little-endian:
 *   three times: u32 length, bytes
 * the prelude (a script), the bundle (an ES module), its source map (JSON, may
 * be empty). */
#include <stdlib.h>
#include <string.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

#include "heap.h"
#include "lode.h"
#include "quickjs.h"
#include "sha.h"

static JSRuntime *rt;
static JSContext *ctx;
static JSValue on_invoke, on_complete, on_describe, on_warm, on_failure;
static lode_bytes source_map;
static int done, exit_code, seeded;

/* ---- bytes in and out ---- */

/* bytes_of borrows the bytes of an ArrayBuffer or a view; a string is copied and
 * must be freed through *text. */
static int bytes_of(JSValueConst v, const uint8_t **p, size_t *n, const char **text) {
	*text = NULL;
	*p = NULL;
	*n = 0;
	if (JS_IsUndefined(v) || JS_IsNull(v)) return 0;
	if (JS_IsString(v)) {
		*text = JS_ToCStringLen(ctx, n, v);
		*p = (const uint8_t *)*text;
		return *text ? 0 : -1;
	}
	if (JS_IsArrayBuffer(v)) {
		*p = JS_GetArrayBuffer(ctx, n, v);
		return *p || !*n ? 0 : -1;
	}
	size_t off, each;
	JSValue buf = JS_GetTypedArrayBuffer(ctx, v, &off, n, &each);
	if (JS_IsException(buf)) return -1;
	size_t whole;
	uint8_t *q = JS_GetArrayBuffer(ctx, &whole, buf);
	JS_FreeValue(ctx, buf);
	if (!q && *n) return -1;
	*p = q ? q + off : NULL;
	return 0;
}

/* encode writes the message of a flat array [key, value, ...] and a body. */
static int encode(JSValueConst pairs, JSValueConst body, uint8_t **out, uint32_t *len) {
	int64_t count = 0;
	if (JS_IsArray(pairs) && JS_GetLength(ctx, pairs, &count)) return -1;
	const uint8_t *p;
	const char *text;
	size_t n;
	if (bytes_of(body, &p, &n, &text)) return -1;
	uint32_t cap = 512 + (uint32_t)n, at = 4;
	uint8_t *b = malloc(cap);
	if (!b) { if (text) JS_FreeCString(ctx, text); return -1; }
	lode_put_u32(b, (uint32_t)count / 2);
	for (int64_t i = 0; i + 1 < count; i += 2) {
		uint32_t lengths = at;
		at += 8;
		for (int j = 0; j < 2; j++) {
			JSValue v = JS_GetPropertyInt64(ctx, pairs, i + j);
			size_t m;
			const char *s = JS_ToCStringLen(ctx, &m, v);
			JS_FreeValue(ctx, v);
			if (!s) { free(b); if (text) JS_FreeCString(ctx, text); return -1; }
			if (at + m + n + 64 > cap) b = realloc(b, cap = (at + (uint32_t)m + (uint32_t)n) * 2 + 64);
			if (!b) __builtin_trap();
			memcpy(b + at, s, m);
			lode_put_u32(b + lengths + 4 * j, (uint32_t)m);
			at += (uint32_t)m;
			JS_FreeCString(ctx, s);
		}
	}
	if (n) memcpy(b + at, p, n);
	if (text) JS_FreeCString(ctx, text);
	*out = b;
	*len = at + (uint32_t)n;
	return 0;
}

/* flat is the head of a message as [key, value, ...]. */
static JSValue flat(const lode_message *m) {
	JSValue a = JS_NewArray(ctx);
	const uint8_t *p = m->head.ptr;
	for (uint32_t i = 0; i < m->pairs; i++) {
		uint32_t k = lode_u32(p), v = lode_u32(p + 4);
		JS_SetPropertyUint32(ctx, a, 2 * i, JS_NewStringLen(ctx, (const char *)p + 8, k));
		JS_SetPropertyUint32(ctx, a, 2 * i + 1, JS_NewStringLen(ctx, (const char *)p + 8 + k, v));
		p += 8 + k + v;
	}
	return a;
}

/* resize owns the memory of the ArrayBuffers made here. */
static void *resize(JSRuntime *r, void *opaque, void *p, size_t n) {
	(void)r;
	(void)opaque;
	if (n) return realloc(p, n);
	free(p);
	return NULL;
}

#define FN(name) static JSValue name(JSContext *c, JSValueConst self, int argc, JSValueConst *argv)
#define UNUSED (void)c; (void)self; (void)argc; (void)argv

/* The head of the invocation under way, decoded but not yet turned into strings. */
static lode_message request;
static uint8_t *request_room;

static JSValue string_of(lode_bytes b) { return b.ptr ? JS_NewStringLen(ctx, (const char *)b.ptr, b.len) : JS_UNDEFINED; }

/* begin(): [kind, handler, method, path, host, scheme, content type] of the request. */
FN(f_begin) {
	UNUSED;
	static uint8_t small[4096];
	static const char *keys[] = {":kind", ":handler", ":method", ":path", "host", "x-forwarded-proto", "content-type"};
	uint8_t *p = small;
	int32_t n = lode_request(p, sizeof small);
	if (n > (int32_t)sizeof small) {
		free(request_room);
		if (!(p = request_room = malloc((size_t)n))) return JS_ThrowOutOfMemory(ctx);
		lode_request(p, (uint32_t)n);
	}
	if (lode_decode(p, (uint32_t)n, &request)) return JS_ThrowTypeError(ctx, "the request's head does not decode");
	JSValue a = JS_NewArray(ctx);
	for (uint32_t i = 0; i < sizeof keys / sizeof *keys; i++) JS_SetPropertyUint32(ctx, a, i, string_of(lode_get(&request, keys[i])));
	return a;
}

/* request(): the whole head, flat. header(key): one value of it. */
FN(f_request) {
	UNUSED;
	return flat(&request);
}
FN(f_header) {
	UNUSED;
	const char *key = JS_ToCString(ctx, argv[0]);
	if (!key) return JS_EXCEPTION;
	JSValue v = string_of(lode_get(&request, key));
	JS_FreeCString(ctx, key);
	return v;
}

/* read(): an ArrayBuffer, null at the end, undefined for not there yet. */
static uint8_t body_room[64 << 10];
static uint32_t body_kept; /* bytes that text found to be only the first ones */

FN(f_read) {
	UNUSED;
	int32_t n = (int32_t)body_kept;
	body_kept = 0;
	if (!n) n = lode_read(body_room, sizeof body_room);
	if (n > 0) return JS_NewArrayBufferCopy(ctx, body_room, (size_t)n);
	return n == 0 ? JS_NULL : JS_UNDEFINED;
}

static JSValue decoded(const uint8_t *p, size_t n, int fatal, int more);

/* text(): the whole body as text if it is short and there; else undefined, and read gives it. */
FN(f_text) {
	UNUSED;
	if (body_kept) return JS_UNDEFINED;
	uint32_t n = 0;
	for (int32_t m; n < sizeof body_room; n += (uint32_t)m) {
		m = lode_read(body_room + n, sizeof body_room - n);
		if (m == 0) return decoded(body_room, n, 0, 0);
		if (m < 0) break;
	}
	body_kept = n;
	return JS_UNDEFINED;
}

FN(f_respond) {
	UNUSED;
	uint8_t *b;
	uint32_t n;
	if (encode(argv[0], argv[1], &b, &n)) return JS_EXCEPTION;
	int32_t rc = lode_respond(b, n);
	free(b);
	return JS_NewInt32(ctx, rc);
}

FN(f_write) {
	UNUSED;
	const uint8_t *p;
	const char *text;
	size_t n;
	if (bytes_of(argv[0], &p, &n, &text)) return JS_EXCEPTION;
	int32_t from = 0;
	JS_ToInt32(ctx, &from, argv[1]);
	int32_t rc = lode_write(p + from, (uint32_t)n - (uint32_t)from);
	if (text) JS_FreeCString(ctx, text);
	return JS_NewInt32(ctx, rc);
}

FN(f_submit) {
	UNUSED;
	uint32_t op = 0, n;
	uint8_t *b;
	JS_ToUint32(ctx, &op, argv[0]);
	if (encode(argv[1], argv[2], &b, &n)) return JS_EXCEPTION;
	int32_t rc = lode_submit(op, b, n);
	free(b);
	return JS_NewInt32(ctx, rc);
}

/* take(id, length): [flat head, body ArrayBuffer]. */
FN(f_take) {
	UNUSED;
	int32_t id = 0;
	uint32_t n = 0;
	JS_ToInt32(ctx, &id, argv[0]);
	JS_ToUint32(ctx, &n, argv[1]);
	uint8_t *p = malloc(n ? n : 1);
	lode_message m;
	if (!p || lode_take(id, p, n) != (int32_t)n || lode_decode(p, n, &m)) {
		free(p);
		return JS_ThrowTypeError(ctx, "a completed operation has no result");
	}
	JSValue out = JS_NewArray(ctx);
	JS_SetPropertyUint32(ctx, out, 0, flat(&m));
	JS_SetPropertyUint32(ctx, out, 1, JS_NewArrayBufferCopy(ctx, m.body.ptr, m.body.len));
	free(p);
	return out;
}

/* wait(): [id, status, length] of a completion, null if nothing is under way. */
FN(f_wait) {
	UNUSED;
	uint8_t out[12];
	if (lode_wait(-1, out) != 1) return JS_NULL;
	JSValue a = JS_NewArray(ctx);
	for (uint32_t i = 0; i < 3; i++) JS_SetPropertyUint32(ctx, a, i, JS_NewUint32(ctx, lode_u32(out + 4 * i)));
	return a;
}

/* recode(bytes): a message decoded and encoded again; null if it is none. */
FN(f_recode) {
	UNUSED;
	const uint8_t *p;
	const char *text;
	size_t n;
	lode_message m;
	if (bytes_of(argv[0], &p, &n, &text)) return JS_EXCEPTION;
	if (text) JS_FreeCString(ctx, text);
	if (text || lode_decode(p, (uint32_t)n, &m)) return JS_NULL;
	JSValue head = flat(&m), body = JS_NewArrayBufferCopy(ctx, m.body.ptr, m.body.len), out = JS_EXCEPTION;
	uint8_t *b;
	uint32_t len;
	if (!encode(head, body, &b, &len)) {
		out = JS_NewArrayBufferCopy(ctx, b, len);
		free(b);
	}
	JS_FreeValue(ctx, head);
	JS_FreeValue(ctx, body);
	return out;
}

FN(f_cancel) {
	UNUSED;
	int32_t id = 0;
	JS_ToInt32(ctx, &id, argv[0]);
	lode_cancel(id);
	return JS_UNDEFINED;
}

/* log(level, text) and fail(json). */
FN(f_log) {
	UNUSED;
	int32_t level = 0;
	size_t n;
	JS_ToInt32(ctx, &level, argv[0]);
	const char *s = JS_ToCStringLen(ctx, &n, argv[1]);
	if (!s) return JS_EXCEPTION;
	lode_log_line(level, s, (uint32_t)n);
	JS_FreeCString(ctx, s);
	return JS_UNDEFINED;
}

FN(f_fail) {
	UNUSED;
	size_t n;
	const char *s = JS_ToCStringLen(ctx, &n, argv[0]);
	if (!s) return JS_EXCEPTION;
	lode_fail(s, (uint32_t)n);
	JS_FreeCString(ctx, s);
	return JS_UNDEFINED;
}

/* done(code) ends the invocation when its jobs have run. */
FN(f_done) {
	UNUSED;
	done = 1;
	JS_ToInt32(ctx, &exit_code, argv[0]);
	return JS_UNDEFINED;
}

/* shard(size): an ArrayBuffer over pages that the host lays the shard on. */
FN(f_shard) {
	UNUSED;
	int64_t size = 0, at = 0;
	JS_ToInt64(ctx, &size, argv[0]);
	if (size < 0 || size > (int64_t)1 << 31) return JS_ThrowRangeError(ctx, "a shard of that size does not fit");
	size_t whole = ((size_t)size + LODE_PAGE - 1) / LODE_PAGE * LODE_PAGE;
	uint8_t *p = aligned_alloc(LODE_PAGE, whole ? whole : LODE_PAGE);
	if (!p) return JS_ThrowOutOfMemory(ctx);
	while (at < size) {
		int64_t n = lode_window(at, p + at, (uint32_t)(whole - (size_t)at));
		if (n <= 0 || (at + n < size && n % LODE_PAGE)) {
			free(p);
			return JS_ThrowRangeError(ctx, "the shard ends early");
		}
		at += n;
	}
	return JS_NewArrayBuffer(ctx, p, (size_t)size, 0, resize, NULL, false);
}

/* ---- text, time, chance ---- */

FN(f_encode) {
	UNUSED;
	size_t n;
	const char *s = JS_ToCStringLen(ctx, &n, argv[0]);
	if (!s) return JS_EXCEPTION;
	/* A lone surrogate comes as three bytes ED A0..BF xx; the Encoding Standard has U+FFFD. */
	uint8_t *p = malloc(n ? n : 1);
	if (!p) { JS_FreeCString(ctx, s); return JS_ThrowOutOfMemory(ctx); }
	memcpy(p, s, n);
	for (size_t i = 0; i + 2 < n; i++) {
		if (p[i] == 0xED && p[i + 1] >= 0xA0) { p[i] = 0xEF; p[i + 1] = 0xBF; p[i + 2] = 0xBD; }
	}
	JS_FreeCString(ctx, s);
	return JS_NewArrayBuffer(ctx, p, n, 0, resize, NULL, false);
}

/* valid returns the length of the UTF-8 sequence at p, or 0; *bad is how many
 * bytes make up the broken one. */
static size_t valid(const uint8_t *p, size_t n, size_t *bad) {
	uint8_t c = p[0];
	*bad = 1;
	if (c < 0x80) return 1;
	size_t len = c >= 0xC2 && c <= 0xDF ? 2 : c >= 0xE0 && c <= 0xEF ? 3 : c >= 0xF0 && c <= 0xF4 ? 4 : 0;
	if (!len) return 0;
	uint8_t lo = c == 0xE0 ? 0xA0 : c == 0xF0 ? 0x90 : 0x80, hi = c == 0xED ? 0x9F : c == 0xF4 ? 0x8F : 0xBF;
	for (size_t i = 1; i < len; i++) {
		if (i >= n || p[i] < lo || p[i] > hi) { *bad = i; return 0; }
		lo = 0x80;
		hi = 0xBF;
	}
	return len;
}

/* decode(bytes, fatal, more): text of UTF-8. With more, an unfinished sequence at the end
 * is left over: [text, bytes left]. */
FN(f_decode) {
	UNUSED;
	const uint8_t *p;
	const char *text;
	size_t n;
	if (bytes_of(argv[0], &p, &n, &text)) return JS_EXCEPTION;
	JSValue v = decoded(p, n, JS_ToBool(ctx, argv[1]), argc > 2 && JS_ToBool(ctx, argv[2]));
	if (text) JS_FreeCString(ctx, text);
	return v;
}

static JSValue decoded(const uint8_t *p, size_t n, int fatal, int more) {
	size_t i = 0, bad, left = 0;
	while (i < n) {
		size_t len = valid(p + i, n - i, &bad);
		if (!len) break;
		i += len;
	}
	JSValue out;
	if (i == n) {
		out = JS_NewStringLen(ctx, (const char *)p, n);
	} else {
		uint8_t *b = malloc(n * 3 + 1);
		if (!b) return JS_ThrowOutOfMemory(ctx);
		size_t at = i;
		memcpy(b, p, i);
		while (i < n) {
			size_t len = valid(p + i, n - i, &bad);
			if (len) {
				memcpy(b + at, p + i, len);
				at += len;
				i += len;
				continue;
			}
			if (more && i + bad == n && bad < 4 && p[i] >= 0xC2 && p[i] <= 0xF4) { left = n - i; break; }
			if (fatal) { free(b); return JS_ThrowTypeError(ctx, "the bytes are not UTF-8"); }
			memcpy(b + at, "\xEF\xBF\xBD", 3);
			at += 3;
			i += bad;
		}
		out = JS_NewStringLen(ctx, (const char *)b, at);
		free(b);
	}
	if (!more) return out;
	JSValue both = JS_NewArray(ctx);
	JS_SetPropertyUint32(ctx, both, 0, out);
	JS_SetPropertyUint32(ctx, both, 1, JS_NewUint32(ctx, (uint32_t)left));
	return both;
}

FN(f_now) {
	UNUSED;
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return JS_NewFloat64(ctx, (double)t.tv_sec * 1e3 + (double)t.tv_nsec / 1e6);
}

FN(f_bytes) {
	UNUSED;
	uint32_t n = 0;
	JS_ToUint32(ctx, &n, argv[0]);
	uint8_t *p = malloc(n ? n : 1);
	if (!p) return JS_ThrowOutOfMemory(ctx);
	for (uint32_t at = 0; at < n;) {
		uint32_t piece = n - at < 256 ? n - at : 256;
		if (getentropy(p + at, piece)) { free(p); return JS_ThrowInternalError(ctx, "no randomness"); }
		at += piece;
	}
	return JS_NewArrayBuffer(ctx, p, n, 0, resize, NULL, false);
}

/* random is Math.random: seeded again in each invocation that asks, since the snapshot
 * is common to all. xoshiro256++. */
static uint64_t chance[4];
static uint64_t rotate(uint64_t x, int k) { return x << k | x >> (64 - k); }
FN(f_random) {
	UNUSED;
	if (!seeded) {
		if (getentropy(chance, sizeof chance)) return JS_ThrowInternalError(ctx, "no randomness");
		seeded = 1;
	}
	uint64_t out = rotate(chance[0] + chance[3], 23) + chance[0], t = chance[1] << 17;
	chance[2] ^= chance[0];
	chance[3] ^= chance[1];
	chance[1] ^= chance[2];
	chance[0] ^= chance[3];
	chance[2] ^= t;
	chance[3] = rotate(chance[3], 45);
	return JS_NewFloat64(ctx, (double)(out >> 11) * 0x1p-53);
}

/* hash(bits, bytes): 1, 256, 384 or 512. */
FN(f_hash) {
	UNUSED;
	int32_t bits = 0;
	const uint8_t *p;
	const char *text;
	size_t n;
	JS_ToInt32(ctx, &bits, argv[0]);
	if (bytes_of(argv[1], &p, &n, &text)) return JS_EXCEPTION;
	uint8_t out[64];
	size_t size = sha(bits, p, n, out);
	if (text) JS_FreeCString(ctx, text);
	return JS_NewArrayBufferCopy(ctx, out, size);
}

FN(f_map) {
	UNUSED;
	return JS_NewStringLen(ctx, (const char *)source_map.ptr, source_map.len);
}

static const JSCFunctionListEntry functions[] = {
	JS_CFUNC_DEF("begin", 0, f_begin), JS_CFUNC_DEF("request", 0, f_request), JS_CFUNC_DEF("header", 1, f_header), JS_CFUNC_DEF("text", 0, f_text),
	 JS_CFUNC_DEF("read", 0, f_read), JS_CFUNC_DEF("respond", 2, f_respond), JS_CFUNC_DEF("write", 2, f_write),
	JS_CFUNC_DEF("submit", 3, f_submit), JS_CFUNC_DEF("take", 2, f_take), JS_CFUNC_DEF("cancel", 1, f_cancel), JS_CFUNC_DEF("wait", 0, f_wait),
	JS_CFUNC_DEF("recode", 1, f_recode), JS_CFUNC_DEF("log", 2, f_log),
	JS_CFUNC_DEF("fail", 1, f_fail), JS_CFUNC_DEF("done", 1, f_done), JS_CFUNC_DEF("shard", 1, f_shard), JS_CFUNC_DEF("encode", 1, f_encode),
	JS_CFUNC_DEF("decode", 3, f_decode), JS_CFUNC_DEF("now", 0, f_now), JS_CFUNC_DEF("bytes", 1, f_bytes), JS_CFUNC_DEF("random", 0, f_random),
	JS_CFUNC_DEF("hash", 2, f_hash), JS_CFUNC_DEF("map", 0, f_map),
};

/* ---- the event loop ---- */

/* report hands an exception to the prelude, or says it by itself. */
static int report(JSValue error) {
	if (JS_IsFunction(ctx, on_failure)) {
		JSValue v = JS_Call(ctx, on_failure, JS_UNDEFINED, 1, (JSValueConst *)&error);
		JS_FreeValue(ctx, error);
		int ok = !JS_IsException(v);
		JS_FreeValue(ctx, v);
		if (ok) return 1;
		error = JS_GetException(ctx);
	}
	const char *s = JS_ToCString(ctx, error);
	lode_error("Error", s ? s : "out of memory");
	if (s) JS_FreeCString(ctx, s);
	JS_FreeValue(ctx, error);
	return 1;
}

/* settle runs jobs and completions until done is set. */
static int settle(void) {
	for (;;) {
		JSContext *c;
		int rc;
		while ((rc = JS_ExecutePendingJob(rt, &c)) > 0) {}
		if (rc < 0) return report(JS_GetException(ctx));
		if (done) return exit_code;
		uint8_t out[12];
		rc = lode_wait(-1, out);
		if (rc != 1) {
			return lode_error("NeverSettled", "the handler's promise is still pending and nothing is under way that could settle it");
		}
		JSValue args[3];
		for (int i = 0; i < 3; i++) args[i] = JS_NewUint32(ctx, lode_u32(out + 4 * i));
		JSValue v = JS_Call(ctx, on_complete, JS_UNDEFINED, 3, (JSValueConst *)args);
		if (JS_IsException(v)) return report(JS_GetException(ctx));
		JS_FreeValue(ctx, v);
	}
}

static int call(JSValue fn) {
	JSValue v = JS_Call(ctx, fn, JS_UNDEFINED, 0, NULL);
	if (JS_IsException(v)) return report(JS_GetException(ctx));
	JS_FreeValue(ctx, v);
	return 0;
}

static JSValue global(const char *name) {
	JSValue g = JS_GetGlobalObject(ctx), v = JS_GetPropertyStr(ctx, g, name);
	JS_FreeValue(ctx, g);
	return v;
}

/* load evaluates the bundle and gives its exports to the prelude. */
static int load(const char *code, uint32_t n) {
	JSValue m = JS_Eval(ctx, code, n, "lode:bundle", JS_EVAL_TYPE_MODULE | JS_EVAL_FLAG_COMPILE_ONLY);
	if (JS_IsException(m)) return report(JS_GetException(ctx));
	JSModuleDef *def = JS_VALUE_GET_PTR(m);
	JSValue promise = JS_EvalFunction(ctx, m);
	if (JS_IsException(promise)) return report(JS_GetException(ctx));
	JSContext *c;
	while (JS_ExecutePendingJob(rt, &c) > 0) {}
	int state = JS_PromiseState(ctx, promise);
	if (state == JS_PROMISE_REJECTED) return report(JS_PromiseResult(ctx, promise));
	if (state == JS_PROMISE_PENDING) {
		return lode_error("NeverSettled", "a top-level await did not end: nothing outside can be reached before the first invocation");
	}
	JS_FreeValue(ctx, promise);
	JSValue names = JS_GetModuleNamespace(ctx, def), take = global("__lode_load");
	JSValue v = JS_Call(ctx, take, JS_UNDEFINED, 1, (JSValueConst *)&names);
	JS_FreeValue(ctx, take);
	JS_FreeValue(ctx, names);
	if (JS_IsException(v)) return report(JS_GetException(ctx));
	JS_FreeValue(ctx, v);
	return 0;
}

LODE_EXPORT("lode_init") int lode_init(void) {
	uint32_t cap = 1 << 20, len = 0;
	uint8_t *b = malloc(cap);
	for (int32_t n; b && (n = lode_read(b + len, cap - len - 1)) > 0;) {
		len += (uint32_t)n;
		if (cap - len < 2) b = realloc(b, cap *= 2);
	}
	if (!b) return lode_error("OutOfMemory", "the bundle does not fit");
	lode_bytes part[3];
	for (uint32_t i = 0, at = 0; i < 3; i++) {
		if (len - at < 4 || lode_u32(b + at) > len - at - 4) return lode_error("Bundle", "the section lode.init is missing or cut short");
		part[i] = (lode_bytes){b + at + 4, lode_u32(b + at)};
		at += 4 + part[i].len;
	}
	rt = JS_NewRuntime2(&heap, NULL);
	ctx = rt ? JS_NewContext(rt) : NULL;
	if (!ctx) return lode_error("OutOfMemory", "the engine does not fit");
	JS_SetMaxStackSize(rt, 700 << 10);
	JS_SetGCThreshold(rt, 32 << 20); /* few invocations live long enough to need it */
	on_failure = JS_UNDEFINED;
	JSValue g = JS_GetGlobalObject(ctx), host = JS_NewObject(ctx);
	JS_SetPropertyFunctionList(ctx, host, functions, sizeof functions / sizeof *functions);
	JS_SetPropertyStr(ctx, g, "__lode", host);
	JS_FreeValue(ctx, g);
	/* The engine's parser wants a zero byte behind the source. */
	for (int i = 0; i < 3; i++) {
		char *s = malloc(part[i].len + 1);
		if (!s) return lode_error("OutOfMemory", "the bundle does not fit");
		memcpy(s, part[i].ptr, part[i].len);
		s[part[i].len] = 0;
		part[i].ptr = (uint8_t *)s;
	}
	free(b);
	JSValue v = JS_Eval(ctx, (const char *)part[0].ptr, part[0].len, "lode:prelude", JS_EVAL_TYPE_GLOBAL);
	if (JS_IsException(v)) return report(JS_GetException(ctx));
	JS_FreeValue(ctx, v);
	free((void *)part[0].ptr);
	source_map = part[2];
	on_invoke = global("__lode_invoke");
	on_complete = global("__lode_complete");
	on_describe = global("__lode_describe");
	on_warm = global("__lode_warm");
	on_failure = global("__lode_failure");
	int rc = load((const char *)part[1].ptr, part[1].len);
	free((void *)part[1].ptr);
	return rc;
}

LODE_EXPORT("lode_describe") int lode_describe(void) {
	if (!ctx) return lode_error("Bundle", "lode_init was not run");
	done = 0;
	return call(on_describe);
}

LODE_EXPORT("lode_warm") int lode_warm(void) {
	if (!ctx) return lode_error("Bundle", "lode_init was not run");
	for (int i = 0; i < 3; i++) {
		int rc = call(on_warm);
		JSContext *c;
		while (JS_ExecutePendingJob(rt, &c) > 0) {}
		if (rc) return rc;
	}
	JS_RunGC(rt);
	return call(on_warm);
}

LODE_EXPORT("lode_invoke") int lode_invoke(void) {
	done = exit_code = seeded = 0;
	body_kept = 0;
	JS_UpdateStackTop(rt);
	int rc = call(on_invoke);
	return rc ? rc : settle();
}
