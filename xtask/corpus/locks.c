/* A random lock program that logs its own truth, for `cargo xtask corpus locks`; the C and C++ half of locks.rs, which says more.
 *
 *   locks SEED normal|recursive|errorcheck|robust|rwlock|std-mutex|shared-mutex [healthy]
 *
 * As C: pthread locks of glibc or musl. As C++: those of its library, too. `healthy`: all threads take the locks in one order.
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <errno.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>
#ifdef __cplusplus
#include <mutex>
#include <shared_mutex>
#endif

#define THREADS 8
#define DEPTH 3
#define NOINLINE __attribute__((noinline))

struct seat {
    volatile uint64_t tid, waits, holds[DEPTH], moves;
};
static struct seat seats[THREADS];

typedef union {
    pthread_mutex_t mutex;
    pthread_rwlock_t rwlock;
    char space[sizeof(pthread_rwlock_t) + 64];
} lock_t;

static enum { PTHREAD, RWLOCK, STD_MUTEX, SHARED_MUTEX } family;
static lock_t *locks;
static int lock_count;
static bool healthy;

struct random {
    uint64_t state;
};

static uint64_t next(struct random *r, uint64_t below) {
    r->state ^= r->state << 13;
    r->state ^= r->state >> 7;
    r->state ^= r->state << 17;
    return (r->state >> 11) % below;
}

static void must(int error) {
    if (error) {
        fprintf(stderr, "locks: %s\n", strerror(error));
        _exit(3);
    }
}

static void init(lock_t *lock, int type, bool robust) {
    pthread_mutexattr_t a;
    must(pthread_mutexattr_init(&a));
    must(pthread_mutexattr_settype(&a, type));
    if (robust) must(pthread_mutexattr_setrobust(&a, PTHREAD_MUTEX_ROBUST));
    switch (family) {
    case PTHREAD: must(pthread_mutex_init(&lock->mutex, &a)); break;
    case RWLOCK: must(pthread_rwlock_init(&lock->rwlock, NULL)); break;
#ifdef __cplusplus
    case STD_MUTEX: new (lock) std::mutex; break;
    case SHARED_MUTEX: new (lock) std::shared_mutex; break;
#endif
    default: must(EINVAL);
    }
}

static inline void take(lock_t *lock) {
    switch (family) {
    case PTHREAD: must(pthread_mutex_lock(&lock->mutex)); break;
    case RWLOCK: must(pthread_rwlock_wrlock(&lock->rwlock)); break;
#ifdef __cplusplus
    case STD_MUTEX: ((std::mutex *)lock)->lock(); break;
    case SHARED_MUTEX: ((std::shared_mutex *)lock)->lock(); break;
#endif
    default: must(EINVAL);
    }
}

static inline void drop(lock_t *lock) {
    switch (family) {
    case PTHREAD: must(pthread_mutex_unlock(&lock->mutex)); break;
    case RWLOCK: must(pthread_rwlock_unlock(&lock->rwlock)); break;
#ifdef __cplusplus
    case STD_MUTEX: ((std::mutex *)lock)->unlock(); break;
    case SHARED_MUTEX: ((std::shared_mutex *)lock)->unlock(); break;
#endif
    default: must(EINVAL);
    }
}

static void locked(struct seat *seat, lock_t *lock, int depth) {
    seat->waits = (uint64_t)(uintptr_t)lock;
    take(lock);
    seat->holds[depth] = (uint64_t)(uintptr_t)lock;
    seat->waits = 0;
    seat->moves++;
}

static void work(struct seat *seat, uint64_t micros, bool for_ever) {
    if (for_ever) for (;;) sleep(3600);
    usleep((useconds_t)micros);
    for (int i = 0; i < DEPTH; i++) seat->holds[i] = 0;
}

/* Each lock in a function of its own. */
static NOINLINE int nested(struct seat *seat, const int *order, int left, int depth, uint64_t micros, bool for_ever) {
    if (!left) {
        work(seat, micros, for_ever);
        return 1;
    }
    locked(seat, &locks[*order], depth);
    usleep((useconds_t)micros);
    int sum = nested(seat, order + 1, left - 1, depth + 1, micros, for_ever) + depth;
    drop(&locks[*order]);
    return sum;
}

/* All locks in one function. */
static NOINLINE void flat(struct seat *seat, const int *order, int count, uint64_t micros, bool for_ever) {
    locked(seat, &locks[order[0]], 0);
    usleep((useconds_t)micros);
    locked(seat, &locks[order[1]], 1);
    usleep((useconds_t)micros);
    if (count > 2) locked(seat, &locks[order[2]], 2);
    work(seat, micros, for_ever);
    if (count > 2) drop(&locks[order[2]]);
    drop(&locks[order[1]]);
    drop(&locks[order[0]]);
}

/* References to all of them on the stack from the start. */
static NOINLINE void collected(struct seat *seat, const int *order, int count, uint64_t micros, bool for_ever) {
    lock_t *volatile wanted[DEPTH] = {NULL, NULL, NULL};
    for (int i = 0; i < count; i++) wanted[i] = &locks[order[i]];
    for (int i = 0; i < count; i++) {
        locked(seat, wanted[i], i);
        usleep((useconds_t)micros);
    }
    work(seat, micros, for_ever);
    for (int i = 0; i < count; i++) drop(wanted[i]);
}

struct start {
    struct random random;
    int number;
};

static int ascending(const void *a, const void *b) { return *(const int *)a - *(const int *)b; }

static void *live(void *arg) {
    struct start *start = (struct start *)arg;
    struct random random = start->random;
    struct seat *seat = &seats[start->number];
    seat->tid = (uint64_t)syscall(SYS_gettid);
    int order[8];
    for (int i = 0; i < lock_count; i++) order[i] = i;
    for (int i = lock_count - 1; i > 0; i--) {
        int other = (int)next(&random, (uint64_t)i + 1), here = order[i];
        order[i] = order[other];
        order[other] = here;
    }
    int count = 2 + (int)next(&random, 2);
    if (count > lock_count) count = lock_count;
    if (healthy) qsort(order, (size_t)count, sizeof order[0], ascending);
    uint64_t shape = next(&random, 3);
    uint64_t rounds_left = next(&random, 4) == 0 && !healthy ? 1 + next(&random, 50) : UINT64_MAX;
    for (;;) {
        rounds_left--;
        uint64_t micros = 100 + next(&random, 3000);
        bool for_ever = rounds_left == 0;
        if (shape == 0) nested(seat, order, count, 0, micros, for_ever);
        else if (shape == 1) flat(seat, order, count, micros, for_ever);
        else collected(seat, order, count, micros, for_ever);
        usleep((useconds_t)next(&random, 2000));
    }
    return NULL;
}

int main(int argc, char **argv) {
    if (argc < 3) return 2;
    struct random random = {strtoull(argv[1], NULL, 10) * 0x9e3779b97f4a7c15ull | 1};
    for (int i = 0; i < 8; i++) next(&random, 2);
    const char *kind = argv[2];
    healthy = argc > 3 && !strcmp(argv[3], "healthy");
    int type = PTHREAD_MUTEX_NORMAL;
    if (!strcmp(kind, "recursive")) type = PTHREAD_MUTEX_RECURSIVE;
    else if (!strcmp(kind, "errorcheck")) type = PTHREAD_MUTEX_ERRORCHECK;
    else if (!strcmp(kind, "rwlock")) family = RWLOCK;
    else if (!strcmp(kind, "std-mutex")) family = STD_MUTEX;
    else if (!strcmp(kind, "shared-mutex")) family = SHARED_MUTEX;
    else if (strcmp(kind, "normal") && strcmp(kind, "robust")) return 2;
    int threads = 2 + (int)next(&random, THREADS - 1);
    lock_count = 2 + (int)next(&random, 5);
    locks = (lock_t *)calloc((size_t)lock_count, sizeof *locks);
    for (int i = 0; i < lock_count; i++) init(&locks[i], type, !strcmp(kind, "robust"));
    static struct start starts[THREADS];
    for (int i = 0; i < threads; i++) {
        starts[i].random.state = next(&random, UINT64_MAX - 1) + 1;
        starts[i].number = i;
        pthread_t thread;
        must(pthread_create(&thread, NULL, live, &starts[i]));
    }
    usleep(1500000);
    uint64_t before[THREADS];
    for (int i = 0; i < threads; i++) before[i] = seats[i].moves;
    usleep(500000);
    printf("{\"ready\":true,\"threads\":%d,\"seats\":[", threads);
    bool first = true;
    for (int i = 0; i < threads; i++) {
        if (seats[i].moves != before[i]) continue;
        printf("%s{\"tid\":%llu,\"waits\":%llu,\"holds\":[", first ? "" : ",", (unsigned long long)seats[i].tid,
               (unsigned long long)seats[i].waits);
        bool none = true;
        for (int d = 0; d < DEPTH; d++) {
            if (!seats[i].holds[d]) continue;
            printf("%s%llu", none ? "" : ",", (unsigned long long)seats[i].holds[d]);
            none = false;
        }
        printf("]}");
        first = false;
    }
    printf("]}\n");
    fflush(stdout);
    char c;
    while (read(0, &c, 1) > 0) continue;
    _exit(0);
}
