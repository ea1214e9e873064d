/* AVX-512 F, VL, DQ, BW: 32 registers of 16 floats. 8 x 32 keeps 16 FMAs in flight, twice what two units
 * of latency 4 need, and a panel of KC x 32 floats fits the first level (32 KiB). */
#define ISA avx512
#define VECTOR_BYTES 64
#define MR 8
#define NV 2
#define WM 8
#define BROADCAST /* with 16 registers the tile is too small to gain */
#define DEPTHWISE_TILES
#include "isa.inc.h"
