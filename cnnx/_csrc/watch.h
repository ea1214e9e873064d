/* A long call looks for signals: Ctrl-C must not wait until the last task is done.
 *
 * Python hands signals to its main thread only, and only when that thread asks. The thread that computes asks
 * five times a second, between two tasks and, by cnnx_stop, within those that may be long: for this it waits for the
 * interpreter, which another Python thread may keep for 5 ms. What a handler raises ends the call, on all its
 * threads; its output is then worth nothing.
 */
#ifndef CNNX_WATCH_H
#define CNNX_WATCH_H

#include <Python.h>
#include <stdint.h>
#include <time.h>

#include "flush.h"
#include "kernels.h"

#if defined(_MSC_VER) && !defined(__clang__)
#define CNNX_OWN __declspec(thread)
#else
#define CNNX_OWN _Thread_local
#endif

typedef struct {
    int on;               /* whether the thread of the call is the one that may ask */
    int exact;            /* whether the smallest numbers are not flushed: comparisons and moves cost no more by them */
    volatile int stopped; /* read by all threads of the call */
    int64_t step;         /* tasks from one look at the clock to the next */
    double read, asked;   /* when it was last read, and when Python was last asked */
} cnnx_watch;

/* The call that a thread works for, whether it is that call's own, and the mode its CPU had before. */
typedef struct {
    cnnx_watch *watch;
    int asks;
    cnnx_mode mode;
} cnnx_watching;
static CNNX_OWN cnnx_watching cnnx_here;

/* Work for a call; the answer is for cnnx_leave, for a signal's handler may call in the middle of a call. */
static cnnx_watching cnnx_enter(cnnx_watch *w, int own)
{
    const cnnx_watching before = cnnx_here;
    cnnx_here = (cnnx_watching){w, own && w->on, w->exact ? cnnx_get_mode() : cnnx_flush()};
    return before;
}

static void cnnx_leave(cnnx_watching before)
{
    cnnx_set_mode(cnnx_here.mode);
    cnnx_here = before;
}

static double cnnx_now(void)
{
    struct timespec t;
    timespec_get(&t, TIME_UTC);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* Whether the call must end, for the exception that is set then. */
static int cnnx_ask(cnnx_watch *w, double now)
{
    if (w->asked == 0 || now < w->asked) w->asked = now; /* the first look, or the clock was set back */
    if (now - w->asked < 0.2) return 0;
    w->asked = now;
    const cnnx_mode mode = cnnx_get_mode();
    cnnx_set_mode(cnnx_here.mode); /* a handler computes in the caller's */
    const PyGILState_STATE state = PyGILState_Ensure();
    w->stopped = PyErr_CheckSignals() != 0; /* the exception waits in the thread's state */
    PyGILState_Release(state);
    cnnx_set_mode(mode);
    return w->stopped;
}

/* How many tasks may run before the next look. 0: the call must end. */
static int64_t cnnx_look(cnnx_watch *w)
{
    if (w->stopped) return 0;
    if (!w->on) return INT64_MAX;
    const double now = cnnx_now();
    /* A task may take 50 ns or 50 ms: the step doubles while it takes less than a millisecond. */
    w->step = w->step > 0 && now - w->read < 1e-3 ? 2 * w->step : 1;
    w->read = now;
    return cnnx_ask(w, now) ? 0 : w->step;
}

int cnnx_stop(void)
{
    cnnx_watch *w = cnnx_here.watch;
    if (!w || w->stopped) return w != NULL;
    return cnnx_here.asks && cnnx_ask(w, cnnx_now());
}

#endif
