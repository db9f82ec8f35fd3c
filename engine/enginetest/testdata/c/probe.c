// One guest for many tests: the first word of the body says what to do.
#include "lode.h"
#include <errno.h>
#include <fcntl.h>
#include <time.h>
#include <unistd.h>
#include <sys/stat.h>

extern char **environ;

static char req[65536];
static unsigned char area[2 << 20];       // zero in the image
static unsigned char filled[1 << 20] = {7}; // in the data section
static int counter;
static char kept[64];
static long init_env, init_clock, init_random;

__attribute__((constructor)) static void start(void) {
	for (char **e = environ; e && *e; e++) init_env++;
	struct timespec ts;
	clock_gettime(CLOCK_REALTIME, &ts);
	init_clock = ts.tv_sec;
	getentropy(&init_random, sizeof init_random);
}

EXPORT(lode_init) int lode_init(void) {
	char b[64];
	int n = lode_read(b, sizeof b);
	if (n > 0) memcpy(kept, b, n < 63 ? n : 63);
	if (strcmp(kept, "fail") == 0) {
		const char *j = "{\"type\":\"InitError\",\"message\":\"no init\"}";
		lode_fail(j, strlen(j));
		return 1;
	}
	return 0;
}

EXPORT(lode_describe) int describe(void) {
	put("{\"sdk\":\"c 1\",\"abi\":1}");
	return 0;
}

__attribute__((noinline)) static int deep(int n) {
	volatile char pad[64];
	pad[0] = n;
	return n <= 0 ? 0 : deep(n - 1) + pad[0];
}

static volatile int sink;
static void *volatile hold; // so that allocations are not optimised away

// message writes an abi message with up to three pairs and no body.
static int message(char *b, int n, const char **kv) {
	char *p = b;
	uint32_t v = n;
	memcpy(p, &v, 4), p += 4;
	for (int i = 0; i < n; i++) {
		uint32_t k = strlen(kv[2 * i]), l = strlen(kv[2 * i + 1]);
		memcpy(p, &k, 4), memcpy(p + 4, &l, 4), p += 8;
		memcpy(p, kv[2 * i], k), p += k;
		memcpy(p, kv[2 * i + 1], l), p += l;
	}
	return p - b;
}

static void ten(void) { // ten calls overlap; answers in order of completion
	char b[256], out[4096];
	for (int i = 0; i < 10; i++) {
		char name[2] = {'0' + i, 0};
		const char *kv[] = {":address", name};
		if (lode_submit(1, b, message(b, 1, kv)) <= 0) put("bad submit");
	}
	uint32_t done[3];
	while (lode_wait(-1, done) == 1) {
		int n = lode_take(done[0], out, 2); // too little: nothing is taken
		n = lode_take(done[0], out, sizeof out);
		lode_write(out + 4, n - 4);
	}
}

static void op(int number, const char *key, const char *value) {
	char b[512], out[4096];
	const char *kv[] = {key, value};
	int id = lode_submit(number, b, message(b, 1, kv));
	uint32_t done[3];
	if (id <= 0 || lode_wait(-1, done) != 1) {
		printf("submit %d\n", id);
		put("no");
		return;
	}
	int n = lode_take(done[0], out, sizeof out);
	char line[64];
	snprintf(line, sizeof line, "status %u length %d %d", done[1], n, (int)done[2]);
	put(line);
}

static void files(void) {
	char line[200], back[16] = {0};
	mkdir("/tmp/d", 0777);
	int fd = open("/tmp/d/f", O_CREAT | O_RDWR, 0666);
	int w = write(fd, "hello", 5);
	lseek(fd, 1, SEEK_SET);
	int r = read(fd, back, 15);
	close(fd);
	int ro = open("/x", O_CREAT | O_RDWR, 0666);
	int roerr = errno;
	struct stat st;
	stat("/tmp/d/f", &st);
	int mv = rename("/tmp/d/f", "/tmp/g");
	int rm = rmdir("/tmp/d");
	fd = open("/tmp/big", O_CREAT | O_WRONLY, 0666);
	static char block[65536];
	long total = 0;
	for (;;) {
		int n = write(fd, block, sizeof block);
		if (n <= 0) break;
		total += n;
	}
	snprintf(line, sizeof line, "w%d r%d %s ro%d %d size%d mv%d rm%d total%ld full%d", w, r, back, ro, roerr == EROFS, (int)st.st_size, mv, rm, total, errno == ENOSPC);
	put(line);
}

static unsigned char *window(int n) { // an aligned area of the guest's own
	static unsigned char *p;
	if (!p) p = aligned_alloc(65536, n);
	return p;
}

EXPORT(lode_invoke) int invoke(void) {
	int n = lode_read(req, sizeof req - 1);
	req[n > 0 ? n : 0] = 0;
	char *arg = strchr(req, ' ');
	if (arg) *arg++ = 0;
	long v = arg ? atol(arg) : 0;
	char line[256];
	counter++;
	if (!strcmp(req, "count")) {
		snprintf(line, sizeof line, "%d", counter);
		put(line);
	} else if (!strcmp(req, "write")) { // scattered writes, v pages
		for (long i = 0; i < v; i++) {
			area[(i * 37 * 4096 + i) % sizeof area] = i + 1;
			filled[(i * 11 * 4096) % sizeof filled] ^= i + 1;
		}
		put("ok");
	} else if (!strcmp(req, "secret")) {
		memset(area + 100000, 0x5a, 5000);
		put("ok");
	} else if (!strcmp(req, "global")) {
		__asm__("i32.const 4096\n global.get __stack_pointer\n i32.sub\n i32.const -256\n i32.and\n drop");
		alloca(1024);
		put("ok");
	} else if (!strcmp(req, "keep")) {
		strncpy(kept, arg, 63);
		put(kept);
	} else if (!strcmp(req, "kept")) {
		put(kept);
	} else if (!strcmp(req, "init")) {
		snprintf(line, sizeof line, "env %ld clock %ld random %ld", init_env, init_clock, init_random);
		put(line);
	} else if (!strcmp(req, "now")) {
		struct timespec ts;
		clock_gettime(CLOCK_REALTIME, &ts);
		long r;
		getentropy(&r, sizeof r);
		snprintf(line, sizeof line, "%lld %ld", (long long)ts.tv_sec, r);
		put(line);
	} else if (!strcmp(req, "grow")) {
		char *p = malloc(v);
		hold = p;
		if (p) memset(p, 1, v);
		put(p ? "ok" : "full");
	} else if (!strcmp(req, "spin")) {
		for (;;) sink++;
	} else if (!strcmp(req, "work")) { // v units of honest work
		for (long i = 0; i < v; i++) sink += i;
		put("ok");
	} else if (!strcmp(req, "fill")) {
		char *p = malloc(v);
		if (!p) return 3;
		for (int i = 0;; i++) memset(p, i, v);
	} else if (!strcmp(req, "recurse")) {
		snprintf(line, sizeof line, "%d", deep(v) & 1);
		put(line);
	} else if (!strcmp(req, "trap")) {
		__builtin_trap();
	} else if (!strcmp(req, "bounds")) {
		put((char *)0xfffffff0);
	} else if (!strcmp(req, "pointer")) {
		lode_write((void *)0xfffffff0, 100);
	} else if (!strcmp(req, "exit")) {
		_Exit(v);
	} else if (!strcmp(req, "fail")) {
		const char *j = "{\"type\":\"MyError\",\"message\":\"it broke\",\"stack\":[\"a\",\"b\"]}";
		lode_fail(j, strlen(j));
		return 1;
	} else if (!strcmp(req, "oom")) {
		for (;;) {
			char *p = malloc(1 << 20);
			hold = p;
			if (!p) abort();
			memset(p, 1, 1 << 20);
		}
	} else if (!strcmp(req, "ten")) {
		ten();
	} else if (!strcmp(req, "sleep")) {
		op(18, ":ns", arg);
	} else if (!strcmp(req, "call")) {
		op(1, ":address", arg);
	} else if (!strcmp(req, "config")) {
		op(8, ":key", arg);
	} else if (!strcmp(req, "unknown")) {
		snprintf(line, sizeof line, "%d %d %d", lode_submit(99, "\0\0\0\0", 4), lode_submit(1, "\1\0\0\0", 4), lode_wait(0, line));
		put(line);
	} else if (!strcmp(req, "abandon")) { // leaves an operation under way
		char b[64];
		const char *kv[] = {":address", "late"};
		lode_submit(1, b, message(b, 1, kv));
		put("ok");
	} else if (!strcmp(req, "cancel")) {
		char b[64];
		const char *kv[] = {":ns", "60000000000"};
		int id = lode_submit(18, b, message(b, 1, kv));
		lode_cancel(id);
		uint32_t done[3] = {0};
		int w = lode_wait(-1, done);
		snprintf(line, sizeof line, "%d %u", w, done[1]);
		put(line);
	} else if (!strcmp(req, "nanosleep")) {
		struct timespec ts = {v / 1000, v % 1000 * 1000000};
		nanosleep(&ts, NULL);
		put("ok");
	} else if (!strcmp(req, "respond")) {
		char b[256];
		const char *kv[] = {":status", "201", "x-a", "b"};
		int first = lode_respond(b, message(b, 2, kv));
		int again = lode_respond(b, message(b, 2, kv));
		snprintf(line, sizeof line, "%d %d", first, again);
		put(line);
	} else if (!strcmp(req, "stream")) { // doubles what comes, with credit
		static char b[10000];
		for (;;) {
			int k = lode_read(b, sizeof b);
			if (k == 0) break;
			uint32_t done[3];
			if (k < 0) {
				lode_submit(14, "\0\0\0\0", 4);
				lode_wait(-1, done);
				lode_take(done[0], line, sizeof line);
				continue;
			}
			for (int at = 0; at < k;) {
				int m = lode_write(b + at, k - at);
				at += m;
				if (at < k) {
					lode_submit(15, "\0\0\0\0", 4);
					lode_wait(-1, done);
					lode_take(done[0], line, sizeof line);
				}
			}
		}
	} else if (!strcmp(req, "files")) {
		files();
	} else if (!strcmp(req, "peek")) { // does anything of "secret" remain?
		long dirty = 0;
		for (size_t i = 0; i < sizeof area; i++) dirty += area[i] != 0;
		snprintf(line, sizeof line, "%ld", dirty);
		put(line);
	} else if (!strcmp(req, "window")) { // sums the shard through a window
		unsigned char *p = window(4 << 20);
		long long sum = 0, bytes = 0;
		for (int64_t off = 0;; off += 4 << 20) {
			int64_t got = lode_window(off, p, 4 << 20);
			if (got <= 0) break;
			for (int64_t i = 0; i < got; i++) sum += p[i];
			p[0] = 99; // private: the file must not change
			bytes += got;
		}
		snprintf(line, sizeof line, "%lld %lld", bytes, sum);
		put(line);
	} else if (!strcmp(req, "hoard")) { // takes no result
		char b[64];
		const char *kv[] = {":address", "big"};
		int held = 0;
		for (int i = 0; i < 20; i++) {
			uint32_t done[3];
			lode_submit(1, b, message(b, 1, kv));
			if (lode_wait(-1, done) == 1 && done[1] == 0) held++;
		}
		snprintf(line, sizeof line, "%d", held);
		put(line);
	} else if (!strcmp(req, "badwindow")) { // reads a window whose file was cut
		unsigned char *p = window(4 << 20);
		lode_window(0, p, 4 << 20);
		op(1, ":address", "cut");
		for (int i = 0; i < 4 << 20; i++) sink += p[i];
	} else if (!strcmp(req, "imagewindow")) { // over pages of the image
		unsigned char *p = (unsigned char *)(((uintptr_t)area + 65535) & ~65535u);
		put(lode_window(0, p, 131072) == 131072 && p[1] == 7 ? "ok" : "no");
	} else if (!strcmp(req, "windowpeek")) {
		unsigned char *p = window(4 << 20);
		long dirty = 0;
		for (int i = 0; i < 4 << 20; i++) dirty += p[i] != 0;
		snprintf(line, sizeof line, "%ld", dirty);
		put(line);
	} else if (!strcmp(req, "print")) {
		printf("out %s\n", arg);
		fprintf(stderr, "err %s\n", arg);
		lode_log(4, arg, strlen(arg));
		put("ok");
		fflush(stdout);
	} else {
		put("unknown word");
		return 9;
	}
	return 0;
}
