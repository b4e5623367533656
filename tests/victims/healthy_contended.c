/* Heavily contended and healthy: eight threads that are always in each other's way and always get on.
 *
 *   healthy_contended mutex      three mutexes, always taken in the same order, tiny critical sections
 *   healthy_contended timed      one mutex taken with pthread_mutex_timedlock (2 ms), tried again on ETIMEDOUT
 *   healthy_contended rwlock     six readers, two writers
 *
 * Truth: "rounds" done when it was told.
 */
#include "victim.h"

static pthread_mutex_t lock[3] = {PTHREAD_MUTEX_INITIALIZER, PTHREAD_MUTEX_INITIALIZER, PTHREAD_MUTEX_INITIALIZER};
static pthread_rwlock_t table = PTHREAD_RWLOCK_INITIALIZER;
static volatile unsigned long rounds, timeouts;
static volatile unsigned sink;
static const char *mode;

static NOINLINE void work(int n) {
    for (int i = 0; i < n; i++) sink += (unsigned)i;
}

static void *worker(void *arg) {
    int me = (int)(intptr_t)arg;
    prctl(PR_SET_NAME, "worker");
    for (;;) {
        if (is_mode(mode, "mutex")) {
            for (int i = 0; i < 3; i++) PCHECK(pthread_mutex_lock(&lock[i]));
            work(200);
            for (int i = 2; i >= 0; i--) PCHECK(pthread_mutex_unlock(&lock[i]));
        } else if (is_mode(mode, "timed")) {
            struct timespec until;
            clock_gettime(CLOCK_REALTIME, &until);
            until.tv_nsec += 2000000;
            if (until.tv_nsec >= 1000000000) { until.tv_nsec -= 1000000000; until.tv_sec++; }
            int e = pthread_mutex_timedlock(&lock[0], &until);
            if (e == ETIMEDOUT) { timeouts++; continue; }
            PCHECK(e);
            work(200);
            PCHECK(pthread_mutex_unlock(&lock[0]));
        } else {
            PCHECK(me < 6 ? pthread_rwlock_rdlock(&table) : pthread_rwlock_wrlock(&table));
            work(200);
            PCHECK(pthread_rwlock_unlock(&table));
        }
        rounds++;
        /* Off the lock for a while, so that everybody gets a turn and the machine is not eaten whole. */
        work(200);
        if (rounds % 64 == 0) { struct timespec us = {0, 200000}; nanosleep(&us, NULL); }
    }
    return NULL;
}

int main(int argc, char **argv) {
    mode = argc == 2 ? argv[1] : "";
    victim_init();
    if (!is_mode(mode, "mutex") && !is_mode(mode, "timed") && !is_mode(mode, "rwlock")) die("usage: healthy_contended mutex|timed|rwlock");
    for (int i = 0; i < 8; i++) start_thread(worker, (void *)(intptr_t)i);
    while (rounds < 1000) breathe();
    print_truth(getpid(), mode, ",\"rounds\":%lu", rounds);
    stay();
}
