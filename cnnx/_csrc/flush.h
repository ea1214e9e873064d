/* Numbers too small to be normal, below 2**-126 in float, are zero while a kernel computes.
 *
 * Most CPUs leave arithmetic on them to microcode: SiLU took 4.8 times as long on a Zen 5, and optimizers' moments of
 * units that are never active do decay to them. To flush them is a mode of the CPU, of each thread its own:
 * cnnx_flush sets it and answers with the one before, for cnnx_set_mode. Both also keep a call's exception flags, such
 * as overflow, from the caller's.
 */
#ifndef CNNX_FLUSH_H
#define CNNX_FLUSH_H

#include <stdint.h>

#if defined(__SSE__) || defined(_M_X64)
#include <xmmintrin.h>
typedef unsigned cnnx_mode;
enum { CNNX_FLUSHING = 0x8040 }; /* of results, and of operands */
static cnnx_mode cnnx_get_mode(void) { return _mm_getcsr(); }
static void cnnx_set_mode(cnnx_mode mode) { _mm_setcsr(mode); }
#elif defined(__aarch64__)
typedef uint64_t cnnx_mode;
enum { CNNX_FLUSHING = 1 << 24 };
static cnnx_mode cnnx_get_mode(void)
{
    cnnx_mode mode;
    __asm__ volatile("mrs %0, fpcr" : "=r"(mode));
    return mode;
}
static void cnnx_set_mode(cnnx_mode mode) { __asm__ volatile("msr fpcr, %0" : : "r"(mode)); }
#else
typedef int cnnx_mode;
enum { CNNX_FLUSHING = 0 };
static cnnx_mode cnnx_get_mode(void) { return 0; }
static void cnnx_set_mode(cnnx_mode mode) { (void)mode; }
#endif

static cnnx_mode cnnx_flush(void)
{
    const cnnx_mode before = cnnx_get_mode();
    cnnx_set_mode(before | CNNX_FLUSHING);
    return before;
}

#endif
