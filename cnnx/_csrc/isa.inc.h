/* Everything of one instruction set: the bodies, once for float and once for double, and their tables.
 *
 * Included by isa_*.c, which set ISA (a name), VECTOR_BYTES and the register tiles MR, NV (vectors of
 * pixels), WM, and say whether it has the files that not every one repays: DEPTHWISE_TILES, BROADCAST. A new
 * instruction set is a new isa_*.c of ten lines and an entry in dispatch.c
 * and setup.py; a new kernel is a new .inc.h here and an entry in the table.
 */
#include "kernels.h"

#include <math.h>
#include <string.h>

enum { KC = 256 }; /* depth of a panel: 256 x 24 floats are 24 KiB of the 32 in the first level */

#define JOIN_(a, b, c) a##b##_##c
#define JOIN(a, b, c) JOIN_(a, b, c)
#define STRING_(a) #a
#define STRING(a) STRING_(a)
#define VL ((int)(VECTOR_BYTES / sizeof(T)))
#define NR (NV * VL)
#define WV 2 /* vectors of output channels in the weight gradient's tile, WM numbers of the input */

#if defined(__GNUC__)
/* Keeps a vector in its register, which the compiler would rather load again for each use. */
#if defined(__x86_64__)
#define KEEP(v) __asm__("" : "+v"(v))
#elif defined(__aarch64__)
#define KEEP(v) __asm__("" : "+w"(v))
#else
#define KEEP(v)
#endif
/* Without the pragma gcc -O2 keeps the tile in memory: 66 % of the peak instead of 94 %. */
#define UNROLL _Pragma("GCC unroll 16")
#define ALWAYS_INLINE inline __attribute__((always_inline))
#define NOINLINE __attribute__((noinline))
#define PREFETCH(p) __builtin_prefetch(p)
#define PREFETCH_FAR(p) __builtin_prefetch(p, 0, 2) /* into the second level */
#define PREVENT_MEMCPY __asm__ volatile("") /* a call for three numbers costs more than they do */
#else
#define KEEP(v)
#define UNROLL
#define ALWAYS_INLINE inline
#define NOINLINE
#define PREFETCH(p)
#define PREFETCH_FAR(p)
#define PREVENT_MEMCPY
#define restrict __restrict
#endif

/* A store past the caches, to a vector in its place: a line that they cannot hold need not be read before it is
 * written. STREAMED comes before another thread reads it. */
#if defined(__GNUC__) && defined(__x86_64__)
#if VECTOR_BYTES == 16
#define STREAM(p, v) __asm__("movntps %1, %0" : "=m"(*(p)) : "x"(v))
#else
#define STREAM(p, v) __asm__("vmovntps %1, %0" : "=m"(*(p)) : "v"(v))
#endif
#define STREAMED __asm__ volatile("sfence" ::: "memory")
#else
#define STREAM(p, v) (*(p) = (v))
#define STREAMED
#endif

#if defined(__GNUC__) && (__GNUC__ >= 12 || defined(__clang__)) /* __builtin_shufflevector */
#define SHUFFLE
#endif

#define T float
#define SIZE 4
#define TYPE f32
#define EXP expf
#define TANH tanhf
#define ERFC erfcf
#define SQRT sqrtf
#if defined(SHUFFLE)
#define WINOGRAD
#endif
#include "bodies.inc.h"
#undef WINOGRAD
#undef T
#undef SIZE
#undef TYPE
#undef EXP
#undef TANH
#undef ERFC
#undef SQRT

#define T double
#define SIZE 8
#define TYPE f64
#define EXP exp
#define TANH tanh
#define ERFC erfc
#define SQRT sqrt
#include "bodies.inc.h"
