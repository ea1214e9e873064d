/* The vector V of VL numbers, and VU, the same wherever it lies. Without vector extensions it is one number. */
#define V FN(V)
#define VU FN(VU) /* the same without alignment */
#if defined(__GNUC__)
typedef T V __attribute__((vector_size(VECTOR_BYTES)));
typedef T VU __attribute__((vector_size(VECTOR_BYTES), aligned(sizeof(T)), may_alias));
typedef __typeof__((V){0} < (V){0}) FN(mask);
static inline V FN(relu)(V v) { return (V)((FN(mask))v & ~(v < (V){0})); } /* keeps NaN */
#else
typedef T V;
typedef T VU;
static inline V FN(relu)(V v) { return v < 0 ? 0 : v; }
#endif
