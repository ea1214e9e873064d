/* Recycled memory: results and scratch come from here and go back when they are done with.
 *
 * Writing fresh memory costs page faults, a third of the time of a large layer. Blocks are kept by size
 * class, four to a power of two, so at most a fifth of a block is slack; the last one given is the
 * first taken, while it is still in a cache. What is kept is bounded: a block that would exceed the limit
 * goes back to the system. When as many bytes were missed as may be kept, what is kept is of sizes that
 * are no longer used, and all of it goes.
 */
#include "kernels.h"

#include <stdlib.h>
#include <string.h>

#if defined(_WIN32)
#include <malloc.h>
#include <windows.h>
static SRWLOCK lock = SRWLOCK_INIT;
static void enter(void) { AcquireSRWLockExclusive(&lock); }
static void leave(void) { ReleaseSRWLockExclusive(&lock); }
static void *system_take(size_t bytes) { return _aligned_malloc(bytes, 64); }
static void system_give(void *p) { _aligned_free(p); }
#else
#include <pthread.h>
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static void enter(void) { pthread_mutex_lock(&lock); }
static void leave(void) { pthread_mutex_unlock(&lock); }
static void *system_take(size_t bytes)
{
    void *p;
    return posix_memalign(&p, 64, bytes) ? NULL : p;
}
static void system_give(void *p) { free(p); }

/* A fork must not copy the lock while some other thread, gone in the child, holds it. */
__attribute__((constructor)) static void guard_fork(void) { pthread_atfork(enter, leave, leave); }
#endif

/* AddressSanitizer knows nothing of recycled memory: it is told what of a block may be touched. */
#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#define FORBID(p, bytes) ASAN_POISON_MEMORY_REGION(p, bytes)
#define ALLOW(p, bytes) ASAN_UNPOISON_MEMORY_REGION(p, bytes)
#else
#define FORBID(p, bytes) ((void)0)
#define ALLOW(p, bytes) ((void)0)
#endif

/* The header before each block: 64 bytes, so that the block keeps its alignment. */
typedef struct header {
    struct header *next;
    size_t size; /* of header and block */
    int bin;
} header;
enum { HEADER = 64, SMALLEST = 8, BINS = 4 * (48 - SMALLEST) };

static header *bins[BINS];
static cnnx_pool_stats stats = {.limit = (size_t)1 << 28};
static size_t missed; /* bytes since all was last sent back */

/* Smallest class of at least `bytes`: classes are (4..7) << e. -1 where there is none. */
static int bin_of(size_t bytes, size_t *size)
{
    for (int bin = 0; bin < BINS; bin++) {
        *size = (size_t)(4 + bin % 4) << (SMALLEST - 2 + bin / 4);
        if (*size >= bytes) return bin;
    }
    return -1;
}

/* With the lock held: forgets what is kept and returns it as a list. */
static header *drain(void)
{
    header *all = NULL;
    for (int bin = 0; bin < BINS; bin++)
        while (bins[bin]) {
            header *h = bins[bin];
            bins[bin] = h->next;
            h->next = all;
            all = h;
        }
    stats.cached = missed = 0;
    return all;
}

static void release(header *list)
{
    while (list) {
        header *next = list->next;
        system_give(list);
        list = next;
    }
}

void *cnnx_take(size_t bytes)
{
    size_t size;
    if (bytes > SIZE_MAX / 4) return NULL;
    const int bin = bin_of(bytes + HEADER, &size);
    if (bin < 0) return NULL;
    enter();
    header *h = bins[bin], *drop = NULL;
    if (h) {
        bins[bin] = h->next;
        stats.cached -= size;
        stats.hits++;
    } else {
        stats.misses++;
        missed += size;
        if (missed > stats.limit && stats.cached + size > stats.limit) drop = drain();
    }
    leave();
    release(drop);
    if (!h && !(h = system_take(size))) {
        cnnx_pool_empty(); /* what is kept may be what is missing */
        if (!(h = system_take(size))) return NULL;
    }
    h->size = size;
    h->bin = bin;
    enter();
    stats.in_use += size;
    if (stats.in_use > stats.peak) stats.peak = stats.in_use;
    leave();
    char *block = (char *)h + HEADER;
    ALLOW(block, bytes);
    FORBID(block + bytes, size - HEADER - bytes);
    return block;
}

void cnnx_give(void *block)
{
    if (!block) return;
    header *h = (header *)((char *)block - HEADER);
    FORBID(block, h->size - HEADER);
    enter();
    stats.in_use -= h->size;
    const int keep = stats.cached + h->size <= stats.limit;
    if (keep) {
        h->next = bins[h->bin];
        bins[h->bin] = h;
        stats.cached += h->size;
    }
    leave();
    if (!keep) system_give(h);
}

void cnnx_pool_empty(void)
{
    enter();
    header *all = drain();
    leave();
    release(all);
}

cnnx_pool_stats cnnx_pool_read(void)
{
    enter();
    const cnnx_pool_stats copy = stats;
    leave();
    return copy;
}
