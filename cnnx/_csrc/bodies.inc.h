/* The bodies for one type T, and their table. Included twice by isa.inc.h. */
#define FN(name) JOIN(name##_, TYPE, ISA)

#include "vector.inc.h"
#include "activate.inc.h"
#include "gemm.inc.h"
#include "pack.inc.h"
#include "conv.inc.h"
#if defined(BROADCAST)
#include "conv_broadcast.inc.h"
#endif
#include "conv_weight.inc.h"
#include "rows.inc.h"
#if defined(DEPTHWISE_TILES)
#include "depthwise_channels.inc.h"
#include "depthwise.inc.h"
#include "depthwise_grad.inc.h"
#endif
#include "direct.inc.h"
#include "conv_weight_lanes.inc.h"
#if defined(WINOGRAD)
#include "winograd_tiles.inc.h"
#include "winograd.inc.h"
#include "winograd_weight.inc.h"
#endif
#include "matmul.inc.h"
#include "pool.inc.h"
#include "pool_grad.inc.h"
#include "elementwise.inc.h"
#include "norm.inc.h"
#include "optim.inc.h"

const cnnx_kernels JOIN(cnnx_, TYPE, ISA) = {
    .isa = STRING(ISA),
    .mr = MR,
    .nr = NR,
    .kc = KC,
    .conv_plan = FN(conv_plan),
    .conv_weight_plan = FN(conv_weight_plan),
    .matmul_plan = FN(matmul_plan),
    .pool_plan = FN(pool_plan),
    .pool_grad_plan = FN(pool_grad_plan),
    .pack_weights = FN(pack_weights),
    .conv = FN(conv),
#if defined(WINOGRAD)
    .winograd_plan = FN(winograd_plan),
    .winograd_weights = FN(winograd_weights),
    .winograd = FN(winograd),
    .winograd_weight_plan = FN(winograd_weight_plan),
    .winograd_weight = FN(winograd_weight),
    .winograd_weight_sum = FN(winograd_weight_sum),
#endif
#if defined(DEPTHWISE_TILES)
    .depthwise_plan = FN(depthwise_plan),
    .depthwise = FN(depthwise),
    .depthwise_grad_plan = FN(depthwise_grad_plan),
    .depthwise_grad = FN(depthwise_grad),
    .depthwise_weight_plan = FN(depthwise_weight_plan),
    .depthwise_weight = FN(depthwise_weight),
#endif
#if defined(BROADCAST)
    .broadcast_plan = FN(broadcast_plan),
    .broadcast_weights = FN(broadcast_weights),
    .broadcast = FN(broadcast),
#endif
    .direct_plan = FN(direct_plan),
    .direct = FN(direct),
    .direct_weight_plan = FN(direct_weight_plan),
    .direct_weight = FN(direct_weight),
    .lanes_weight_plan = FN(lanes_weight_plan),
    .lanes_weight = FN(lanes_weight),
    .conv_weight = FN(conv_weight),
    .conv_weight_sum = FN(conv_weight_sum),
    .conv_bias = FN(conv_bias),
    .matmul = FN(matmul),
    .max_pool = FN(max_pool),
    .max_pool_backward = FN(max_pool_backward),
    .avg_pool = FN(avg_pool),
    .avg_pool_backward = FN(avg_pool_backward),
    .activation = FN(activation),
    .activation_backward = FN(activation_backward),
    .add = FN(add),
    .softmax = FN(softmax),
    .softmax_backward = FN(softmax_backward),
    .cross_entropy = FN(cross_entropy),
    .sgd = FN(sgd),
    .adam = FN(adam),
    .norm_plan = FN(norm_plan),
    .norm_sums = FN(norm_sums),
    .norm = FN(norm),
    .norm_backward_sums = FN(norm_backward_sums),
    .norm_backward = FN(norm_backward),
};

#undef LOW
#undef HIGH
#undef EVEN
#undef ODD
#undef LOW_WITHIN
#undef HIGH_WITHIN
#undef EVEN_PIECES
#undef ODD_PIECES
#undef LEFT
#undef RIGHT
#undef V
#undef VU
#undef FN
#undef SQRT1_2
#undef INV_SQRT_2PI
