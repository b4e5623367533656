/* A thread that gives its waits a limit a few dozen times, and then waits without one. Begins when a line arrives on stdin.
 *
 * Wrong:   peer          poll(2) at a connection whose other end, another process, stays silent
 * Healthy: several       a main loop over two descriptors whose timers come and go (glib, Qt)
 *          eventfd       the same with its own wake-up descriptor alone
 *          self-pipe     the same with a pipe of its own
 *          epoll         an event loop (libuv, nginx, Go, Java's Selector)
 *          select        the same with select(2) over two descriptors
 *          condition     the last worker of a pool: a condition with deadlines, then without
 *          listener      poll(2) at a listening socket
 *          resolver      poll(2) with a limit at a resolver's socket, then without one at a connection that rests
 */
#define _GNU_SOURCE
#include "victim.h"
#include <arpa/inet.h>
#include <netinet/in.h>
#include <poll.h>
#include <signal.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/prctl.h>
#include <sys/select.h>
#include <sys/socket.h>

#define TIMES 40
static const char *mode;
static int fds[2], ep;
static struct seat *seat;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t work = PTHREAD_COND_INITIALIZER;

static NOINLINE void wait_once(int timeout) {
    struct pollfd set[2] = {{fds[0], POLLIN, 0}, {fds[1], POLLIN, 0}};
    struct epoll_event event;
    if (is_mode(mode, "several")) {
        poll(set, 2, timeout);
    } else if (is_mode(mode, "epoll")) {
        epoll_wait(ep, &event, 1, timeout);
    } else if (is_mode(mode, "select")) {
        fd_set in;
        FD_ZERO(&in);
        FD_SET(fds[0], &in);
        FD_SET(fds[1], &in);
        struct timeval left = {0, timeout * 1000};
        select(fds[1] + 1, &in, NULL, NULL, timeout < 0 ? NULL : &left);
    } else if (is_mode(mode, "condition")) {
        pthread_mutex_lock(&lock);
        struct timespec until;
        clock_gettime(CLOCK_REALTIME, &until);
        until.tv_nsec += timeout * 1000000L;
        if (until.tv_nsec >= 1000000000L) { until.tv_nsec -= 1000000000L; until.tv_sec++; }
        if (timeout < 0) pthread_cond_wait(&work, &lock);
        else pthread_cond_timedwait(&work, &lock, &until);
        pthread_mutex_unlock(&lock);
    } else {
        poll(set, 1, timeout);
    }
}

/* One question, and no answer. */
static NOINLINE void look_up(int timeout) {
    struct pollfd question = {socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0), POLLIN, 0};
    poll(&question, 1, timeout);
    close(question.fd);
}

static void *waiter(void *arg) {
    take_seat(seat);
    for (int i = 0; i < TIMES; i++) is_mode(mode, "resolver") ? look_up(3) : wait_once(3);
    about_to_wait(seat);
    wait_once(-1);
    die("%s: the last wait returned", mode);
    return arg;
}

static void a_silent_peer(bool listening) {
    int listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    struct sockaddr_in at = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t size = sizeof at;
    CHECK(bind(listener, (struct sockaddr *)&at, size));
    CHECK(listen(listener, 1));
    CHECK(getsockname(listener, (struct sockaddr *)&at, &size));
    fds[0] = listener;
    if (listening) return;
    pid_t peer = fork();
    if (peer < 0) die("fork");
    if (peer == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        int fd = accept(listener, NULL, NULL);
        for (;;) pause();
        close(fd);
    }
    close(listener);
    fds[0] = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    CHECK(connect(fds[0], (struct sockaddr *)&at, sizeof at));
}

int main(int argc, char **argv) {
    static const char *const modes[] = {"peer", "several", "eventfd", "self-pipe", "epoll", "select", "condition", "listener", "resolver"};
    for (size_t i = 0; i < sizeof modes / sizeof *modes; i++)
        if (argc > 1 && is_mode(argv[1], modes[i])) mode = modes[i];
    if (!mode) die("usage: habits peer|several|eventfd|self-pipe|epoll|select|condition|listener|resolver");
    victim_init();
    CHECK(pipe2(fds, O_CLOEXEC));
    if (is_mode(mode, "peer") || is_mode(mode, "listener") || is_mode(mode, "resolver")) a_silent_peer(is_mode(mode, "listener"));
    else if (!is_mode(mode, "self-pipe")) fds[0] = eventfd(0, EFD_CLOEXEC);
    if (is_mode(mode, "several") || is_mode(mode, "select")) fds[1] = eventfd(0, EFD_CLOEXEC);
    ep = epoll_create1(EPOLL_CLOEXEC);
    struct epoll_event event = {.events = EPOLLIN};
    CHECK(epoll_ctl(ep, EPOLL_CTL_ADD, fds[0], &event));
    const char *call = is_mode(mode, "epoll") ? "epoll_wait" : is_mode(mode, "condition") ? "futex" : NULL;
    long number = is_mode(mode, "epoll") ? SYS_epoll_wait : SYS_futex;
    if (!call) { call = "poll"; number = SYS_poll; }
    if (is_mode(mode, "select")) { call = "pselect6"; number = SYS_pselect6; }
    seat = new_seat("waiter", call, number);
    await_line();
    start_thread(waiter, NULL);
    print_truth(getpid(), mode, ",\"calls\":%d", TIMES);
    stay();
}
