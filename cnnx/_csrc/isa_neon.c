/* NEON (AArch64): 32 registers of 4 floats. 4 x 16 uses 16 accumulators and multiplies by a lane. */
#define ISA neon
#define VECTOR_BYTES 16
#define MR 4
#define NV 4
#define WM 8
#define DEPTHWISE_TILES
#include "isa.inc.h"
