/* Healthy programs of C whose futex words change all the time while somebody sleeps on them.
 *
 *   healthy_wakeups condvar      16 sleepers, one of them is signalled ten times a second
 *   healthy_wakeups leftover     two sleepers, one was signalled
 *   healthy_wakeups barrier      rounds of eight, ten a second
 *   healthy_wakeups semaphore    a pool: 16 threads take tokens that come back ten times a second
 */
#include "victim.h"
#include <semaphore.h>

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t cond = PTHREAD_COND_INITIALIZER;
static pthread_barrier_t barrier;
static sem_t semaphore;
static int tokens;

static void tick(void) { (void)poll(NULL, 0, 100); }

static void *sleeper(void *once) {
    do {
        PCHECK(pthread_mutex_lock(&lock));
        while (tokens == 0) PCHECK(pthread_cond_wait(&cond, &lock));
        tokens--;
        PCHECK(pthread_mutex_unlock(&lock));
    } while (!once);
    return NULL;
}

static void signal_one(void) {
    PCHECK(pthread_mutex_lock(&lock));
    tokens++;
    PCHECK(pthread_mutex_unlock(&lock));
    PCHECK(pthread_cond_signal(&cond));
}

static void *signaller(void *arg) {
    for (;;) { tick(); signal_one(); }
    return arg;
}

static void *walker(void *first) {
    for (;;) {
        if (first) tick();
        pthread_barrier_wait(&barrier);
    }
    return NULL;
}

static void *taker(void *arg) {
    for (;;) CHECK(sem_wait(&semaphore));
    return arg;
}

static void *poster(void *arg) {
    for (;;) { tick(); CHECK(sem_post(&semaphore)); }
    return arg;
}

int main(int argc, char **argv) {
    const char *mode = argc == 2 ? argv[1] : "";
    victim_init();
    if (is_mode(mode, "condvar")) {
        for (int i = 0; i < 16; i++) start_thread(sleeper, NULL);
        start_thread(signaller, NULL);
    } else if (is_mode(mode, "leftover")) {
        for (int i = 0; i < 2; i++) start_thread(sleeper, (void *)1);
        tick();
        signal_one();
    } else if (is_mode(mode, "barrier")) {
        PCHECK(pthread_barrier_init(&barrier, NULL, 8));
        for (int i = 0; i < 8; i++) start_thread(walker, i == 0 ? (void *)1 : NULL);
    } else if (is_mode(mode, "semaphore")) {
        CHECK(sem_init(&semaphore, 0, 2));
        for (int i = 0; i < 16; i++) start_thread(taker, NULL);
        start_thread(poster, NULL);
    } else {
        die("unknown mode %s", mode);
    }
    print_truth(getpid(), mode, "");
    stay();
}
