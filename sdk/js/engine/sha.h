/* SHA-1 and SHA-2 (FIPS 180-4), whole messages only. */
#ifndef SHA_H
#define SHA_H
#include <stddef.h>
#include <stdint.h>
/* sha writes the digest for bits 1, 256, 384 or 512 and returns its length, 0 for
 * other bits. */
size_t sha(int bits, const uint8_t *p, size_t n, uint8_t out[64]);
#endif
