/* One thread, one waiting call, one timeout. The thread is named "waiter".
 *
 *   timeouts MODE [AFTER-LINE]      with a second argument the wait begins when a line arrives on stdin
 *
 * Healthy: poll-infinite poll-zero poll-50ms poll-intmax ppoll-null ppoll-finite select-null select-finite
 *          pselect-null pselect-finite epoll-infinite epoll-50ms epoll-pwait2-null epoll-pwait2-finite
 *          futex-past                 a deadline that has passed: returns at once
 * Wrong:   poll-neg5 epoll-neg7       negative and not -1: the kernel waits for ever, nobody meant it
 *          poll-30h ppoll-year select-year epoll-pwait2-year futex-year     absurd: over 24 hours
 *          futex-century              absurd: a deadline in a hundred years
 *          futex-time-of-day          a deadline in two seconds by CLOCK_REALTIME, for a wait by CLOCK_MONOTONIC
 *          ppoll-neg epoll-pwait2-neg     negative seconds: EINVAL each time, in a loop
 *          ppoll-invalid              tv_nsec of a second and more: EINVAL each time, in a loop
 *
 * The truth's "timeout" is what the call was given: {"kind", "raw"}.
 */
#include "victim.h"
#include <sys/epoll.h>
#include <sys/select.h>

#ifndef SYS_epoll_pwait2
#define SYS_epoll_pwait2 441
#endif
#define YEAR (365L * 24 * 3600)

struct mode { const char *name, *syscall; long number; const char *kind, *raw; bool loops; };
static const struct mode modes[] = {
    {"poll-infinite", "poll", SYS_poll, "infinite", "-1", false},
    {"poll-neg5", "poll", SYS_poll, "negative", "-5", false},
    {"poll-zero", "poll", SYS_poll, "zero", "0", true},
    {"poll-50ms", "poll", SYS_poll, "finite", "50", true},
    {"poll-30h", "poll", SYS_poll, "absurd", "108000000", false},
    {"poll-intmax", "poll", SYS_poll, "infinite", "2147483647", false},
    {"ppoll-null", "ppoll", SYS_ppoll, "infinite", "NULL", false},
    {"ppoll-finite", "ppoll", SYS_ppoll, "finite", "3600 s", false},
    {"ppoll-year", "ppoll", SYS_ppoll, "absurd", "31536000 s", false},
    {"ppoll-invalid", "ppoll", SYS_ppoll, "invalid", "tv_nsec 1000000000", true},
    {"select-null", "select", SYS_select, "infinite", "NULL", false},
    {"select-finite", "select", SYS_select, "finite", "3600 s", false},
    {"select-year", "select", SYS_select, "absurd", "31536000 s", false},
    {"pselect-null", "pselect6", SYS_pselect6, "infinite", "NULL", false},
    {"pselect-finite", "pselect6", SYS_pselect6, "finite", "3600 s", false},
    {"epoll-infinite", "epoll_wait", SYS_epoll_wait, "infinite", "-1", false},
    {"epoll-neg7", "epoll_wait", SYS_epoll_wait, "negative", "-7", false},
    {"epoll-50ms", "epoll_wait", SYS_epoll_wait, "finite", "50", true},
    {"epoll-pwait2-null", "epoll_pwait2", SYS_epoll_pwait2, "infinite", "NULL", false},
    {"epoll-pwait2-finite", "epoll_pwait2", SYS_epoll_pwait2, "finite", "3600 s", false},
    {"epoll-pwait2-year", "epoll_pwait2", SYS_epoll_pwait2, "absurd", "31536000 s", false},
    {"ppoll-neg", "ppoll", SYS_ppoll, "negative", "tv_sec -1", true},
    {"epoll-pwait2-neg", "epoll_pwait2", SYS_epoll_pwait2, "negative", "tv_sec -1", true},
    {"futex-century", "futex", SYS_futex, "absurd", "a deadline", false},
    {"futex-time-of-day", "futex", SYS_futex, "absurd", "a deadline", false},
    {"futex-past", "futex", SYS_futex, "zero", "a deadline", true},
    {"futex-year", "futex", SYS_futex, "absurd", "31536000 s", false},
};
static const struct mode *mode;
static int fd, ep;
static struct seat *seat;
static pthread_barrier_t begin;

static bool starts(const char *with) { return strncmp(mode->name, with, strlen(with)) == 0; }

static bool returns_at_once(void) {
    return is_mode(mode->name, "poll-zero") || is_mode(mode->name, "ppoll-invalid") || is_mode(mode->name, "ppoll-neg") ||
           is_mode(mode->name, "epoll-pwait2-neg") || is_mode(mode->name, "futex-past");
}

static NOINLINE void wait_once(void) {
    struct pollfd p = {fd, POLLIN, 0};
    struct epoll_event ev;
    fd_set set;
    FD_ZERO(&set);
    FD_SET(fd, &set);
    struct timespec ts = {3600, 0};
    struct timeval tv = {3600, 0};
    bool endless = strstr(mode->name, "-null") != NULL;
    if (strstr(mode->name, "-year")) ts.tv_sec = tv.tv_sec = YEAR;
    if (strstr(mode->name, "-neg") && !strstr(mode->name, "-neg5") && !strstr(mode->name, "-neg7")) ts.tv_sec = -1;
    if (strstr(mode->name, "-invalid")) { ts.tv_sec = 0; ts.tv_nsec = 1000000000; }
    if (starts("poll-")) {
        syscall(SYS_poll, &p, 1, atoi(mode->raw));
    } else if (starts("ppoll-")) {
        int r = (int)syscall(SYS_ppoll, &p, 1, endless ? NULL : &ts, NULL, 8);
        if (mode->loops && !(r == -1 && errno == EINVAL)) die("ppoll took an invalid timespec");
    } else if (starts("select-")) {
        syscall(SYS_select, fd + 1, &set, NULL, NULL, endless ? NULL : &tv);
    } else if (starts("pselect-")) {
        syscall(SYS_pselect6, fd + 1, &set, NULL, NULL, endless ? NULL : &ts, NULL);
    } else if (starts("epoll-pwait2-")) {
        syscall(SYS_epoll_pwait2, ep, &ev, 1, endless ? NULL : &ts, NULL, 8);
    } else if (starts("epoll-")) {
        syscall(SYS_epoll_wait, ep, &ev, 1, atoi(mode->raw));
    } else if (starts("futex-century") || starts("futex-past")) {
        static int word = 1;
        /* FUTEX_WAIT_BITSET | PRIVATE | CLOCK_REALTIME: an absolute deadline. */
        struct timespec until;
        CHECK(clock_gettime(CLOCK_REALTIME, &until));
        until.tv_sec += starts("futex-past") ? -1 : 100 * YEAR;
        syscall(SYS_futex, &word, 0x189, 1, &until, NULL, ~0);
    } else if (starts("futex-time-of-day")) {
        static int word = 1;
        /* FUTEX_WAIT_BITSET | PRIVATE, without CLOCK_REALTIME. */
        struct timespec until;
        CHECK(clock_gettime(CLOCK_REALTIME, &until));
        until.tv_sec += 2;
        syscall(SYS_futex, &word, 0x89, 1, &until, NULL, ~0);
    } else {
        static int word = 1;
        /* FUTEX_WAIT | PRIVATE: a relative timeout. */
        syscall(SYS_futex, &word, 0x80, 1, &ts, NULL, 0);
    }
}

static void *waiter(void *arg) {
    take_seat(seat);
    pthread_barrier_wait(&begin);
    about_to_wait(seat);
    do {
        wait_once();
        /* A loop of calls that return at once must not eat the machine the tests share. */
        if (returns_at_once()) {
            struct timespec breath = {0, 2000000};
            nanosleep(&breath, NULL);
        }
    } while (mode->loops);
    die("%s returned", mode->name);
    return arg;
}

int main(int argc, char **argv) {
    for (size_t i = 0; i < sizeof modes / sizeof *modes; i++)
        if (argc > 1 && is_mode(argv[1], modes[i].name)) mode = &modes[i];
    if (!mode) die("usage: timeouts MODE [after-line]");
    victim_init();
    fd = silent_pipe();
    ep = epoll_create1(EPOLL_CLOEXEC);
    struct epoll_event ev = {.events = EPOLLIN};
    CHECK(epoll_ctl(ep, EPOLL_CTL_ADD, fd, &ev));
    /* Those that return at once sleep between calls, and the truth cannot promise which call one sees. */
    seat = returns_at_once() ? new_seat("waiter", NULL, 0) : new_seat("waiter", mode->syscall, mode->number);
    PCHECK(pthread_barrier_init(&begin, NULL, 2));
    start_thread(waiter, NULL);
    if (argc > 2) await_line();
    pthread_barrier_wait(&begin);
    print_truth(getpid(), mode->name, ",\"call\":\"%s\",\"loops\":%s,\"timeout\":{\"kind\":\"%s\",\"raw\":\"%s\"}", mode->syscall,
                mode->loops ? "true" : "false", mode->kind, mode->raw);
    stay();
}
