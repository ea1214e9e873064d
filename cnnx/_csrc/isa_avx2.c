/* AVX2 + FMA: 16 registers of 8 floats. 4 x 24 reached 94 % of the FMA peak, 6 x 16 was no faster, and
 * 4 divides every usual number of channels. Compiled with -mavx2 -mfma (setup.py). */
#define ISA avx2
#define VECTOR_BYTES 32
#define MR 4
#define NV 3
#define WM 6
#define DEPTHWISE_TILES
#include "isa.inc.h"
