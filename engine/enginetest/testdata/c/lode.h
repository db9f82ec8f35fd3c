// The imports of lode_v1, as the tests' guests use them.
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define IMPORT(n) __attribute__((import_module("lode_v1"), import_name(#n)))
#define EXPORT(n) __attribute__((export_name(#n)))

IMPORT(request) int lode_request(void *p, int cap);
IMPORT(read) int lode_read(void *p, int cap);
IMPORT(respond) int lode_respond(const void *p, int n);
IMPORT(write) int lode_write(const void *p, int n);
IMPORT(submit) int lode_submit(int op, const void *p, int n);
IMPORT(wait) int lode_wait(int64_t timeout, void *out);
IMPORT(take) int lode_take(int id, void *p, int cap);
IMPORT(cancel) int lode_cancel(int id);
IMPORT(log) void lode_log(int level, const void *p, int n);
IMPORT(fail) void lode_fail(const void *p, int n);
IMPORT(window) int64_t lode_window(int64_t off, void *p, int n);

static inline void put(const char *s) { lode_write(s, strlen(s)); }
