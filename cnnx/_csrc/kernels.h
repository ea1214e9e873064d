/* The kernel table: what one instruction set offers, and the contract of each entry.
 *
 * Every entry is single-threaded. An operation is a *problem* (a struct that says everything about
 * one call), cut into `tasks` that touch disjoint outputs; `_kernels.pyx` runs the tasks on threads.
 * A task gets its own scratch of `scratch` bytes, 64-byte aligned. What a task computes depends on
 * the problem alone, never on the number of threads: that is why the bits are equal for all of them.
 *
 * Sizes and strides count elements, not bytes. T is float or double, one table for each. Arrays are
 * C-contiguous and do not overlap, unless an entry says otherwise. Arguments have been checked.
 */
#ifndef CNNX_KERNELS_H
#define CNNX_KERNELS_H

#include <stddef.h>
#include <stdint.h>

enum cnnx_activation {
    CNNX_NONE, CNNX_RELU, CNNX_SIGMOID, CNNX_TANH, CNNX_LEAKY_RELU, CNNX_RELU6, CNNX_GELU, CNNX_SILU,
    CNNX_HARD_SWISH, CNNX_RELU1
};

/* Bytes of scratch that a task may take. A plan that would need more refuses, or takes the plain way: padding,
 * stride and dilation can make the copy of a few pixels larger than any memory. Plans compute such sizes in
 * double before any integer could overflow. */
enum { CNNX_SCRATCH = 64 << 20 };

/* How Winograd's tiles lie along one dimension of an image.
 *
 * Tile t takes part's `points` pixels begin + t/phases*tile*gap + t%phases + start + e*gap, and gives the
 * results t/phases*tile*phases + t%phases + j*phases, j < tile. A dilated kernel sees `phases` images that lie
 * interleaved; a stride is a gap alone. A kernel of more than 7 - tile taps, or of a stride, is cut into
 * parts, whose tap e is the kernel's tap + e*tap_step, zero outside it, and whose positions other than
 * low .. high-1 are zero. */
enum { CNNX_PARTS = 8, CNNX_TAPS = 128 }; /* parts along one dimension; 16 in all */
typedef struct {
    int64_t size, tap_step;        /* taps of the kernel, and from one to the next in a part */
    int64_t tile, points;          /* 1 and 1: this dimension is not transformed */
    int64_t phases, gap, begin, reach, tiles, parts;
    struct {
        int64_t start, tap, low, high;
    } part[CNNX_PARTS];
} cnnx_axis;

/* Convolution over taps, the one form that forward, input gradient and weight gradient share.
 *
 *   y[n, g*M + m, oy + i*ty, ox + j*tx] =
 *       act(bias[g*M + m] + sum over c < C, t < taps of
 *           w[g, m, c, t] * x[n, g*C + c, i*sh + dh[t], j*sw + dw[t]])
 *
 * for i < rows, j < cols; x is zero outside its H x W plane. The forward pass has one such problem.
 * The input gradient has one for each phase (row, column) modulo the stride, with x the output's
 * gradient, sh = sw = 1 and ty, tx the stride.
 *
 * w[g, m, c, t] is read at weight[g*w_group + m*w_out + c*w_in + w_tap[t]].
 * pixels means N*area, N*rows*cols or more, the flattened (n, i, j); depth means C*taps, the flattened (c, t). */
typedef struct {
    const void *x, *weight, *bias; /* bias may be NULL */
    void *y;
    void *packed;                  /* packed weights, see pack_weights */
    int64_t N, groups, M, C, H, W;
    int64_t rows, cols, sh, sw;
    int64_t YH, YW, oy, ox, ty, tx;
    int64_t taps;
    /* pairs: two phases of columns, tx = 2 apart, the even one with the taps below split. */
    int pairs;
    int64_t split;
    const int64_t *dh, *dw, *w_tap;
    int64_t w_group, w_out, w_in;
    int activation;
    /* set by conv_plan */
    int64_t pixels, depth, panels; /* panels of MR output channels in a group */
    int64_t block, blocks;         /* pixels a task, tasks along pixels */
    int64_t m_block, m_blocks;     /* panels a task, tasks along output channels */
    int waits;                     /* sums wait in scratch for another block of the depth */
    int halves;                    /* packed weights of the even columns come before those of the odd */
    int source;                    /* where a panel's pixels come from, one of the enum below */
    int64_t packed_size, tasks;
    size_t scratch;
    /* set by the plans of Winograd, where block counts tiles, block_rows by block_cols of them: rows and columns,
     * where parts find their taps, numbers of a
     * kernel, positions of a tile, parts of the kernel, elements of the copy of its rows.
     * m_step and c_step: panels and channels that are multiplied at a time; fused: their weights are
     * transformed then.
     * direct_plan has rows in a block, and the size of a plane and of its rows. depthwise_plan has the length of
     * a row that is read, the rows of a task, and the size of the masks as image_width, tile_rows and plane. */
    cnnx_axis axis[2];
    unsigned char place[256];
    int64_t span, points, parts, block_rows, block_cols, m_step, c_step;
    int64_t top, left, tile_rows;
    int fused;
    int stream;                    /* x and y exceed the last cache: y is stored past them */
    int64_t plane, image_width, image_size;
    int64_t phases_h, phases_w, extent_h;
    /* conv_plan: pixels are numbered in lines of `line` columns, `area` an image. Tiles that read copies straight away
     * count columns that do not exist, so that no vector is put together from two places. */
    int64_t line, area;
} cnnx_conv;

/* x itself, copies with their border, such copies read by the tiles without packing, implicit im2col */
enum { CNNX_PLANES, CNNX_WINDOWS, CNNX_STRAIGHT, CNNX_PATCHES };

/* Weight gradient of the convolution above, with the output's gradient in `y` (read only):
 *
 *   grad[g, m, c, t] = sum over n, i, j of y[n, g*M + m, i, j] * x[n, g*C + c, i*sh + dh[t], j*sw + dw[t]]
 *
 * grad is (groups, M, depth), contiguous. The sum over pixels is cut into `pieces`, a number that
 * depends on the shape alone; partial sums are added in the order of the pieces. */
typedef struct {
    cnnx_conv conv;                /* x, y and sizes; weight, bias and packed unused */
    void *grad;
    void *partial;                 /* pieces * groups*M*depth elements when pieces > 1, else NULL */
    /* set by the plans. conv_weight: chunks in a piece, and in all; the pixels of a chunk; where it finds its
     * numbers of x; rows and columns of the copy of an image's part, elements of it or of the patches. */
    int64_t pieces, piece, chunks; /* a piece of chunks: direct and depthwise have blocks of rows for chunks */
    int64_t chunk_images, chunk_rows, chunk_cols, window_rows, window_cols, x_size;
    int source, swapped;           /* swapped: x and y, C and M have changed places, grad is (groups, depth, M) */
    int64_t extent_h, extent_w, step_h, step_w; /* what the taps reach over, the stride in the copy */
    int64_t m_block, m_blocks, k_block, k_blocks;
    int64_t tasks;
    size_t scratch;
    /* winograd: elements of a plane, a piece being blocks of tiles; bytes of `partial`, its sums. */
    int64_t data_plane, grad_plane, sum_plane;
    size_t partial_size;
} cnnx_conv_weight;

/* out = act(a @ b + bias): a is (M, K), b is (K, N), out is (M, N) contiguous. Element (i, j) of a
 * lies at a[i*a_row + j*a_col], of b at b[i*b_row + j*b_col]; bias is (N,) or NULL. */
typedef struct {
    const void *a, *b, *bias;
    void *out;
    int64_t M, N, K, a_row, a_col, b_row, b_col;
    int activation;
    /* set by matmul_plan */
    int few;                       /* few rows: nothing is packed */
    int64_t m_block, m_blocks, n_block, n_blocks;
    int64_t tasks;
    size_t scratch;
} cnnx_matmul;

/* Pixel by pixel, vectors along rows, one window over the whole image, 2x2 windows side by side. */
enum { CNNX_PLAIN, CNNX_ROWS, CNNX_WHOLE, CNNX_PAIRS };

/* Pooling of `planes` images of H x W into rows x cols. Window (i, j) covers rows i*sh - top + k*dh for
 * k < kh, and columns likewise. Max pooling's backward knows no windows, only sizes and indices. */
typedef struct {
    const void *x;                 /* backward: the output's gradient */
    void *y;                       /* backward: the input's gradient */
    int64_t *indices;              /* flat in H*W; max pooling only, may be NULL in the forward */
    int64_t planes, H, W, rows, cols, kh, kw, sh, sw, dh, dw;
    int64_t top, bottom, left, right;
    int count_include_pad;
    int64_t *bad;                  /* max backward: for each plane, -1 or the first bad index */
    /* set by the plans: rows of windows a task, tasks along rows, planes a task, tasks along planes; sizes of
     * the scratch */
    int64_t block, blocks, m_block, m_blocks;
    int64_t reach, table_rows, image_size, mask_size, tasks;
    size_t scratch;
    int way;
} cnnx_pool;

/* Elementwise work on n values, in tasks of CNNX_CHUNK. */
typedef struct {
    const void *x, *other;         /* other: add's second operand; backward: the output's gradient */
    void *y;
    int64_t n;
    int kind, from_output;
    double alpha;
} cnnx_elementwise;
enum { CNNX_CHUNK = 8192 };

/* One step of an optimizer on n parameters, in tasks of CNNX_CHUNK; in place. Not all apply to each. */
typedef struct {
    void *param, *velocity, *mean, *square;
    const void *grad;
    int64_t n;
    double lr, decay, momentum, beta1, beta2, eps;
    double shrink;                 /* adam: what param is multiplied with first, AdamW's decay */
    double root;                   /* adam: what sqrt(square) is divided by, its correction of bias */
    int nesterov;
} cnnx_optim;

/* Softmax of each of `rows` rows of `classes`; a task is one row. Backward: x is the forward's output.
 * cross_entropy: loss[row] = - sum over k of t[k] * log_softmax(x)[k] with t = (1 - smoothing) * (1 for the
 * row's label, or without labels grad[row, k]) + smoothing / classes; y is the gradient of the mean of `loss`. */
typedef struct {
    const void *x, *grad;
    void *y;
    int64_t rows, classes;
    int log;
    const int64_t *labels;         /* checked */
    double *loss, smoothing;
} cnnx_softmax;

/* Batch normalisation over (N, C, H*W). Pointers that do not apply are NULL.
 * norm: y = act((x - mean) / sqrt(var + eps) * weight + bias); batch_stats: mean and var are filled first, from
 * what norm_sums left of each piece. Without y that is all.
 * norm_backward, after norm_backward_sums: batch_stats says that mean and var came from x; grad is y's gradient.
 * Where there is one piece, norm and norm_backward make the sums themselves.
 * The activation is relu, relu6 or none. */
typedef struct {
    const void *x, *grad, *weight, *bias;
    void *mean, *var, *y, *grad_weight, *grad_bias;
    int64_t N, C, area;
    double eps;
    int batch_stats, activation;
    double *sums;                  /* 2 * pieces * C */
    /* set by norm_plan: the batch is cut into pieces of `images`, a task is `channels` of one of them */
    int64_t images, pieces, channels, blocks, tasks;
} cnnx_norm;
enum { CNNX_COLUMNS = 64 };

typedef void (*cnnx_task)(const void *problem, int64_t task, void *scratch);

/* watch.h. Whether the call is to end: a task that may take longer than some milliseconds asks now and then, and
 * returns, whatever its output then is. It takes 30 ns, on Python's main thread. */
int cnnx_stop(void);

typedef struct {
    const char *isa;
    int mr, nr, kc;
    /* Fill the derived fields of a problem. `threads` steers how finely it is cut, never the bits. */
    void (*conv_plan)(cnnx_conv *, int threads);
    void (*conv_weight_plan)(cnnx_conv_weight *);
    void (*matmul_plan)(cnnx_matmul *, int threads);
    void (*pool_plan)(cnnx_pool *, int max);
    void (*pool_grad_plan)(cnnx_pool *, int max);
    /* task < groups*panels: packed[g][panel][k][i] = w[g, panel*MR + i, k], zero for rows past M. */
    cnnx_task pack_weights;
    cnnx_task conv;
    /* The same by Winograd's algorithm. NULL in a table without it; the plan returns 0 where it refuses the
     * problem, or would be slower and is not `forced`. winograd_weights runs in place of pack_weights, unless
     * packed_size is 0. */
    int (*winograd_plan)(cnnx_conv *, int threads, int forced);
    cnnx_task winograd_weights, winograd;
    /* Its weight gradient, and the sum of its pieces. */
    int (*winograd_weight_plan)(cnnx_conv_weight *, int forced);
    cnnx_task winograd_weight, winograd_weight_sum;
    /* Depthwise by square kernels, nothing packed; the plans return 0 where the problem is another. */
    int (*depthwise_plan)(cnnx_conv *);
    cnnx_task depthwise;
    /* The input gradient of stride 2, all phases at once: the forward's problem, with x its output's gradient
     * and y its input's. */
    int (*depthwise_grad_plan)(cnnx_conv *);
    cnnx_task depthwise_grad;
    int (*depthwise_weight_plan)(cnnx_conv_weight *);
    cnnx_task depthwise_weight;
    /* Forward with output channels in the lanes. NULL in a table without it; the plan returns 0 where the problem is
     * another. broadcast_weights runs in place of pack_weights. */
    int (*broadcast_plan)(cnnx_conv *, int threads);
    cnnx_task broadcast_weights, broadcast;
    /* The same without packing pixels; 0 where no tap exists. */
    int (*direct_plan)(cnnx_conv *);
    cnnx_task direct;
    int (*direct_weight_plan)(cnnx_conv_weight *);
    cnnx_task direct_weight;
    int (*lanes_weight_plan)(cnnx_conv_weight *, int always); /* 0 where the other is faster, unless always */
    cnnx_task lanes_weight;
    cnnx_task conv_weight;
    /* task < M*groups: adds the pieces of one row of grad. Only when pieces > 1. */
    cnnx_task conv_weight_sum;
    /* conv_bias: y[c] = sum over n, p of grad[n, c, p] (cnnx_norm with grad, y, N, C, area); a task is one
     * channel, and CNNX_COLUMNS of them where the area is 1. */
    cnnx_task conv_bias;
    cnnx_task matmul;
    cnnx_task max_pool, max_pool_backward, avg_pool, avg_pool_backward;
    cnnx_task activation, activation_backward;
    cnnx_task add;                 /* y = x + other, or relu of it */
    cnnx_task softmax, softmax_backward, cross_entropy;
    cnnx_task sgd, adam;
    void (*norm_plan)(cnnx_norm *);
    cnnx_task norm_sums, norm, norm_backward_sums, norm_backward;
} cnnx_kernels;

/* dispatch.c. `dtype` is 0 for float, 1 for double. */
int cnnx_isa_count(void);                   /* instruction sets this build has */
const char *cnnx_isa_name(int i);           /* from the plainest to the widest */
int cnnx_isa_supported(int i);              /* the CPU has it and the system saves its registers */
const cnnx_kernels *cnnx_isa_kernels(int i, int dtype);

/* pool.c: recycled, 64-byte aligned memory. Safe from any thread. */
typedef struct {
    size_t in_use, cached, peak, limit;
    uint64_t hits, misses;
} cnnx_pool_stats;
void *cnnx_take(size_t bytes);              /* NULL when out of memory */
void cnnx_give(void *block);                /* NULL is allowed */
void cnnx_pool_empty(void);                 /* return what is cached to the system */
cnnx_pool_stats cnnx_pool_read(void);

#endif
