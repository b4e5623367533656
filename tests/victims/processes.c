/* Locks between processes and locks whose owner is gone.
 *
 *   processes cycle         two processes, two process-shared mutexes, opposite order: a deadlock across processes
 *   processes thread-exit   a thread exits holding a mutex, two others wait for it: abandoned
 *   processes owner-exit    a process exits holding a process-shared, non-robust mutex, another waits: abandoned
 *   processes fork-held     fork() while another thread holds a mutex; the child wants it: its owner stayed behind
 *
 * and locks that record no owner, in a child all of whose threads wait (a rwlock does not say who reads):
 *
 *   processes fork-reader   fork() while another thread reads; the child wants to write
 *   processes handler       a signal handler wants to write while the code that it interrupts reads
 *   processes again         one that reads wants to read once more, behind a writer, of a lock that prefers writers
 *   processes again-idle    the same with one more thread, at rest, which may be the reader for all that is known
 *
 * "pid" is whom to look at; "pids" lists every process involved.
 */
#include "victim.h"

static struct { pthread_mutex_t orders, stock; volatile int holding; } *shared;
static pthread_mutex_t cache_lock = PTHREAD_MUTEX_INITIALIZER;
static struct seat *a, *b;

static void both_hold(void) {
    __atomic_add_fetch(&shared->holding, 1, __ATOMIC_SEQ_CST);
    while (__atomic_load_n(&shared->holding, __ATOMIC_SEQ_CST) < 2) breathe();
}

static pid_t child_that(struct seat *s, pthread_mutex_t *first, pthread_mutex_t *second) {
    pid_t pid = fork();
    if (pid < 0) die("fork");
    if (pid) return pid;
    die_with_parent();
    take_seat(s);
    PCHECK(pthread_mutex_lock(first));
    both_hold();
    about_to_wait(s);
    PCHECK(pthread_mutex_lock(second));
    _exit(0);
}

static void cycle(void) {
    a = new_seat("orders", "futex", SYS_futex);
    b = new_seat("stock", "futex", SYS_futex);
    *a = (struct seat){.name = "orders", .syscall = "futex", .number = SYS_futex, .resource = "mutex", .waits_for = &shared->stock, .owner = b};
    *b = (struct seat){.name = "stock", .syscall = "futex", .number = SYS_futex, .resource = "mutex", .waits_for = &shared->orders, .owner = a};
    pid_t pa = child_that(a, &shared->orders, &shared->stock);
    pid_t pb = child_that(b, &shared->stock, &shared->orders);
    print_truth(pa, "cycle", ",\"pids\":[%d,%d]", pa, pb);
}

static void *lock_and_leave(void *tid) {
    *(volatile pid_t *)tid = self_tid();
    PCHECK(pthread_mutex_lock(&cache_lock));
    return NULL;
}
static void *want_cache(void *arg) {
    take_seat(arg);
    PCHECK(pthread_mutex_lock(&cache_lock));
    return NULL;
}

static void thread_exit(void) {
    static pid_t gone;
    PCHECK(pthread_join(start_thread(lock_and_leave, &gone), NULL));
    while (thread_state(getpid(), gone)) breathe();
    for (int i = 0; i < 2; i++) {
        struct seat *s = new_seat(i ? "waiter-2" : "waiter-1", "futex", SYS_futex);
        s->resource = "mutex";
        s->waits_for = &cache_lock;
        s->owner_tid = gone;
        start_thread(want_cache, s);
    }
    print_truth(getpid(), "thread-exit", ",\"pids\":[%d]", getpid());
}

static void owner_exit(void) {
    pid_t owner = fork();
    if (owner < 0) die("fork");
    if (!owner) {
        PCHECK(pthread_mutex_lock(&shared->orders));
        _exit(0);
    }
    if (waitpid(owner, NULL, 0) != owner) die("waitpid");
    a = new_seat("waiter", "futex", SYS_futex);
    a->resource = "mutex";
    a->waits_for = &shared->orders;
    a->owner_tid = owner;
    pid_t pid = fork();
    if (!pid) {
        die_with_parent();
        take_seat(a);
        PCHECK(pthread_mutex_lock(&shared->orders));
        _exit(0);
    }
    print_truth(pid, "owner-exit", ",\"pids\":[%d]", pid);
}

static pthread_barrier_t has_it;
static void *hold_cache(void *arg) {
    take_seat(arg);
    PCHECK(pthread_mutex_lock(&cache_lock));
    pthread_barrier_wait(&has_it);
    read_for_ever(silent_pipe());
    return NULL;
}

static void fork_held(void) {
    PCHECK(pthread_barrier_init(&has_it, NULL, 2));
    b = new_seat("holder", "read", SYS_read);
    a = new_seat("forked", "futex", SYS_futex);
    a->resource = "mutex";
    a->waits_for = &cache_lock;
    start_thread(hold_cache, b);
    pthread_barrier_wait(&has_it);
    a->owner = b;
    pid_t pid = fork();
    if (!pid) {
        die_with_parent();
        take_seat(a);
        PCHECK(pthread_mutex_lock(&cache_lock));
        _exit(0);
    }
    print_truth(pid, "fork-held", ",\"pids\":[%d],\"parent\":%d", pid, getpid());
}

static pthread_rwlock_t prices = PTHREAD_RWLOCK_INITIALIZER;

/* A seat whose owner nobody outside can know. */
static struct seat *seat_at_prices(const char *name) {
    struct seat *s = new_seat(name, "futex", SYS_futex);
    s->resource = "rwlock";
    s->waits_for = &prices;
    return s;
}

static void *read_prices(void *arg) {
    take_seat(arg);
    PCHECK(pthread_rwlock_rdlock(&prices));
    pthread_barrier_wait(&has_it);
    read_for_ever(silent_pipe());
    return NULL;
}

static void *write_prices(void *arg) {
    take_seat(arg);
    PCHECK(pthread_rwlock_wrlock(&prices));
    return NULL;
}

static void write_in_child(void) {
    take_seat(a);
    PCHECK(pthread_rwlock_wrlock(&prices));
}

static void fork_reader(void) {
    PCHECK(pthread_barrier_init(&has_it, NULL, 2));
    b = new_seat("reader", "read", SYS_read);
    a = seat_at_prices("forked");
    start_thread(read_prices, b);
    pthread_barrier_wait(&has_it);
    pid_t pid = child(write_in_child);
    print_truth(pid, "fork-reader", ",\"pids\":[%d],\"parent\":%d", pid, getpid());
}

static void write_in_handler(int number) {
    (void)number;
    about_to_wait(a);
    PCHECK(pthread_rwlock_wrlock(&prices));
}

static void interrupted_reader(void) {
    take_seat(a);
    if (signal(SIGUSR1, write_in_handler) == SIG_ERR) die("signal");
    PCHECK(pthread_rwlock_rdlock(&prices));
    CHECK(raise(SIGUSR1));
}

static void handler(void) {
    a = seat_at_prices("interrupted");
    pid_t pid = child(interrupted_reader);
    print_truth(pid, "handler", ",\"pids\":[%d]", pid);
}

static struct seat *idle;

static void *be_idle(void *arg) {
    take_seat(arg);
    for (;;) pause();
    return NULL;
}

static void reads_again(void) {
    pthread_rwlockattr_t attributes;
    PCHECK(pthread_rwlockattr_init(&attributes));
    PCHECK(pthread_rwlockattr_setkind_np(&attributes, PTHREAD_RWLOCK_PREFER_WRITER_NONRECURSIVE_NP));
    PCHECK(pthread_rwlock_init(&prices, &attributes));
    take_seat(a);
    PCHECK(pthread_rwlock_rdlock(&prices));
    start_thread(write_prices, b);
    if (idle) start_thread(be_idle, idle);
    await_seat(b);
    about_to_wait(a);
    PCHECK(pthread_rwlock_rdlock(&prices));
}

static void again(bool with_idle) {
    a = seat_at_prices("reader");
    b = seat_at_prices("writer");
    if (with_idle) idle = new_seat("idle", "pause", SYS_pause);
    pid_t pid = child(reads_again);
    print_truth(pid, "again", ",\"pids\":[%d]", pid);
}

int main(int argc, char **argv) {
    const char *mode = argc == 2 ? argv[1] : "";
    victim_init();
    shared = shared_memory(sizeof *shared);
    init_mutex(&shared->orders, true, false);
    init_mutex(&shared->stock, true, false);
    if (is_mode(mode, "cycle")) cycle();
    else if (is_mode(mode, "thread-exit")) thread_exit();
    else if (is_mode(mode, "owner-exit")) owner_exit();
    else if (is_mode(mode, "fork-held")) fork_held();
    else if (is_mode(mode, "fork-reader")) fork_reader();
    else if (is_mode(mode, "handler")) handler();
    else if (is_mode(mode, "again")) again(false);
    else if (is_mode(mode, "again-idle")) again(true);
    else die("usage: processes cycle|thread-exit|owner-exit|fork-held|fork-reader|handler|again|again-idle");
    stay();
}
