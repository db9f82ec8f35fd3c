// Kernels for the tests and the benchmarks: plain C without a library.
typedef unsigned int u32;
typedef unsigned long long u64;
typedef unsigned char u8;

#define EXPORT(name) __attribute__((export_name(name)))

static u8 buffer[1 << 16];
static u32 numbers[1 << 14];
static double matrix[3][64][64];

static void seed(void) {
  u32 x = 12345;
  for (u32 i = 0; i < sizeof buffer; i++) {
    x = x * 1664525 + 1013904223;
    buffer[i] = x >> 24;
  }
}

EXPORT("hash") u32 hash(u32 rounds) {
  seed();
  u32 h = 2166136261u;
  for (u32 r = 0; r < rounds; r++)
    for (u32 i = 0; i < sizeof buffer; i++) h = (h ^ buffer[i]) * 16777619u;
  return h;
}

EXPORT("floats") u32 floats(u32 rounds) {
  double total = 0;
  for (u32 r = 0; r < rounds; r++) {
    for (int i = 0; i < 64; i++)
      for (int j = 0; j < 64; j++) {
        matrix[0][i][j] = i * 0.5 + j + r;
        matrix[1][i][j] = i - j * 0.25;
      }
    for (int i = 0; i < 64; i++)
      for (int j = 0; j < 64; j++) {
        double s = 0;
        for (int k = 0; k < 64; k++) s += matrix[0][i][k] * matrix[1][k][j];
        matrix[2][i][j] = s;
      }
    total += matrix[2][r & 63][(r >> 6) & 63];
  }
  return (u32)(u64)total;
}

static void quick(int *a, int n) {
  while (n > 12) {
    int p = a[n / 2], i = 0, j = n - 1;
    while (i <= j) {
      while (a[i] < p) i++;
      while (a[j] > p) j--;
      if (i <= j) {
        int t = a[i];
        a[i++] = a[j];
        a[j--] = t;
      }
    }
    quick(a, j + 1);
    a += i;
    n -= i;
  }
  for (int i = 1; i < n; i++) {
    int v = a[i], j = i;
    for (; j > 0 && a[j - 1] > v; j--) a[j] = a[j - 1];
    a[j] = v;
  }
}

EXPORT("sort") u32 sort(u32 rounds) {
  u32 x = 99, sum = 0;
  for (u32 r = 0; r < rounds; r++) {
    for (u32 i = 0; i < 1 << 14; i++) {
      x = x * 1664525 + 1013904223;
      numbers[i] = x >> 1;
    }
    quick((int *)numbers, 1 << 14);
    sum += numbers[r & 0x3fff] ^ numbers[0x3fff];
  }
  return sum;
}

__attribute__((noinline)) static u32 fibonacci(u32 n) { return n < 2 ? n : fibonacci(n - 1) + fibonacci(n - 2); }

EXPORT("fib") u32 fib(u32 n) { return fibonacci(n); }

static u32 step0(u32 x) { return x * 3 + 1; }
static u32 step1(u32 x) { return x ^ (x >> 7); }
static u32 step2(u32 x) { return x + 77; }
static u32 step3(u32 x) { return x << 3 | x >> 29; }
static u32 (*volatile steps[4])(u32) = {step0, step1, step2, step3};

EXPORT("pointers") u32 pointers(u32 rounds) {
  u32 x = 1;
  for (u32 i = 0; i < rounds; i++) x = steps[x & 3](x);
  return x;
}

EXPORT("bytes") u32 bytes(u32 rounds) {
  seed();
  u32 lines = 0, words = 0, in = 0;
  for (u32 r = 0; r < rounds; r++)
    for (u32 i = 0; i < sizeof buffer; i++) {
      u8 c = buffer[i];
      lines += c == '\n';
      if (c <= ' ') in = 0;
      else if (!in) in = 1, words++;
    }
  return lines * 31 + words;
}

EXPORT("copies") u32 copies(u32 rounds) {
  for (u32 r = 0; r < rounds; r++) {
    __builtin_memcpy(buffer + 1000, buffer + (r & 511), 200);
    __builtin_memset(buffer + 40000, r, 3000);
  }
  return buffer[1000] + buffer[40000];
}

typedef int v4 __attribute__((vector_size(16), aligned(1)));

__attribute__((target("simd128"))) EXPORT("vectors") u32 vectors(u32 rounds) {
  v4 sum = {0, 0, 0, 0}, weight = {1, 3, 5, 7};
  for (u32 i = 0; i < sizeof buffer; i++) buffer[i] = i * 7;
  for (u32 r = 0; r < rounds; r++)
    for (u32 i = 0; i < sizeof buffer; i += 16) sum += *(v4 *)(buffer + i) * weight;
  return sum[0] ^ sum[1] ^ sum[2] ^ sum[3];
}
