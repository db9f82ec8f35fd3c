/* The plain C side of bench scan: maps the file and sums its 64-bit numbers on
 * all cores. Prints the sum. */
#include <fcntl.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

typedef struct { const uint64_t *from, *to; uint64_t sum; } part;

static void *add(void *arg) {
	part *p = arg;
	uint64_t s = 0;
	for (const uint64_t *q = p->from; q < p->to; q++) s += *q;
	p->sum = s;
	return NULL;
}

int main(int argc, char **argv) {
	struct stat st;
	int fd = argc == 2 ? open(argv[1], O_RDONLY) : -1;
	if (fd < 0 || fstat(fd, &st)) return perror("sum FILE"), 1;
	const uint64_t *p = mmap(NULL, (size_t)st.st_size, PROT_READ, MAP_PRIVATE | MAP_POPULATE, fd, 0);
	if (p == MAP_FAILED) return perror("mmap"), 1;
	long n = sysconf(_SC_NPROCESSORS_ONLN), words = st.st_size / 8;
	part *parts = calloc((size_t)n, sizeof *parts);
	pthread_t *threads = calloc((size_t)n, sizeof *threads);
	uint64_t total = 0;
	for (long i = 0; i < n; i++) {
		parts[i] = (part){p + words * i / n, p + words * (i + 1) / n, 0};
		pthread_create(&threads[i], NULL, add, &parts[i]);
	}
	for (long i = 0; i < n; i++) {
		pthread_join(threads[i], NULL);
		total += parts[i].sum;
	}
	printf("%llu\n", (unsigned long long)total);
	return 0;
}
