/* What the machine can do at most, for the roofline: multiply-adds in registers, and a sum of two arrays.
 * Compiled by roofline.py for the CPU it runs on. */
#include <stddef.h>

#if defined(__AVX512F__)
#define BYTES 64
#elif defined(__AVX__)
#define BYTES 32
#else
#define BYTES 16
#endif
typedef float vector __attribute__((vector_size(BYTES)));
enum { CHAINS = 12 }; /* two units of four to five cycles each want ten at least */

/* `rounds` times CHAINS multiply-adds of vectors; returns how many floating-point operations that was. */
double multiply_adds(long rounds, float *result)
{
    vector sum[CHAINS], factor = (vector){0} + 0.999f, term = (vector){0} + 0.001f;
    for (int c = 0; c < CHAINS; c++) sum[c] = (vector){0} + (float)c;
    for (long r = 0; r < rounds; r++)
#pragma GCC unroll 12
        for (int c = 0; c < CHAINS; c++) sum[c] = sum[c] * factor + term;
    for (int c = 1; c < CHAINS; c++) sum[0] += sum[c];
    *result = sum[0][0];
    return 2.0 * (double)rounds * CHAINS * (BYTES / sizeof(float));
}

/* c = a + b; three arrays of n numbers go past. */
void add(const float *restrict a, const float *restrict b, float *restrict c, size_t n)
{
    for (size_t i = 0; i < n; i++) c[i] = a[i] + b[i];
}
