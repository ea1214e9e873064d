/* Steps of the optimizers: one pass over a parameter, its gradient and what is remembered of it.
 *
 * The formulas are those of cnnx/optim.py. Plain loops, which the compiler turns into vectors.
 */

static inline int64_t FN(optim_some)(const cnnx_optim *p, int64_t task)
{
    return p->n - task * CNNX_CHUNK < CNNX_CHUNK ? p->n - task * CNNX_CHUNK : CNNX_CHUNK;
}

/* Without decay an infinite parameter does not spoil its gradient. */
#define DECAYED(value) (decay != 0 ? grad[i] + decay * (value) : grad[i])

static void FN(sgd)(const void *problem, int64_t task, void *scratch)
{
    const cnnx_optim *p = problem;
    (void)scratch;
    const int64_t n = FN(optim_some)(p, task), at = task * CNNX_CHUNK;
    const T lr = (T)p->lr, decay = (T)p->decay, momentum = (T)p->momentum;
    const T *restrict grad = (const T *)p->grad + at;
    T *restrict param = (T *)p->param + at;
    if (!p->velocity) {
        for (int64_t i = 0; i < n; i++) param[i] -= lr * DECAYED(param[i]);
        return;
    }
    T *restrict velocity = (T *)p->velocity + at;
    const int nesterov = p->nesterov;
    for (int64_t i = 0; i < n; i++) {
        const T g = DECAYED(param[i]), v = momentum * velocity[i] + g;
        velocity[i] = v;
        param[i] -= lr * (nesterov ? g + momentum * v : v);
    }
}

static void FN(adam)(const void *problem, int64_t task, void *scratch)
{
    const cnnx_optim *p = problem;
    (void)scratch;
    const int64_t n = FN(optim_some)(p, task), at = task * CNNX_CHUNK;
    const T lr = (T)p->lr, decay = (T)p->decay, shrink = (T)p->shrink, eps = (T)p->eps;
    const T new1 = (T)(1 - p->beta1), beta2 = (T)p->beta2, new2 = (T)(1 - p->beta2), root = (T)(1 / p->root);
    const T *restrict grad = (const T *)p->grad + at;
    T *restrict param = (T *)p->param + at;
    T *restrict mean = (T *)p->mean + at, *restrict square = (T *)p->square + at;
    for (int64_t i = 0; i < n; i++) {
        const T shrunk = param[i] * shrink, g = DECAYED(shrunk);
        const T m = mean[i] + new1 * (g - mean[i]), s = beta2 * square[i] + new2 * (g * g);
        mean[i] = m;
        square[i] = s;
        param[i] = shrunk - lr * (m / (SQRT(s) * root + eps));
    }
}
#undef DECAYED
