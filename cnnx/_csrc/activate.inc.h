/* Activations and their derivatives on vectors, with the exponential and the hyperbolic tangent they need.
 *
 * The C library's expf and tanhf take 10 ns a number, one by one. The polynomials are those of Cephes
 * (Moshier) for float and of Taylor for double, good to 1 or 2 units of the last place; infinities,
 * NaN and denormals come out as they should. The complementary error function stays the C library's.
 */
#if defined(__GNUC__)
#if SIZE == 4
typedef int32_t FN(integer);
#define MANTISSA 23
#define BIAS 127
#define EXP_LOW ((T)-104)
#define EXP_HIGH ((T)89)
#define LN2_HIGH ((T)0.693359375)
#define LN2_LOW ((T)-2.12194440e-4)
#else
typedef int64_t FN(integer);
#define MANTISSA 52
#define BIAS 1023
#define EXP_LOW ((T)-746)
#define EXP_HIGH ((T)710)
#define LN2_HIGH ((T)6.93147180369123816490e-01)
#define LN2_LOW ((T)1.90821492927058770002e-10)
#endif
typedef FN(integer) FN(integers) __attribute__((vector_size(VECTOR_BYTES)));
typedef FN(integer) FN(loose_integers) __attribute__((vector_size(VECTOR_BYTES), aligned(sizeof(T)), may_alias));

static inline V FN(select)(FN(integers) mask, V a, V b)
{
    return (V)((mask & (FN(integers))a) | (~mask & (FN(integers))b));
}

static inline V FN(exp)(V x)
{
    const V magic = (V){0} + (T)(3LL << (MANTISSA - 1)); /* adding it rounds to an integer, in the low bits */
    x = FN(select)((FN(integers))(x < EXP_LOW), (V){0} + EXP_LOW, x); /* comparisons let NaN through */
    x = FN(select)((FN(integers))(x > EXP_HIGH), (V){0} + EXP_HIGH, x);
    const V rounded = x * (T)1.44269504088896340736 + magic, n = rounded - magic;
    const V r = x - n * LN2_HIGH - n * LN2_LOW;
#if SIZE == 4
    V p = ((V){0} + (T)1.9875691500e-4) * r + (T)1.3981999507e-3;
    p = ((p * r + (T)8.3334519073e-3) * r + (T)4.1665795894e-2) * r + (T)1.6666665459e-1;
    p = (p * r + (T)5.0000001201e-1) * (r * r) + r + 1;
#else
    V p = ((V){0} + (T)(1 / 6227020800.0)) * r + (T)(1 / 479001600.0);
    p = ((p * r + (T)(1 / 39916800.0)) * r + (T)(1 / 3628800.0)) * r + (T)(1 / 362880.0);
    p = ((p * r + (T)(1 / 40320.0)) * r + (T)(1 / 5040.0)) * r + (T)(1 / 720.0);
    p = ((p * r + (T)(1 / 120.0)) * r + (T)(1 / 24.0)) * r + (T)(1 / 6.0);
    p = (p * r + (T)0.5) * (r * r) + r + 1;
#endif
    /* Two factors, for 2**n itself need not be a number where exp(x) is: denormals, and near the largest. */
    const FN(integers) power = (FN(integers))rounded - (FN(integers))magic, half = power >> 1;
    return p * (V)((half + BIAS) << MANTISSA) * (V)((power - half + BIAS) << MANTISSA);
}

static inline V FN(tanh)(V x)
{
    const FN(integers) top = (FN(integers))-(V){0}, sign = (FN(integers))x & top; /* -0.0 is the sign alone */
    const V size = (V)((FN(integers))x & ~top), z = x * x;
#if SIZE == 4
    V p = ((V){0} + (T)-5.70498872745e-3) * z + (T)2.06390887954e-2;
    p = ((p * z + (T)-5.37397155531e-2) * z + (T)1.33314422036e-1) * z + (T)-3.33332819422e-1;
    const V small = p * z * x + x;
#else
    const V p = ((V){0} + (T)-9.64399179425052238628e-1) * z * z + (T)-9.92877231001918586564e1 * z +
                (T)-1.61468768441708447952e3;
    const V q = ((z + (T)1.12811678491632931402e2) * z + (T)2.23548839060100448583e3) * z +
                (T)4.84406305325125486048e3;
    const V small = x * z * (p / q) + x;
#endif
    const V large = (V)((FN(integers))(1 - 2 / (FN(exp)(2 * size) + 1)) | sign);
    return FN(select)((FN(integers))(size < (T)0.625), small, large); /* NaN is not less, and comes through */
}
#define ABOVE(v, limit, a, b) FN(select)((FN(integers))((v) > (limit)), a, b)
#define BELOW(v, limit, a, b) FN(select)((FN(integers))((v) < (limit)), a, b)
#else
static inline T FN(exp)(T x) { return EXP(x); }
static inline T FN(tanh)(T x) { return TANH(x); }
#define ABOVE(v, limit, a, b) ((v) > (limit) ? (a) : (b))
#define BELOW(v, limit, a, b) ((v) < (limit) ? (a) : (b))
#endif

static inline V FN(larger)(V a, V b) { return ABOVE(b, a, b, a); } /* keeps a where b is NaN */

static inline V FN(relu6)(V v) { return FN(relu)(ABOVE(v, 6, (V){0} + 6, v)); }

static inline V FN(relu1)(V v) { return FN(relu)(ABOVE(v, 1, (V){0} + 1, v)); }

static inline V FN(hard_swish)(V v) { return v * FN(relu6)(v + 3) * (T)(1.0 / 6); }

static inline V FN(sigmoid)(V v) { return 1 / (1 + FN(exp)(-v)); }

#define SQRT1_2 ((T)0.70710678118654752440)
#define INV_SQRT_2PI ((T)0.39894228040143267794)

/* erfc(-v / sqrt(2)), which keeps its digits far below zero. */
static NOINLINE void FN(erfc)(const T *v, T *to)
{
    for (int l = 0; l < VL; l++) to[l] = ERFC(-v[l] * SQRT1_2);
}

static inline V FN(twice_normal)(V v)
{
    T lane[VL], to[VL];
    *(VU *)lane = v;
    FN(erfc)(lane, to);
    return *(const VU *)to;
}

/* The activation of kind `kind`, which the compiler ought to know. */
static ALWAYS_INLINE V FN(activate_vector)(V v, const int kind, T alpha)
{
    switch (kind) {
    case CNNX_RELU: return FN(relu)(v);
    case CNNX_LEAKY_RELU: return BELOW(v, 0, alpha * v, v);
    case CNNX_RELU6: return FN(relu6)(v);
    case CNNX_SIGMOID: return FN(sigmoid)(v);
    case CNNX_TANH: return FN(tanh)(v);
    case CNNX_GELU: return (T)0.5 * v * FN(twice_normal)(v);
    case CNNX_SILU: return v / (1 + FN(exp)(-v));
    case CNNX_HARD_SWISH: return FN(hard_swish)(v);
    default: return v;
    }
}

/* A gradient that ABOVE may stop. GCC 12 for AVX-512 would load it under the mask, after the comparison, which on a
 * million doubles took a fifth longer. */
static ALWAYS_INLINE V FN(at_once)(const T *grad) { return *(const volatile VU *)grad; }

/* grad times the derivative at the input v. What a ReLU stops is 0, also where grad is no number. */
static ALWAYS_INLINE V FN(grad_vector)(V grad, V v, const int kind, T alpha)
{
    const V zero = {0}, one = zero + 1;
    switch (kind) {
    case CNNX_RELU: return ABOVE(v, 0, grad, zero);
    case CNNX_LEAKY_RELU: return grad * ABOVE(v, 0, one, zero + alpha);
    case CNNX_RELU6: return ABOVE(v, 0, BELOW(v, 6, grad, zero), zero);
    case CNNX_SIGMOID: { const V s = FN(sigmoid)(v); return grad * (s * (1 - s)); }
    case CNNX_TANH: { const V t = FN(tanh)(v); return grad * (1 - t * t); }
    case CNNX_GELU:
        return grad * ((T)0.5 * FN(twice_normal)(v) + v * INV_SQRT_2PI * FN(exp)(-(T)0.5 * v * v));
    case CNNX_SILU: { const V s = FN(sigmoid)(v); return grad * (s * (1 + v * (1 - s))); }
    case CNNX_HARD_SWISH: return grad * ABOVE(v, -3, BELOW(v, 3, v * (T)(1.0 / 3) + (T)0.5, one), zero);
    default: return grad;
    }
}

/* The same from the output y, which is what a fused layer has kept. */
static ALWAYS_INLINE V FN(grad_from_output)(V grad, V y, const int kind)
{
    switch (kind) {
    case CNNX_RELU: return ABOVE(y, 0, grad, (V){0});
    case CNNX_SIGMOID: return grad * (y * (1 - y));
    case CNNX_TANH: return grad * (1 - y * y);
    default: return grad;
    }
}

static NOINLINE V FN(fused_sigmoid)(V v) { return FN(sigmoid)(v); }
static NOINLINE V FN(fused_tanh)(V v) { return FN(tanh)(v); }
static NOINLINE V FN(fused_silu)(V v) { return v / (1 + FN(exp)(-v)); }

/* What a convolution fuses. One number gets the bits it would get in a vector: which of the two it is depends
 * on where tiles end, and with that on the number of threads. */
static inline V FN(fused)(V v, int activation)
{
    switch (activation) {
    case CNNX_RELU: return FN(relu)(v);
    case CNNX_SIGMOID: return FN(fused_sigmoid)(v);
    case CNNX_TANH: return FN(fused_tanh)(v);
    case CNNX_SILU: return FN(fused_silu)(v);
    case CNNX_HARD_SWISH: return FN(hard_swish)(v);
    case CNNX_RELU6: return FN(relu6)(v);
    case CNNX_RELU1: return FN(relu1)(v);
    default: return v;
    }
}

static inline T FN(activate)(T v, int activation)
{
    if (activation <= CNNX_RELU) return activation == CNNX_RELU && v < 0 ? 0 : v; /* keeps NaN */
    if (activation == CNNX_RELU6) return v < 0 ? 0 : v > 6 ? 6 : v;
    T lane[VL];
    *(VU *)lane = FN(fused)((V){0} + v, activation);
    return lane[0];
}

/* A row in place. Its rest takes one vector, not one for each number. */
static inline void FN(activate_row)(T *to, int64_t n, int activation)
{
    int64_t j = 0;
    for (; j + VL <= n; j += VL) *(VU *)(to + j) = FN(fused)(*(const VU *)(to + j), activation);
    if (j == n) return;
    T lane[VL] = {0};
    memcpy(lane, to + j, (size_t)(n - j) * sizeof(T));
    *(VU *)lane = FN(fused)(*(const VU *)lane, activation);
    memcpy(to + j, lane, (size_t)(n - j) * sizeof(T));
}
#undef ABOVE
#undef BELOW
#undef MANTISSA
#undef BIAS
#undef EXP_LOW
#undef EXP_HIGH
#undef LN2_HIGH
#undef LN2_LOW
