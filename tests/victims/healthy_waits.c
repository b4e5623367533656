/* Healthy waits, one thread "waiter" in each.
 *
 *   nanosleep  clock-nanosleep   (absolute)
 *   pipe          read() on a pipe nobody writes to
 *   join          main-like thread joins a healthy worker that sleeps
 *   semaphore     sem_wait       barrier    two of three have arrived
 *   sigwait       sigwaitinfo    eventfd    read() on an eventfd
 *   accept        accept() on a loopback listener
 *   flock-free    a thread that holds a mutex nobody wants, and reads a pipe
 *   lock-brief    two threads wait for a mutex whose holder lets go every 100 ms
 */
#include "victim.h"
#include <arpa/inet.h>
#include <netinet/in.h>
#include <semaphore.h>
#include <sys/eventfd.h>
#include <sys/socket.h>

static struct seat *seat;
static const char *mode;
static int quiet;
static sem_t sem;
static pthread_barrier_t barrier;
static pthread_mutex_t own_lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_t sleeper;

static void *sleep_an_hour(void *arg) {
    prctl(PR_SET_NAME, "sleeper");
    struct timespec hour = {3600, 0};
    nanosleep(&hour, NULL);
    return arg;
}

static void *brief_holder(void *arg) {
    prctl(PR_SET_NAME, "brief");
    for (;;) {
        PCHECK(pthread_mutex_lock(&own_lock));
        (void)poll(NULL, 0, 100);
        PCHECK(pthread_mutex_unlock(&own_lock));
        (void)poll(NULL, 0, 5); /* time enough for whoever waits to get it: glibc's mutex is not fair */
    }
    return arg;
}

static void *waiter(void *arg) {
    take_seat(seat);
    struct timespec when = {3600, 0};
    if (is_mode(mode, "nanosleep")) {
        nanosleep(&when, NULL);
    } else if (is_mode(mode, "clock-nanosleep")) {
        clock_gettime(CLOCK_MONOTONIC, &when);
        when.tv_sec += 3600;
        clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &when, NULL);
    } else if (is_mode(mode, "pipe")) {
        read_for_ever(quiet);
    } else if (is_mode(mode, "join")) {
        pthread_join(sleeper, NULL);
    } else if (is_mode(mode, "semaphore")) {
        sem_wait(&sem);
    } else if (is_mode(mode, "barrier")) {
        pthread_barrier_wait(&barrier);
    } else if (is_mode(mode, "sigwait")) {
        sigset_t set;
        sigemptyset(&set);
        sigaddset(&set, SIGUSR1);
        sigwaitinfo(&set, NULL);
    } else if (is_mode(mode, "eventfd")) {
        eventfd_t v;
        eventfd_read(quiet, &v);
    } else if (is_mode(mode, "accept")) {
        accept(quiet, NULL, NULL);
    } else {
        PCHECK(pthread_mutex_lock(&own_lock));
        read_for_ever(quiet);
    }
    return arg;
}

int main(int argc, char **argv) {
    static const struct { const char *mode, *syscall; long number; } all[] = {
        {"nanosleep", "clock_nanosleep", SYS_clock_nanosleep}, {"clock-nanosleep", "clock_nanosleep", SYS_clock_nanosleep},
        {"pipe", "read", SYS_read}, {"join", "futex", SYS_futex}, {"semaphore", "futex", SYS_futex},
        {"barrier", "futex", SYS_futex}, {"sigwait", "rt_sigtimedwait", SYS_rt_sigtimedwait}, {"eventfd", "read", SYS_read},
        {"accept", "accept", SYS_accept}, {"flock-free", "read", SYS_read}, {"lock-brief", NULL, 0},
    };
    mode = argc == 2 ? argv[1] : "";
    victim_init();
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        if (is_mode(mode, all[i].mode)) seat = new_seat("waiter", all[i].syscall, all[i].number);
    if (!seat) die("usage: healthy_waits MODE");
    quiet = silent_pipe();
    CHECK(sem_init(&sem, 0, 0));
    PCHECK(pthread_barrier_init(&barrier, NULL, 3));
    if (is_mode(mode, "eventfd")) quiet = eventfd(0, EFD_CLOEXEC);
    if (is_mode(mode, "accept")) {
        struct sockaddr_in any = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
        quiet = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
        CHECK(bind(quiet, (struct sockaddr *)&any, sizeof any));
        CHECK(listen(quiet, 8));
    }
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGUSR1);
    PCHECK(pthread_sigmask(SIG_BLOCK, &set, NULL));
    if (is_mode(mode, "join")) sleeper = start_thread(sleep_an_hour, NULL);
    if (is_mode(mode, "lock-brief")) {
        seat_count = 0; /* nobody sits for long */
        for (int i = 0; i < 3; i++) start_thread(brief_holder, NULL);
    } else {
        start_thread(waiter, NULL);
    }
    if (is_mode(mode, "barrier")) start_thread(waiter, NULL);
    print_truth(getpid(), mode, "");
    stay();
}
