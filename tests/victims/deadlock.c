/* The bundled demonstration: threads that lock each other out.
 *
 * Shows: a cycle of N threads and N mutexes taken in opposite order (payments holds payments_lock and wants
 * ledger_lock, ledger holds ledger_lock and wants payments_lock), or one thread that locks its own lock again.
 *
 *   deadlock [--threads 2..5] [--kind normal|errorcheck|recursive|adaptive|timed|clock|pi|robust] [--self]
 *            [--after MS | --on-stdin]
 *
 * --after and --on-stdin: all threads hold their first lock and are healthy; the hang forms MS later, or when a
 * line arrives on stdin.
 *
 * Priority inheritance: the kernel refuses the last FUTEX_LOCK_PI of a cycle (EDEADLK) and glibc parks that
 * thread for ever on a word of its own stack (nptl/pthread_mutex_lock.c, "Delay the thread indefinitely"). Its
 * truth has no waits_for, "parked": true says so at the top level.
 */
#include "victim.h"

#ifndef __GLIBC__ /* musl has no such call; --kind clock is for glibc */
#define pthread_mutex_clocklock(lock, clock, until) pthread_mutex_timedlock(lock, until)
#define PTHREAD_MUTEX_ADAPTIVE_NP PTHREAD_MUTEX_NORMAL
#define PTHREAD_MUTEX_TIMED_NP PTHREAD_MUTEX_NORMAL
#endif

static pthread_mutex_t payments_lock, ledger_lock, billing_lock, audit_lock, stock_lock;
static pthread_mutex_t *const locks[] = {&payments_lock, &ledger_lock, &billing_lock, &audit_lock, &stock_lock};
static const char *const names[] = {"payments", "ledger", "billing", "audit", "stock"};

static int threads = 2;
static bool alone, timed, clocked, pi;
static pthread_barrier_t all_hold_one;
static struct seat *seat_of[5];

static NOINLINE void take(pthread_mutex_t *lock) {
    struct timespec hour;
    if (timed) {
        clock_gettime(CLOCK_REALTIME, &hour);
        hour.tv_sec += 3600;
        PCHECK(pthread_mutex_timedlock(lock, &hour));
    } else if (clocked) {
        clock_gettime(CLOCK_MONOTONIC, &hour);
        hour.tv_sec += 3600;
        PCHECK(pthread_mutex_clocklock(lock, CLOCK_MONOTONIC, &hour));
    } else {
        PCHECK(pthread_mutex_lock(lock));
    }
}

static NOINLINE void *transfer(void *arg) {
    int i = (int)(intptr_t)arg;
    take_seat(seat_of[i]);
    take(locks[i]);
    pthread_barrier_wait(&all_hold_one);
    /* The PI cycle closes in a known order: the last thread is the one the kernel turns away. */
    if (pi && i == threads - 1)
        for (int j = 0; j < threads - 1; j++) await_seat(seat_of[j]);
    about_to_wait(seat_of[i]);
    take(locks[(i + 1) % threads]);
    return NULL;
}

static int kind_of(const char *kind, pthread_mutexattr_t *a) {
    if (!strcmp(kind, "normal")) return PTHREAD_MUTEX_NORMAL;
    if (!strcmp(kind, "errorcheck")) return PTHREAD_MUTEX_ERRORCHECK;
    if (!strcmp(kind, "recursive")) return PTHREAD_MUTEX_RECURSIVE;
    if (!strcmp(kind, "adaptive")) return PTHREAD_MUTEX_ADAPTIVE_NP;
    if (!strcmp(kind, "timed")) { timed = true; return PTHREAD_MUTEX_TIMED_NP; }
    if (!strcmp(kind, "clock")) { clocked = true; return PTHREAD_MUTEX_TIMED_NP; }
    if (!strcmp(kind, "pi")) { pi = true; PCHECK(pthread_mutexattr_setprotocol(a, PTHREAD_PRIO_INHERIT)); return PTHREAD_MUTEX_NORMAL; }
    if (!strcmp(kind, "robust")) { PCHECK(pthread_mutexattr_setrobust(a, PTHREAD_MUTEX_ROBUST)); return PTHREAD_MUTEX_NORMAL; }
    die("no such --kind: %s", kind);
    return 0;
}

int main(int argc, char **argv) {
    const char *kind = "normal";
    int after = -1;
    bool on_stdin = false;
    for (int i = 1; i < argc; i++) {
        if (!strcmp(argv[i], "--threads") && i + 1 < argc) threads = atoi(argv[++i]);
        else if (!strcmp(argv[i], "--kind") && i + 1 < argc) kind = argv[++i];
        else if (!strcmp(argv[i], "--after") && i + 1 < argc) after = atoi(argv[++i]);
        else if (!strcmp(argv[i], "--self")) alone = true;
        else if (!strcmp(argv[i], "--on-stdin")) on_stdin = true;
        else die("no such option: %s", argv[i]);
    }
    if (alone) threads = 1;
    if (threads < 1 || threads > 5) die("--threads must be 2 to 5");
    victim_init();
    pthread_mutexattr_t a;
    PCHECK(pthread_mutexattr_init(&a));
    PCHECK(pthread_mutexattr_settype(&a, kind_of(kind, &a)));
    for (int i = 0; i < threads; i++) {
        PCHECK(pthread_mutex_init(locks[i], &a));
        seat_of[i] = new_seat(names[i], "futex", SYS_futex);
    }
    for (int i = 0; i < threads; i++) {
        if (pi && i == threads - 1) continue; /* parked */
        seat_of[i]->resource = "mutex";
        seat_of[i]->waits_for = locks[(i + 1) % threads];
        seat_of[i]->owner = seat_of[(i + 1) % threads];
    }
    PCHECK(pthread_barrier_init(&all_hold_one, NULL, (unsigned)threads + 1));
    for (int i = 0; i < threads; i++) start_thread(transfer, (void *)(intptr_t)i);
    if (on_stdin) await_line();
    else if (after > 0) (void)poll(NULL, 0, after);
    pthread_barrier_wait(&all_hold_one);
    print_truth(getpid(), "deadlock", ",\"kind\":\"%s\",\"cycle\":%d,\"parked\":%s", kind, threads, pi ? "true" : "false");
    stay();
}
