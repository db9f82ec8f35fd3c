#include "heap.h"

#include <malloc.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

enum { UNIT = 16, CLASSES = 32, LARGEST = UNIT * CLASSES, PAGE = 64 << 10, SLICE = 4 << 10 };

typedef struct block { struct block *next; } block;

static block *spare[CLASSES + 1];     /* free blocks by class, class n has n * UNIT bytes */
static uint8_t class_of[(1 << 20)];   /* by slice of 4 KiB; 0 = the C library's */
static uint8_t *fresh, *fresh_end;    /* slices not yet given to a class */

static void *slow(unsigned c) {
	if (fresh == fresh_end) {
		fresh = aligned_alloc(PAGE, PAGE);
		if (!fresh) { fresh_end = NULL; return NULL; }
		fresh_end = fresh + PAGE;
	}
	uint8_t *p = fresh, *end = p + SLICE;
	fresh = end;
	class_of[(uintptr_t)p / SLICE] = (uint8_t)c;
	size_t n = c * UNIT;
	block **tail = &spare[c];
	for (uint8_t *q = p + n; q + n <= end; q += n) {
		*tail = (block *)q;
		tail = &((block *)q)->next;
	}
	*tail = NULL;
	return p;
}

static void *take(size_t n) {
	if (n > LARGEST) return malloc(n);
	unsigned c = n ? (unsigned)((n + UNIT - 1) / UNIT) : 1;
	block *b = spare[c];
	if (!b) return slow(c);
	spare[c] = b->next;
	return b;
}

static void give(void *p) {
	if (!p) return;
	unsigned c = class_of[(uintptr_t)p / SLICE];
	if (!c) { free(p); return; }
	((block *)p)->next = spare[c];
	spare[c] = p;
}

static size_t size_of(const void *p) {
	if (!p) return 0;
	unsigned c = class_of[(uintptr_t)p / SLICE];
	return c ? c * UNIT : malloc_usable_size((void *)p);
}

static void *h_malloc(void *o, size_t n) { (void)o; return take(n); }
static void h_free(void *o, void *p) { (void)o; give(p); }
static void *h_calloc(void *o, size_t k, size_t n) {
	(void)o;
	size_t all;
	if (__builtin_mul_overflow(k, n, &all)) return NULL;
	if (all > LARGEST) return calloc(1, all);
	void *p = take(all);
	if (p) memset(p, 0, all);
	return p;
}
static void *h_realloc(void *o, void *p, size_t n) {
	(void)o;
	if (!p) return take(n);
	if (!n) { give(p); return NULL; }
	unsigned c = class_of[(uintptr_t)p / SLICE];
	if (!c && n > LARGEST) return realloc(p, n);
	size_t have = size_of(p);
	if (c && n <= have && n + UNIT > have) return p;
	void *q = take(n);
	if (!q) return NULL;
	memcpy(q, p, have < n ? have : n);
	give(p);
	return q;
}

const JSMallocFunctions heap = {h_calloc, h_malloc, h_free, h_realloc, size_of};
