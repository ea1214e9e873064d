/* A long call looks for signals: Ctrl-C must not wait until the last task is done.
 *
 * Python hands signals to its main thread only, and only when that thread asks. The thread that computes asks
 * between two tasks, five times a second: for this it waits for the interpreter, which another Python thread
 * may keep for 5 ms. What a handler raises ends the call; its output is then worth nothing.
 */
#ifndef CNNX_WATCH_H
#define CNNX_WATCH_H

#include <Python.h>
#include <stdint.h>
#include <time.h>

typedef struct {
    int on, stopped;
    int64_t step;       /* tasks from one look at the clock to the next */
    double read, asked; /* when it was last read, and when Python was last asked */
} cnnx_watch;

/* How many tasks may run before the next look. 0: the call must end, for the exception that is set then. */
static int64_t cnnx_look(cnnx_watch *w)
{
    if (!w->on) return INT64_MAX;
    struct timespec t;
    timespec_get(&t, TIME_UTC);
    const double now = (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
    if (w->step == 0 || now < w->asked) w->asked = now; /* the first look, or the clock was set back */
    /* A task may take 50 ns or 50 ms: the step doubles while it takes less than a millisecond. */
    w->step = w->step > 0 && now - w->read < 1e-3 ? 2 * w->step : 1;
    w->read = now;
    if (now - w->asked < 0.2) return w->step;
    w->asked = now;
    const PyGILState_STATE state = PyGILState_Ensure();
    w->stopped = PyErr_CheckSignals() != 0; /* the exception waits in the thread's state */
    PyGILState_Release(state);
    return w->stopped ? 0 : w->step;
}

#endif
