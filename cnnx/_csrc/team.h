/* How many threads a call can really have.
 *
 * GNU OpenMP ends the process where it cannot start a thread, be it for want of memory, of address space or of what
 * the system grants a user or a container. So before a thread's team grows, as many threads as it would need are
 * started and ended here, all alive at once; where one is refused, the team has those that were granted. Their stacks
 * stay in the C library's cache, where OpenMP's threads find them.
 */
#ifndef CNNX_TEAM_H
#define CNNX_TEAM_H

#if defined(_OPENMP) && !defined(_WIN32)
#include <pthread.h>

enum { CNNX_TEAM_MOST = 1024 }; /* of _threads.MOST */

static void *cnnx_pass(void *gate)
{
    pthread_mutex_lock(gate);
    pthread_mutex_unlock(gate);
    return NULL;
}

/* At most `wanted`, at least 1. OpenMP keeps a team for each thread that calls it, as large as the last one. */
static int cnnx_team(int wanted)
{
    static _Thread_local int kept = 1;
    if (wanted > kept) {
        pthread_t started[CNNX_TEAM_MOST];
        pthread_mutex_t gate = PTHREAD_MUTEX_INITIALIZER;
        int n = 0;
        pthread_mutex_lock(&gate);
        while (kept + n < wanted && pthread_create(&started[n], NULL, cnnx_pass, &gate) == 0) n++;
        pthread_mutex_unlock(&gate);
        wanted = kept + n;
        while (n > 0) pthread_join(started[--n], NULL);
    }
    return kept = wanted;
}
#else
static int cnnx_team(int wanted) { return wanted; }
#endif

#endif
