/* Threads that take, write and give recycled memory at once, for ThreadSanitizer: tools/sanitize.sh builds it.
 *
 * Under Python's lock they never would. Each block must be its thread's alone from take to give, and what is counted
 * must come out even.
 */
#include "../cnnx/_csrc/kernels.h"

#include <pthread.h>
#include <stdio.h>

enum { THREADS = 6, ROUNDS = 3000, ALIVE = 5 };

static void *work(void *number)
{
    const int mine = *(const int *)number;
    int *alive[ALIVE] = {0};
    for (int round = 0; round < ROUNDS; round++) {
        int **block = &alive[round % ALIVE];
        if (*block && **block != 1000 * mine + round - ALIVE) return "a block was written by another thread";
        cnnx_give(*block);
        *block = cnnx_take(64 << (round * (mine + 7)) % 12);
        if (!*block) return "no memory";
        **block = 1000 * mine + round;
        if (round % 500 == mine) cnnx_pool_empty();
        if (round % 100 == mine && cnnx_pool_read().in_use == 0) return "miscounted";
    }
    for (int i = 0; i < ALIVE; i++) cnnx_give(alive[i]);
    return NULL;
}

int main(void)
{
    pthread_t threads[THREADS];
    int numbers[THREADS], failed = 0;
    for (int i = 0; i < THREADS; i++) {
        numbers[i] = i;
        pthread_create(&threads[i], NULL, work, &numbers[i]);
    }
    for (int i = 0; i < THREADS; i++) {
        void *message;
        pthread_join(threads[i], &message);
        if (message) failed = puts(message) != 0;
    }
    if (cnnx_pool_read().in_use) failed = puts("memory was kept");
    return failed != 0;
}
