/* Sleepers whose wake-up got lost, and sleepers whose word changes without anything being wrong.
 *
 *   lost_wakeup raw         a futex word of the program's own goes from 0 to 1, nobody calls FUTEX_WAKE
 *   lost_wakeup mutex       a mutex is initialised again while somebody waits for it
 *   lost_wakeup semaphore   a semaphore gets a token by a write to its memory
 *   lost_wakeup join        the id of a thread that lives is cleared while another one joins it
 *   lost_wakeup latch       healthy: a count goes from 3 to 2, its sleeper waits for 0
 *   lost_wakeup events      healthy: an event count; one of two sleepers was woken, the other sleeps on
 */
#include "victim.h"
#include <linux/futex.h>
#include <semaphore.h>

static uint32_t word;
static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static sem_t semaphore;
static pthread_t worker;
static struct seat *waiter_seat, *worker_seat;

NOINLINE static void await_change(uint32_t *at, uint32_t value) {
    while (__atomic_load_n(at, __ATOMIC_ACQUIRE) == value)
        syscall(SYS_futex, at, FUTEX_WAIT_PRIVATE, value, NULL, NULL, 0);
}

static void *raw(void *arg) {
    take_seat(waiter_seat);
    await_change(&word, 0);
    return arg;
}

static void *locks(void *arg) {
    take_seat(waiter_seat);
    PCHECK(pthread_mutex_lock(&mutex));
    return arg;
}

static void *takes(void *arg) {
    take_seat(waiter_seat);
    CHECK(sem_wait(&semaphore));
    return arg;
}

static void *works(void *arg) {
    take_seat(worker_seat);
    read_for_ever(silent_pipe());
    return arg;
}

static void *joins(void *arg) {
    take_seat(waiter_seat);
    PCHECK(pthread_join(worker, NULL));
    return arg;
}

static void *counts_down(void *arg) {
    take_seat(waiter_seat);
    uint32_t left;
    while ((left = __atomic_load_n(&word, __ATOMIC_ACQUIRE)) != 0)
        await_change(&word, left);
    return arg;
}

static volatile pid_t first_tid;

static void *first(void *arg) {
    first_tid = self_tid();
    await_change(&word, 7);
    return arg;
}

static void *second(void *arg) {
    take_seat(waiter_seat);
    await_change(&word, 7);
    return arg;
}

static void start_waiter(void *(*body)(void *)) {
    waiter_seat = new_seat("waiter", "futex", SYS_futex);
    start_thread(body, NULL);
    await_seat(waiter_seat);
}

int main(int argc, char **argv) {
    const char *mode = argc == 2 ? argv[1] : "";
    victim_init();
    if (is_mode(mode, "raw")) {
        start_waiter(raw);
        word = 1;
    } else if (is_mode(mode, "mutex")) {
        PCHECK(pthread_mutex_lock(&mutex));
        start_waiter(locks);
        memset(&mutex, 0, sizeof mutex);
        PCHECK(pthread_mutex_init(&mutex, NULL));
    } else if (is_mode(mode, "semaphore")) {
        CHECK(sem_init(&semaphore, 0, 0));
        start_waiter(takes);
        __atomic_store_n((uint32_t *)(void *)&semaphore, 1, __ATOMIC_RELEASE);
    } else if (is_mode(mode, "join")) {
        worker_seat = new_seat("worker", "read", SYS_read);
        worker = start_thread(works, NULL);
        await_seat(worker_seat);
        start_waiter(joins);
        /* What the kernel would do at the thread's end, without its wake-up. */
        uint32_t *tid = (uint32_t *)(uintptr_t)waiter_seat->args[0];
        if (*tid != (uint32_t)worker_seat->tid) die("not the thread's id");
        __atomic_store_n(tid, 0, __ATOMIC_RELEASE);
    } else if (is_mode(mode, "latch")) {
        word = 3;
        start_waiter(counts_down);
        __atomic_store_n(&word, 2, __ATOMIC_RELEASE);
    } else if (is_mode(mode, "events")) {
        word = 7;
        /* Without a seat: it will have ended when the truth is told. */
        start_thread(first, NULL);
        uint64_t args[6];
        while (!first_tid || thread_syscall(getpid(), first_tid, args) != SYS_futex) breathe();
        start_waiter(second);
        __atomic_store_n(&word, 8, __ATOMIC_RELEASE);
        if (syscall(SYS_futex, &word, FUTEX_WAKE_PRIVATE, 1, NULL, NULL, 0) != 1) die("nobody woke up");
    } else {
        die("unknown mode %s", mode);
    }
    print_truth(getpid(), mode, "");
    stay();
}
