/* The engine's allocator: size classes of 16 bytes up to 512 on pages of 64 KiB
 * of their own, last freed first used, so that an invocation touches the same few pages
 * as the one before; all larger blocks are the C library's. One thread. */
#ifndef HEAP_H
#define HEAP_H
#include "quickjs.h"
extern const JSMallocFunctions heap;
#endif
