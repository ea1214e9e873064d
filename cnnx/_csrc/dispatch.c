/* Which instruction sets this build has, and which of them this CPU and this system can run. */
#include "kernels.h"

#if defined(CNNX_X86_64)
#if defined(_MSC_VER)
#include <intrin.h>
#else
#include <cpuid.h>
#endif

static void cpuid(unsigned leaf, unsigned sub, unsigned r[4])
{
#if defined(_MSC_VER)
    __cpuidex((int *)r, (int)leaf, (int)sub);
#else
    if (!__get_cpuid_count(leaf, sub, &r[0], &r[1], &r[2], &r[3])) r[0] = r[1] = r[2] = r[3] = 0;
#endif
}

/* Which registers the operating system saves on a task switch (XCR0). Without this an AVX
 * instruction faults, or worse, loses its upper halves, whatever CPUID says. */
static unsigned saved_registers(void)
{
    unsigned r[4];
    cpuid(1, 0, r);
    if (!(r[2] >> 27 & 1)) return 0; /* OSXSAVE */
#if defined(_MSC_VER)
    return (unsigned)_xgetbv(0);
#else
    unsigned low, high;
    __asm__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return low;
#endif
}

static int has_avx2(void)
{
    unsigned one[4], seven[4];
    cpuid(1, 0, one);
    cpuid(7, 0, seven);
    return (saved_registers() & 0x6) == 0x6 && (one[2] >> 12 & 1) && (seven[1] >> 5 & 1);
}

static int has_avx512(void)
{
    unsigned seven[4];
    cpuid(7, 0, seven);
    const unsigned wanted = 1u << 16 | 1u << 17 | 1u << 30 | 1u << 31; /* F, DQ, BW, VL */
    return has_avx2() && (saved_registers() & 0xe6) == 0xe6 && (seven[1] & wanted) == wanted;
}
#endif

static int always(void) { return 1; }

#define TABLES(isa) extern const cnnx_kernels cnnx_f32_##isa, cnnx_f64_##isa;
#define ENTRY(isa, supported) {#isa, supported, {&cnnx_f32_##isa, &cnnx_f64_##isa}}

TABLES(baseline)
#if defined(CNNX_X86_64)
TABLES(avx2)
TABLES(avx512)
#endif
#if defined(CNNX_AARCH64)
TABLES(neon)
#endif

static const struct {
    const char *name;
    int (*supported)(void);
    const cnnx_kernels *kernels[2];
} sets[] = {
    ENTRY(baseline, always),
#if defined(CNNX_X86_64)
    ENTRY(avx2, has_avx2),
    ENTRY(avx512, has_avx512),
#endif
#if defined(CNNX_AARCH64)
    ENTRY(neon, always),
#endif
};

int cnnx_isa_count(void) { return (int)(sizeof sets / sizeof *sets); }
const char *cnnx_isa_name(int i) { return sets[i].name; }
int cnnx_isa_supported(int i) { return sets[i].supported(); }
const cnnx_kernels *cnnx_isa_kernels(int i, int dtype) { return sets[i].kernels[dtype]; }
