/* How many threads a call can really have.
 *
 * GNU OpenMP ends the process where it cannot start a thread, be it for want of memory, of address space or of what
 * the system grants a user or a container. So before a thread's team grows, as many threads as it would need are
 * started and ended here, all alive at once and with stacks as large as OpenMP's; where one is refused, the team has
 * those that were granted.
 */
#ifndef CNNX_TEAM_H
#define CNNX_TEAM_H

#if defined(_OPENMP) && !defined(_WIN32)
#include <pthread.h>
#include <stdlib.h>

enum { CNNX_TEAM_MOST = 1024 }; /* of _threads.MOST */

static void *cnnx_pass(void *gate)
{
    pthread_mutex_lock(gate);
    pthread_mutex_unlock(gate);
    return NULL;
}

/* The bytes that OMP_STACKSIZE asks for, or by its older name GNU's, by itself in KiB, or with B, K, M or G; 0: as the
 * system has it. */
static size_t cnnx_stack(void)
{
    const char *text = getenv("OMP_STACKSIZE");
    char *unit = NULL;
    if (!text) text = getenv("GOMP_STACKSIZE");
    const unsigned long long number = text ? strtoull(text, &unit, 10) : 0;
    if (number == 0 || number >> 32) return 0;
    while (*unit == ' ') unit++;
    const char upper = (char)(*unit & ~32);
    return (size_t)number << (upper == 'B' ? 0 : upper == 'M' ? 20 : upper == 'G' ? 30 : 10);
}

/* At most `wanted`, at least 1. OpenMP keeps a team for each thread that calls it, as large as the last one. */
static int cnnx_team(int wanted)
{
    static _Thread_local int kept = 1;
    if (wanted > kept) {
        pthread_t started[CNNX_TEAM_MOST];
        pthread_mutex_t gate = PTHREAD_MUTEX_INITIALIZER;
        pthread_attr_t stack;
        int n = 0;
        pthread_attr_init(&stack);
        if (cnnx_stack()) pthread_attr_setstacksize(&stack, cnnx_stack()); /* too small a one is not taken */
        pthread_mutex_lock(&gate);
        while (kept + n < wanted && pthread_create(&started[n], &stack, cnnx_pass, &gate) == 0) n++;
        pthread_mutex_unlock(&gate);
        pthread_attr_destroy(&stack);
        wanted = kept + n;
        while (n > 0) pthread_join(started[--n], NULL);
    }
    return kept = wanted;
}
#else
static int cnnx_team(int wanted) { return wanted; }
#endif

#endif
