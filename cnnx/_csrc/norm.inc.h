/* Batch normalisation, and the sums over a channel that it and the bias gradient need.
 *
 * Memory is the cost, so each number is brought in as seldom as it can be, and by the core that has it. A channel
 * of few images stays in the caches from its statistics to its result: a task is some whole channels. Of a larger
 * batch a channel does not stay, for its rows lie C*area apart, and where that is a power of two they fall into the
 * same cache sets. Then the batch is cut into pieces, and a task is some channels of one of them, image by image as
 * they lie, so that a thread meets the images that its caches hold from the layer before; each piece leaves its
 * sums, and whoever goes on adds them up in their order. On two cores that took ResNet-20's forward from 2.0 to
 * 1.4 ms. Sums run in vectors over a block and then in double: float32 statistics of millions of pixels keep all
 * their digits.
 */
enum { FN(NORM_BLOCK) = 4096, FN(NORM_CHANNELS) = 64 };
#define STATISTICS (-1) /* the kind of a pass that looks at no gradient */

static void FN(norm_plan)(cnnx_norm *p)
{
    const int64_t numbers = p->N * p->area; /* of a channel */
    const int stays = p->N <= 8 && numbers * (int64_t)sizeof(T) <= 1 << 19; /* in half of the second level */
    int64_t pieces = stays || p->area < VL ? 1 : numbers / 256; /* enough to add up for each sum of a piece */
    if (pieces > 8) pieces = 8;
    if (pieces > p->N) pieces = p->N;
    if (pieces < 1) pieces = 1;
    p->images = (p->N + pieces - 1) / pieces;
    p->pieces = (p->N + p->images - 1) / p->images;
    /* Whole channels in the first level, as much of a piece as is worth a task's start. */
    p->channels = (p->pieces > 1 ? 1 << 16 : 1 << 12) / (p->images * p->area);
    if (p->channels < 1) p->channels = 1;
    if (p->channels > FN(NORM_CHANNELS)) p->channels = FN(NORM_CHANNELS);
    p->blocks = (p->C + p->channels - 1) / p->channels;
    p->tasks = p->pieces * p->blocks;
}

/* A task's part: images n to end, `count` channels from c on. */
typedef struct {
    int64_t piece, n, end, c, count;
} FN(norm_part);

static inline FN(norm_part) FN(norm_part_of)(const cnnx_norm *p, int64_t task)
{
    FN(norm_part) s = {.piece = task / p->blocks, .c = task % p->blocks * p->channels};
    s.n = s.piece * p->images;
    s.end = s.n + p->images < p->N ? s.n + p->images : p->N;
    s.count = p->channels < p->C - s.c ? p->channels : p->C - s.c;
    return s;
}

/* Where a piece leaves two sums of each channel from c on, C apart. */
static inline double *FN(norm_place)(const cnnx_norm *p, int64_t piece, int64_t c)
{
    return p->sums + 2 * piece * p->C + c;
}

/* Images that a channel is gone through in at a time: one where a task reads its piece as it lies. */
static inline int64_t FN(norm_together)(const cnnx_norm *p, int64_t left)
{
    int64_t most = p->pieces > 1 ? 1 : FN(NORM_BLOCK) / p->area;
    if (most < 1) most = 1;
    return left < most ? left : most;
}

/* Rows of a channel, `step` apart. */
typedef struct {
    int64_t rows, width, step;
} FN(norm_rows);

/* Room for rows brought together, and for a vector before them, which the last vector of a short one reaches into. */
typedef T FN(norm_room)[FN(NORM_BLOCK) + 2 * VL];

/* The rows of channel c in `images` from n on. Those smaller than a vector are brought together to one, which is
 * four times as fast for 2x2. They may be read from VL numbers before their end on. */
static inline FN(norm_rows) FN(bring)(const cnnx_norm *p, const void *array, int64_t n, int64_t images, int64_t c,
                                      FN(norm_room) room, const T **at)
{
    const T *from = *at = (const T *)array + (n * p->C + c) * p->area;
    if (p->area >= VL) return (FN(norm_rows)){images, p->area, p->C * p->area};
    T *to = room + VL;
    memset(room, 0, VL * sizeof(T));
    for (int64_t i = 0; i < images; i++, from += p->C * p->area)
        for (int64_t q = 0; q < p->area; q++) *to++ = from[q];
    memset(to, 0, VL * sizeof(T));
    *at = room + VL;
    return (FN(norm_rows)){1, images * p->area, 0};
}

static inline void FN(put_back)(const cnnx_norm *p, const T *from, int64_t n, int64_t images, int64_t c)
{
    T *to = (T *)p->y + (n * p->C + c) * p->area;
    for (int64_t i = 0; i < images; i++, to += p->C * p->area)
        for (int64_t q = 0; q < p->area; q++) to[q] = *from++;
}

/* v, with 0 in the lanes below `first`. */
static inline V FN(lanes_from)(V v, int64_t first)
{
#if defined(__GNUC__)
    V lane;
    for (int l = 0; l < VL; l++) lane[l] = (T)l;
    return (V)((FN(mask))v & (lane >= (V){0} + (T)first));
#else
    return first ? 0 : v;
#endif
}

/* What a channel's numbers go through: z = (x - mean) * scale + shift, then the activation. */
typedef struct {
    T mean, scale, shift;
} FN(norm_line);

static inline FN(norm_line) FN(norm_line_of)(const cnnx_norm *p, int64_t c, T mean, T var)
{
    const double inverse = 1 / sqrt((double)var + p->eps);
    const T scale = p->weight ? ((const T *)p->weight)[c] * (T)inverse : (T)inverse;
    return (FN(norm_line)){mean, scale, p->bias ? ((const T *)p->bias)[c] : 0};
}

/* The gradient by z: the output's, where the activation lets it through. */
static ALWAYS_INLINE V FN(by_z)(V x, V g, FN(norm_line) line, const int kind)
{
    if (kind == CNNX_NONE) return g;
    return FN(grad_vector)(g, (x - line.mean) * line.scale + line.shift, kind, 0);
}

/* Add the lanes of u to *sum and those of u*v to *product, with v = x - mean, and u = v for the kind STATISTICS,
 * the gradient by z for others. */
static ALWAYS_INLINE void FN(norm_add)(const T *x, const T *g, FN(norm_rows) b, FN(norm_line) line, const int kind,
                                       V *sum, V *product)
{
    V u[4] = {*sum}, uv[4] = {*product};
    UNROLL for (int l = 1; l < 4; l++) u[l] = uv[l] = (V){0};
#define ADD(l, at, keep)                                                                                         \
    {                                                                                                            \
        const V a = *(const VU *)(x + (at)), v = keep(a - line.mean);                                            \
        const V w = kind == STATISTICS ? v : keep(FN(by_z)(a, FN(at_once)(g + (at)), line, kind));               \
        u[l] += w;                                                                                               \
        uv[l] += w * v;                                                                                          \
    }
    for (int64_t r = 0; r < b.rows; r++, x += b.step, g += kind == STATISTICS ? 0 : b.step) {
        int64_t q = 0;
        for (; q + 4 * VL <= b.width; q += 4 * VL) UNROLL for (int l = 0; l < 4; l++) ADD(l, q + l * VL, )
        for (; q + VL <= b.width; q += VL) ADD(0, q, )
        if (q < b.width) { /* the last vector, without the lanes that are in already */
#define NEW(v) FN(lanes_from)(v, q - (b.width - VL))
            ADD(0, b.width - VL, NEW)
#undef NEW
        }
    }
#undef ADD
    *sum = (u[0] + u[1]) + (u[2] + u[3]);
    *product = (uv[0] + uv[1]) + (uv[2] + uv[3]);
}

/* Add the lanes of each channel's vector to its sum, and empty it. */
static inline void FN(norm_flush)(V *part, int64_t count, double *sums)
{
    int64_t c = 0;
#if defined(__GNUC__)
    for (; c + VL <= count; c += VL) {
        V each[VL];
        T lane[VL];
        for (int l = 0; l < VL; l++) each[l] = part[c + l];
        *(VU *)lane = FN(sum_each)(each);
        for (int l = 0; l < VL; l++) sums[c + l] += (double)lane[l];
    }
#endif
    for (; c < count; c++) sums[c] += (double)FN(sum_lanes)(part[c]);
    for (c = 0; c < count; c++) part[c] = (V){0};
}

/* The two sums of `norm_add` for each channel of a part, over the first `most` numbers of each row. */
static ALWAYS_INLINE void
FN(norm_pass)(const cnnx_norm *p, FN(norm_part) s, int64_t most, const void *x, const void *g,
              const FN(norm_line) *line, const int kind, double sums[2][FN(NORM_CHANNELS)])
{
    FN(norm_room) room_x, room_g;
    V sum[FN(NORM_CHANNELS)], product[FN(NORM_CHANNELS)];
    for (int64_t c = 0; c < s.count; c++) {
        sum[c] = product[c] = (V){0};
        sums[0][c] = sums[1][c] = 0;
    }
    int64_t images, terms = 0;
    for (int64_t n = s.n; n < s.end; n += images) {
        images = FN(norm_together)(p, s.end - n);
        FN(norm_rows) b;
        for (int64_t c = 0; c < s.count; c++) {
            const T *from_x, *from_g = NULL;
            if (kind != STATISTICS) FN(bring)(p, g, n, images, s.c + c, room_g, &from_g);
            b = FN(bring)(p, x, n, images, s.c + c, room_x, &from_x);
            const int64_t width = b.width < most ? b.width : most;
            for (int64_t q = 0; q < width; q += FN(NORM_BLOCK)) { /* more than one only where there is one row */
                b.width = width - q < FN(NORM_BLOCK) ? width - q : FN(NORM_BLOCK);
                FN(norm_add)(from_x + q, kind == STATISTICS ? NULL : from_g + q, b, line[c], kind, sum + c,
                             product + c);
                if (width <= FN(NORM_BLOCK)) break;
                FN(norm_flush)(sum + c, 1, sums[0] + c);
                FN(norm_flush)(product + c, 1, sums[1] + c);
            }
        }
        terms += images * p->area;
        if (terms + images * p->area <= FN(NORM_BLOCK) && n + images < s.end) continue;
        FN(norm_flush)(sum, s.count, sums[0]);
        FN(norm_flush)(product, s.count, sums[1]);
        terms = 0;
    }
}

/* The same for an area of 1, a matrix (N, C): channels lie side by side. */
static void FN(column_sums)(const cnnx_norm *p, int64_t task)
{
    const int64_t c = task * CNNX_COLUMNS, n = p->C - c < CNNX_COLUMNS ? p->C - c : CNNX_COLUMNS;
    double total[CNNX_COLUMNS] = {0};
    for (int64_t r = 0; r < p->N;) {
        const int64_t end = r + 256 < p->N ? r + 256 : p->N;
        T sum[CNNX_COLUMNS] = {0};
        for (; r < end; r++) {
            const T *g = (const T *)p->grad + r * p->C + c;
            for (int64_t k = 0; k < n; k++) sum[k] += g[k];
        }
        for (int64_t k = 0; k < n; k++) total[k] += (double)sum[k];
    }
    for (int64_t k = 0; k < n; k++) ((T *)p->y)[c + k] = (T)total[k];
}

static void FN(conv_bias)(const void *problem, int64_t task, void *scratch)
{
    const cnnx_norm *p = problem;
    (void)scratch;
    if (p->area == 1) {
        FN(column_sums)(p, task);
        return;
    }
    const FN(norm_line) line = {0};
    double sums[2][FN(NORM_CHANNELS)];
    FN(norm_pass)(p, (FN(norm_part)){0, 0, p->N, task, 1}, INT64_MAX, p->grad, NULL, &line, STATISTICS, sums);
    ((T *)p->y)[task] = (T)sums[0][0];
}

/* A piece's means, and its sums of squares about them. What is summed up is the distance to the mean of the first
 * row, so that nothing cancels: however the images differ, it is no larger than their variance times their number. */
static void FN(norm_sums)(const void *problem, int64_t task, void *scratch)
{
    const cnnx_norm *p = problem;
    (void)scratch;
    const FN(norm_part) s = FN(norm_part_of)(p, task);
    FN(norm_part) first = s;
    first.end = s.n + FN(norm_together)(p, s.end - s.n);
    FN(norm_line) line[FN(NORM_CHANNELS)];
    for (int64_t c = 0; c < s.count; c++) line[c] = (FN(norm_line)){0};
    double sums[2][FN(NORM_CHANNELS)], *mean = FN(norm_place)(p, s.piece, s.c), *square = mean + p->C;
    FN(norm_pass)(p, first, FN(NORM_BLOCK), p->x, NULL, line, STATISTICS, sums);
    const int64_t row = p->area < FN(NORM_BLOCK) ? p->area : FN(NORM_BLOCK);
    const double few = (double)((first.end - first.n) * row);
    for (int64_t c = 0; c < s.count; c++) line[c].mean = (T)(sums[0][c] / few);
    FN(norm_pass)(p, s, INT64_MAX, p->x, NULL, line, STATISTICS, sums);
    const double count = (double)((s.end - s.n) * p->area);
    for (int64_t c = 0; c < s.count; c++) {
        const double rest = sums[0][c] / count;
        mean[c] = (double)line[c].mean + rest;
        square[c] = sums[1][c] - sums[0][c] * rest;
    }
}

/* The channels' statistics from those of the pieces (Chan, Golub and LeVeque 1983): the squares about the mean
 * of all are those about each one's mean, and the distances between the means. */
static void FN(norm_stats)(const cnnx_norm *p, FN(norm_part) s, T *mean, T *var)
{
    const double all = (double)p->N * (double)p->area;
    double middle[FN(NORM_CHANNELS)], square[FN(NORM_CHANNELS)];
    for (int64_t c = 0; c < s.count; c++) middle[c] = square[c] = 0;
    for (int64_t piece = 0; piece < p->pieces; piece++) {
        const int64_t n = piece * p->images, left = p->N - n;
        const double part = (double)((left < p->images ? left : p->images) * p->area) / all;
        const double *means = FN(norm_place)(p, piece, s.c);
        for (int64_t c = 0; c < s.count; c++) middle[c] += part * means[c];
    }
    for (int64_t piece = 0; piece < p->pieces; piece++) {
        const int64_t n = piece * p->images, left = p->N - n;
        const double some = (double)((left < p->images ? left : p->images) * p->area);
        const double *means = FN(norm_place)(p, piece, s.c), *squares = means + p->C;
        for (int64_t c = 0; c < s.count; c++) {
            const double distance = means[c] - middle[c];
            square[c] += squares[c] + some * distance * distance;
        }
    }
    for (int64_t c = 0; c < s.count; c++) {
        mean[c] = (T)middle[c];
        var[c] = (T)(square[c] / all);
    }
}

/* A short row's numbers in full vectors. */
static inline int64_t FN(norm_full)(int64_t n) { return (n + VL - 1) / VL * VL; }

/* y = z, of one row. Its last vector may overlap the one before, and makes the same numbers twice. */
static ALWAYS_INLINE void FN(norm_row)(const T *x, int64_t n, FN(norm_line) line, const int kind, T *y)
{
#define Z(at)                                                                                          \
    {                                                                                                  \
        const V v = (*(const VU *)(x + (at)) - line.mean) * line.scale + line.shift;                   \
        *(VU *)(y + (at)) = FN(activate_vector)(v, kind, 0);                                           \
    }
    int64_t q = 0;
    for (; q + VL <= n; q += VL) Z(q)
    if (q < n) Z(n - VL)
#undef Z
}

static ALWAYS_INLINE void
FN(norm_kind)(const cnnx_norm *p, FN(norm_part) s, const FN(norm_line) *line, const int kind)
{
    FN(norm_room) room;
    int64_t images;
    for (int64_t n = s.n; n < s.end; n += images) {
        images = FN(norm_together)(p, s.end - n);
        for (int64_t c = 0; c < s.count; c++) {
            const T *from;
            T *to = (T *)p->y + (n * p->C + s.c + c) * p->area;
            const FN(norm_rows) b = FN(bring)(p, p->x, n, images, s.c + c, room, &from);
            if (p->area < VL) {
                FN(norm_row)(from, FN(norm_full)(b.width), line[c], kind, room + VL);
                FN(put_back)(p, room + VL, n, images, s.c + c);
            } else {
                for (int64_t r = 0; r < b.rows; r++)
                    FN(norm_row)(from + r * b.step, b.width, line[c], kind, to + r * b.step);
            }
        }
    }
}

static void FN(norm)(const void *problem, int64_t task, void *scratch)
{
    const cnnx_norm *p = problem;
    const FN(norm_part) s = FN(norm_part_of)(p, task);
    T mean[FN(NORM_CHANNELS)], var[FN(NORM_CHANNELS)], *means = (T *)p->mean + s.c, *vars = (T *)p->var + s.c;
    FN(norm_line) line[FN(NORM_CHANNELS)];
    if (p->batch_stats) {
        if (p->pieces == 1) FN(norm_sums)(problem, task, scratch);
        FN(norm_stats)(p, s, mean, var);
        for (int64_t c = 0; c < s.count && s.piece == 0; c++) {
            means[c] = mean[c];
            vars[c] = var[c];
        }
        if (!p->y) return;
    }
    for (int64_t c = 0; c < s.count; c++)
        line[c] = p->batch_stats ? FN(norm_line_of)(p, s.c + c, mean[c], var[c])
                                 : FN(norm_line_of)(p, s.c + c, means[c], vars[c]);
    switch (p->activation) {
    case CNNX_RELU: FN(norm_kind)(p, s, line, CNNX_RELU); return;
    case CNNX_RELU6: FN(norm_kind)(p, s, line, CNNX_RELU6); return;
    default: FN(norm_kind)(p, s, line, CNNX_NONE);
    }
}

static inline void FN(norm_lines)(const cnnx_norm *p, FN(norm_part) s, FN(norm_line) *line)
{
    for (int64_t c = s.c; c < s.c + s.count; c++)
        *line++ = FN(norm_line_of)(p, c, ((const T *)p->mean)[c], ((const T *)p->var)[c]);
}

/* A piece's sums of g, and of g*(x - mean), with g the gradient by z. */
static void FN(norm_backward_sums)(const void *problem, int64_t task, void *scratch)
{
    const cnnx_norm *p = problem;
    (void)scratch;
    const FN(norm_part) s = FN(norm_part_of)(p, task);
    double sums[2][FN(NORM_CHANNELS)], *to = FN(norm_place)(p, s.piece, s.c);
    FN(norm_line) line[FN(NORM_CHANNELS)];
    FN(norm_lines)(p, s, line);
#define SUMS(kind) FN(norm_pass)(p, s, INT64_MAX, p->x, p->grad, line, kind, sums)
    switch (p->activation) {
    case CNNX_RELU: SUMS(CNNX_RELU); break;
    case CNNX_RELU6: SUMS(CNNX_RELU6); break;
    default: SUMS(CNNX_NONE);
    }
#undef SUMS
    for (int64_t c = 0; c < s.count; c++) {
        to[c] = sums[0][c];
        to[p->C + c] = sums[1][c];
    }
}

/* grad_x = scale * (g - level - (x - mean) * slope), of one row, or scale * g: an infinity times a slope of 0
 * would be NaN. */
typedef struct {
    T scale, level, slope;
    int only_scale;
} FN(norm_gradient);

static ALWAYS_INLINE void
FN(norm_grad_row)(const T *x, const T *g, int64_t n, FN(norm_line) line, FN(norm_gradient) s,
                  const int kind, T *to)
{
#define GRAD(at)                                                                                       \
    {                                                                                                  \
        const V a = *(const VU *)(x + (at)), by_z = FN(by_z)(a, FN(at_once)(g + (at)), line, kind);    \
        const V rest = s.only_scale ? by_z : by_z - s.level - (a - line.mean) * s.slope;               \
        *(VU *)(to + (at)) = s.scale * rest;                                                           \
    }
    int64_t q = 0;
    for (; q + VL <= n; q += VL) GRAD(q)
    if (q < n) GRAD(n - VL)
#undef GRAD
}

static ALWAYS_INLINE void FN(norm_backward_kind)(const cnnx_norm *p, FN(norm_part) s, const FN(norm_line) *line,
                                                 const FN(norm_gradient) *by, const int kind)
{
    FN(norm_room) room_x, room_g;
    int64_t images;
    for (int64_t n = s.n; n < s.end; n += images) {
        images = FN(norm_together)(p, s.end - n);
        for (int64_t c = 0; c < s.count; c++) {
            const T *x, *g;
            T *to = (T *)p->y + (n * p->C + s.c + c) * p->area;
            FN(bring)(p, p->grad, n, images, s.c + c, room_g, &g);
            const FN(norm_rows) b = FN(bring)(p, p->x, n, images, s.c + c, room_x, &x);
            if (p->area < VL) {
                FN(norm_grad_row)(x, g, FN(norm_full)(b.width), line[c], by[c], kind, room_x + VL);
                FN(put_back)(p, room_x + VL, n, images, s.c + c);
            } else {
                for (int64_t r = 0, at = 0; r < b.rows; r++, at += b.step)
                    FN(norm_grad_row)(x + at, g + at, b.width, line[c], by[c], kind, to + at);
            }
        }
    }
}

/* Apart from its caller, whose sums need as much room: a thread's stack has 128 KiB with musl. */
static NOINLINE void FN(norm_backward_rows)(const cnnx_norm *p, FN(norm_part) s, const FN(norm_line) *line,
                                            const FN(norm_gradient) *by)
{
    switch (p->activation) {
    case CNNX_RELU: FN(norm_backward_kind)(p, s, line, by, CNNX_RELU); return;
    case CNNX_RELU6: FN(norm_backward_kind)(p, s, line, by, CNNX_RELU6); return;
    default: FN(norm_backward_kind)(p, s, line, by, CNNX_NONE);
    }
}

/* grad_x = scale * (g - [mean of g + (x - mean) * inverse^2 * mean of g*(x - mean)]), the bracket only
 * when mean and var came from the batch (Ioffe and Szegedy 2015, section 3). */
static void FN(norm_backward)(const void *problem, int64_t task, void *scratch)
{
    const cnnx_norm *p = problem;
    const FN(norm_part) s = FN(norm_part_of)(p, task);
    if (p->pieces == 1) FN(norm_backward_sums)(problem, task, scratch);
    FN(norm_line) line[FN(NORM_CHANNELS)];
    FN(norm_lines)(p, s, line);
    double total[FN(NORM_CHANNELS)], product[FN(NORM_CHANNELS)];
    for (int64_t c = 0; c < s.count; c++) total[c] = product[c] = 0;
    for (int64_t piece = 0; piece < p->pieces; piece++) {
        const double *sums = FN(norm_place)(p, piece, s.c);
        for (int64_t c = 0; c < s.count; c++) {
            total[c] += sums[c];
            product[c] += sums[p->C + c];
        }
    }
    const double count = (double)p->N * (double)p->area;
    FN(norm_gradient) by[FN(NORM_CHANNELS)];
    for (int64_t c = 0; c < s.count; c++) {
        const double inverse = 1 / sqrt((double)((const T *)p->var)[s.c + c] + p->eps);
        const double weight = p->weight ? (double)((const T *)p->weight)[s.c + c] : 1;
        by[c] = (FN(norm_gradient)){(T)(weight * inverse), 0, 0, !p->batch_stats};
        if (p->batch_stats) {
            by[c].level = (T)(total[c] / count);
            by[c].slope = (T)(product[c] * inverse * inverse / count);
        }
        if (s.piece) continue;
        ((T *)p->grad_bias)[s.c + c] = (T)total[c];
        ((T *)p->grad_weight)[s.c + c] = (T)(product[c] * inverse);
    }
    FN(norm_backward_rows)(p, s, line, by);
}
#undef STATISTICS
