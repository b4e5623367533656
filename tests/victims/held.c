/* A lock held too long: three threads wait for a mutex whose holder sleeps elsewhere.
 *
 *   held read        the holder is in read() on a pipe nobody writes to
 *   held nanosleep   the holder sleeps for an hour
 *   held poll        the holder polls that pipe without a limit
 *   held rwlock      likewise read(), the lock is a rwlock held for writing, two want to read and one to write
 *   held joined      like read; a fourth thread comes to wait when a line arrives on stdin
 *   held chain       T1 wants M1 held by T2, who wants M2 held by T3, who wants M3 held by T4, who reads a pipe
 *
 * The truth's "root" is the thread at the end of the chain.
 */
#include "victim.h"

static pthread_mutex_t cache_lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_rwlock_t table_lock = PTHREAD_RWLOCK_INITIALIZER;
static pthread_mutex_t chain_lock[3] = {PTHREAD_MUTEX_INITIALIZER, PTHREAD_MUTEX_INITIALIZER, PTHREAD_MUTEX_INITIALIZER};
static pthread_barrier_t held;
static struct seat *seat_of[4];
static const char *mode;
static int quiet;

static NOINLINE void work_while_holding(void) {
    if (is_mode(mode, "nanosleep")) {
        struct timespec hour = {3600, 0};
        nanosleep(&hour, NULL);
    } else if (is_mode(mode, "poll")) {
        struct pollfd p = {quiet, POLLIN, 0};
        poll(&p, 1, -1);
    } else {
        read_for_ever(quiet);
    }
}

static void *holder(void *arg) {
    take_seat(seat_of[0]);
    if (is_mode(mode, "rwlock")) PCHECK(pthread_rwlock_wrlock(&table_lock));
    else PCHECK(pthread_mutex_lock(&cache_lock));
    pthread_barrier_wait(&held);
    about_to_wait(seat_of[0]);
    work_while_holding();
    return arg;
}

static void *waiter(void *arg) {
    int i = (int)(intptr_t)arg;
    take_seat(seat_of[i]);
    pthread_barrier_wait(&held);
    about_to_wait(seat_of[i]);
    if (!is_mode(mode, "rwlock")) PCHECK(pthread_mutex_lock(&cache_lock));
    else if (i == 3) PCHECK(pthread_rwlock_wrlock(&table_lock));
    else PCHECK(pthread_rwlock_rdlock(&table_lock));
    return NULL;
}

/* Comes to a queue that has stood for a while. */
static void *latecomer(void *arg) {
    PCHECK(pthread_mutex_lock(&cache_lock));
    return arg;
}

/* Link i of the chain wants lock i and holds lock i-1. */
static void *link_of_chain(void *arg) {
    int i = (int)(intptr_t)arg;
    take_seat(seat_of[i]);
    if (i > 0) PCHECK(pthread_mutex_lock(&chain_lock[i - 1]));
    pthread_barrier_wait(&held);
    about_to_wait(seat_of[i]);
    if (i < 3) PCHECK(pthread_mutex_lock(&chain_lock[i]));
    else work_while_holding();
    return NULL;
}

int main(int argc, char **argv) {
    mode = argc == 2 ? argv[1] : "";
    victim_init();
    quiet = silent_pipe();
    PCHECK(pthread_barrier_init(&held, NULL, 4));
    struct seat *root;
    if (is_mode(mode, "chain")) {
        static const char *const names[] = {"front", "middle", "back", "root"};
        for (int i = 0; i < 4; i++) seat_of[i] = i < 3 ? new_seat(names[i], "futex", SYS_futex) : new_seat(names[i], "read", SYS_read);
        for (int i = 0; i < 3; i++) {
            seat_of[i]->resource = "mutex";
            seat_of[i]->waits_for = &chain_lock[i];
            seat_of[i]->owner = seat_of[i + 1];
        }
        root = seat_of[3];
        for (int i = 0; i < 4; i++) start_thread(link_of_chain, (void *)(intptr_t)i);
    } else {
        bool rw = is_mode(mode, "rwlock");
        if (is_mode(mode, "nanosleep")) root = new_seat("holder", "clock_nanosleep", SYS_clock_nanosleep);
        else if (is_mode(mode, "poll")) root = new_seat("holder", "poll", SYS_poll);
        else if (is_mode(mode, "read") || is_mode(mode, "joined") || rw) root = new_seat("holder", "read", SYS_read);
        else { die("usage: held read|nanosleep|poll|rwlock|joined|chain"); return 2; }
        seat_of[0] = root;
        for (int i = 1; i < 4; i++) {
            seat_of[i] = new_seat(i == 1 ? "waiter-1" : i == 2 ? "waiter-2" : "waiter-3", "futex", SYS_futex);
            seat_of[i]->resource = rw ? "rwlock" : "mutex";
            seat_of[i]->waits_for = rw ? (void *)&table_lock : (void *)&cache_lock;
            seat_of[i]->owner = root;
        }
        start_thread(holder, NULL);
        for (int i = 1; i < 4; i++) start_thread(waiter, (void *)(intptr_t)i);
    }
    for (int i = 0; i < seat_count; i++) await_seat(&seats[i]);
    print_truth(getpid(), mode, ",\"root\":%d", root->tid);
    if (is_mode(mode, "joined")) {
        await_line();
        start_thread(latecomer, NULL);
    }
    stay();
}
