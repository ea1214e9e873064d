/* Everything of one instruction set: the bodies, once for float and once for double, and their tables.
 *
 * Included by isa_*.c, which set ISA (a name), VECTOR_BYTES and the register tiles MR, NV (vectors of
 * pixels), DOT_M, DOT_N. A new instruction set is a new isa_*.c of ten lines and an entry in dispatch.c
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

#if defined(__GNUC__)
/* Without the pragma gcc -O2 keeps the tile in memory: 66 % of the peak instead of 94 %. */
#define UNROLL _Pragma("GCC unroll 16")
#define ALWAYS_INLINE inline __attribute__((always_inline))
#define NOINLINE __attribute__((noinline))
#else
#define UNROLL
#define ALWAYS_INLINE inline
#define NOINLINE
#define restrict __restrict
#endif

#define T float
#define TYPE f32
#define EXP expf
#define TANH tanhf
#define ERFC erfcf
#if defined(__GNUC__) && (__GNUC__ >= 12 || defined(__clang__)) /* __builtin_shufflevector */
#define WINOGRAD
#endif
#include "bodies.inc.h"
#undef WINOGRAD
#undef T
#undef TYPE
#undef EXP
#undef TANH
#undef ERFC

#define T double
#define TYPE f64
#define EXP exp
#define TANH tanh
#define ERFC erfc
#include "bodies.inc.h"
