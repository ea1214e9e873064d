/* The instruction set that every CPU of the target has: SSE2 on x86-64 (16 registers of 4 floats hold a
 * 4 x 8 tile), plain C for compilers without vector extensions. No tiles of depthwise convolution's own: they are
 * half of an instruction set's code, and on the few CPUs without AVX2 the direct path takes 1.2 to 2 times as long,
 * 4 on 7x7 images. */
#define ISA baseline
#if defined(__GNUC__)
#define VECTOR_BYTES 16
#define MR 4
#define NV 2
#else
#define VECTOR_BYTES sizeof(T)
#define MR 4
#define NV 4
#endif
#define WM 6
#include "isa.inc.h"
