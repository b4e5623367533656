/* Cycles that are not only mutexes: rwlocks, joins and mixtures.
 *
 *   cycles wr-wr           two rwlocks held for writing, each wanted for writing by the other
 *   cycles rd-wr           two rwlocks held for writing, each wanted for reading by the other
 *   cycles mixed           one holds a mutex and wants a rwlock for writing, the other the reverse
 *   cycles join            three threads that join each other in a ring (glibc refuses only direct pairs)
 *   cycles join-mutex      T1 joins T2 while it holds M; T2 waits for M
 *   cycles readers         T1 holds a rwlock for READING and wants M; T2 holds M and wants to write: a true
 *                          deadlock, but glibc keeps no reader identities, so nobody outside can be certain
 */
#include "victim.h"

static pthread_rwlock_t orders_lock = PTHREAD_RWLOCK_INITIALIZER, stock_lock = PTHREAD_RWLOCK_INITIALIZER;
static pthread_mutex_t ledger_lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_barrier_t both;
static struct seat *a, *b, *c;
static pthread_t pa, pb, pc;
static bool reading;

static void meet(struct seat *s) {
    pthread_barrier_wait(&both);
    about_to_wait(s);
}

static void want(pthread_rwlock_t *l) { PCHECK(reading ? pthread_rwlock_rdlock(l) : pthread_rwlock_wrlock(l)); }

static void *orders_then_stock(void *arg) {
    take_seat(a);
    PCHECK(pthread_rwlock_wrlock(&orders_lock));
    meet(a);
    want(&stock_lock);
    return arg;
}
static void *stock_then_orders(void *arg) {
    take_seat(b);
    PCHECK(pthread_rwlock_wrlock(&stock_lock));
    meet(b);
    want(&orders_lock);
    return arg;
}
static void *ledger_then_orders(void *arg) {
    take_seat(a);
    PCHECK(pthread_mutex_lock(&ledger_lock));
    meet(a);
    PCHECK(pthread_rwlock_wrlock(&orders_lock));
    return arg;
}
static void *orders_then_ledger(void *arg) {
    take_seat(b);
    PCHECK(reading ? pthread_rwlock_rdlock(&orders_lock) : pthread_rwlock_wrlock(&orders_lock));
    meet(b);
    PCHECK(pthread_mutex_lock(&ledger_lock));
    return arg;
}
struct ring { struct seat *seat; pthread_t *next; };
static void *join_next(void *arg) {
    struct ring *r = arg;
    take_seat(r->seat);
    meet(r->seat);
    PCHECK(pthread_join(*r->next, NULL));
    return NULL;
}
static void *hold_and_join(void *arg) {
    take_seat(a);
    PCHECK(pthread_mutex_lock(&ledger_lock));
    meet(a);
    PCHECK(pthread_join(pb, NULL));
    return arg;
}
static void *want_ledger(void *arg) {
    take_seat(b);
    meet(b);
    PCHECK(pthread_mutex_lock(&ledger_lock));
    return arg;
}

static void edge(struct seat *from, const char *resource, const void *object, struct seat *owner) {
    from->resource = resource;
    from->waits_for = object;
    from->owner = owner;
}

int main(int argc, char **argv) {
    const char *mode = argc == 2 ? argv[1] : "";
    victim_init();
    a = new_seat("first", "futex", SYS_futex);
    b = new_seat("second", "futex", SYS_futex);
    unsigned n = 2;
    if (is_mode(mode, "wr-wr") || is_mode(mode, "rd-wr")) {
        reading = is_mode(mode, "rd-wr");
        edge(a, "rwlock", &stock_lock, b);
        edge(b, "rwlock", &orders_lock, a);
        PCHECK(pthread_barrier_init(&both, NULL, n));
        pa = start_thread(orders_then_stock, NULL);
        pb = start_thread(stock_then_orders, NULL);
    } else if (is_mode(mode, "mixed") || is_mode(mode, "readers")) {
        reading = is_mode(mode, "readers");
        edge(a, "rwlock", &orders_lock, reading ? NULL : b);
        edge(b, "mutex", &ledger_lock, a);
        PCHECK(pthread_barrier_init(&both, NULL, n));
        pa = start_thread(ledger_then_orders, NULL);
        pb = start_thread(orders_then_ledger, NULL);
    } else if (is_mode(mode, "join")) {
        c = new_seat("third", "futex", SYS_futex);
        edge(a, "thread", NULL, b);
        edge(b, "thread", NULL, c);
        edge(c, "thread", NULL, a);
        /* A fourth party to the meeting: nobody joins before all three handles are known. */
        PCHECK(pthread_barrier_init(&both, NULL, 4));
        static struct ring ra, rb, rc;
        ra = (struct ring){a, &pb};
        rb = (struct ring){b, &pc};
        rc = (struct ring){c, &pa};
        pa = start_thread(join_next, &ra);
        pb = start_thread(join_next, &rb);
        pc = start_thread(join_next, &rc);
        pthread_barrier_wait(&both);
    } else if (is_mode(mode, "join-mutex")) {
        edge(a, "thread", NULL, b);
        edge(b, "mutex", &ledger_lock, a);
        PCHECK(pthread_barrier_init(&both, NULL, 3));
        pb = start_thread(want_ledger, NULL);
        pa = start_thread(hold_and_join, NULL);
        pthread_barrier_wait(&both);
    } else {
        die("usage: cycles wr-wr|rd-wr|mixed|join|join-mutex|readers");
    }
    print_truth(getpid(), mode, "");
    stay();
}
