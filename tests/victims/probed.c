/* Makes the calls it is told to, one order a line on stdin, and answers each with a line: "done", or a number.
 * For tests of the probes, which count what was called. */
#include "victim.h"
#include <linux/futex.h>
#include <netinet/in.h>
#include <stdatomic.h>
#include <sys/epoll.h>
#include <sys/select.h>
#include <sys/socket.h>

static int ready[2]; /* a pipe with a byte in it: what polls it returns at once */
static pthread_t waiter;
static _Atomic uint32_t word;
static volatile pid_t waiter_tid;

static long futex(_Atomic uint32_t *at, int op, uint32_t value) {
    return syscall(SYS_futex, at, op | FUTEX_PRIVATE_FLAG, value, NULL, NULL, FUTEX_BITSET_MATCH_ANY);
}

/* One set for all, as a loop has it: of two descriptors, both ready or (below 0) to be left out. */
static struct pollfd set[2];

static NOINLINE int poll_set(int fd, int timeout) {
    set[0] = set[1] = (struct pollfd){fd, POLLIN, 0};
    return poll(set, 2, timeout);
}

static NOINLINE int poll_ready(int timeout) { return poll_set(ready[0], timeout) / 2; }

static NOINLINE void polls(int n, int timeout) {
    for (int i = 0; i < n; i++)
        if (poll_set(-1, timeout) != 0) die("poll");
}

/* As a resolver does, whose set is elsewhere. */
static NOINLINE void polls_elsewhere(int n) {
    struct pollfd other[2] = {{-1, POLLIN, 0}, {-1, POLLIN, 0}};
    for (int i = 0; i < n; i++)
        if (poll(other, 2, 1) != 0) die("poll");
}

/* Until another thread sleeps in the call. */
static void asleep_in(pid_t tid, long call) {
    char path[64], text[64];
    snprintf(path, sizeof path, "/proc/self/task/%d/syscall", tid);
    for (int i = 0; i < READY_DEADLINE_MS; i++) {
        int fd = open(path, O_RDONLY);
        ssize_t n = fd < 0 ? -1 : read(fd, text, sizeof text - 1);
        if (fd >= 0) close(fd);
        if (n > 0) {
            text[n] = 0;
            if (text[0] != 'r' && strtol(text, NULL, 10) == call) return;
        }
        usleep(1000);
    }
    die("thread %d never slept in %ld", tid, call);
}

static void *wait_for_turns(void *turns) {
    waiter_tid = (pid_t)syscall(SYS_gettid);
    for (long i = 0; i < (long)turns; i++) {
        while (atomic_load(&word) == 0) futex(&word, FUTEX_WAIT, 0);
        atomic_store(&word, 0);
    }
    return NULL;
}

/* Wakes one thread n times, each time out of a sleep. */
static void handoff(long n) {
    waiter_tid = 0;
    PCHECK(pthread_create(&waiter, NULL, wait_for_turns, (void *)n));
    while (waiter_tid == 0) sched_yield();
    for (long i = 0; i < n; i++) {
        asleep_in(waiter_tid, SYS_futex);
        atomic_store(&word, 1);
        if (futex(&word, FUTEX_WAKE, 1) != 1) die("nobody was woken");
        while (atomic_load(&word) != 0) sched_yield();
    }
    PCHECK(pthread_join(waiter, NULL));
}

static void nothing(int signal) { (void)signal; }

#define MOST_WORDS 1024
static _Atomic uint32_t words[MOST_WORDS];
static _Atomic long left_words;

static void *wait_at_each(void *n) {
    waiter_tid = (pid_t)syscall(SYS_gettid);
    for (long i = 0; i < (long)n; i++) {
        while (atomic_load(&words[i]) == 0) futex(&words[i], FUTEX_WAIT, 0);
        atomic_store(&left_words, i + 1);
    }
    return NULL;
}

/* Wakes one thread out of a sleep at each of n words. */
static void wake_at_each(long n) {
    if (n > MOST_WORDS) die("too many words");
    waiter_tid = 0;
    PCHECK(pthread_create(&waiter, NULL, wait_at_each, (void *)n));
    while (waiter_tid == 0) sched_yield();
    for (long i = 0; i < n; i++) {
        asleep_in(waiter_tid, SYS_futex);
        atomic_store(&words[i], 1);
        if (futex(&words[i], FUTEX_WAKE, 1) != 1) die("nobody was woken");
        while (atomic_load(&left_words) <= i) sched_yield();
    }
    PCHECK(pthread_join(waiter, NULL));
}

#define MOST_THREADS 256
static pthread_t herd[MOST_THREADS];
static volatile pid_t herd_tids[MOST_THREADS];
static long herd_size;
static int fence[2]; /* a pipe: who polls it sleeps until its other end is closed */

static void *one_of_the_herd(void *number) {
    herd_tids[(long)number] = (pid_t)syscall(SYS_gettid);
    if (poll_ready(-5) != 1) die("poll");
    struct pollfd fd = {fence[0], POLLIN, 0};
    if (poll(&fd, 1, -1) != 1) die("poll");
    return NULL;
}

/* n threads that pass a negative timeout and then sleep without a limit. */
static void gather(long n) {
    if (n > MOST_THREADS) die("too many threads");
    CHECK(pipe(fence));
    herd_size = n;
    for (long i = 0; i < n; i++) {
        herd_tids[i] = 0;
        PCHECK(pthread_create(&herd[i], NULL, one_of_the_herd, (void *)i));
    }
    for (long i = 0; i < n; i++) {
        while (herd_tids[i] == 0) sched_yield();
        asleep_in(herd_tids[i], SYS_poll);
    }
}

static void scatter(void) {
    close(fence[1]);
    for (long i = 0; i < herd_size; i++) PCHECK(pthread_join(herd[i], NULL));
    close(fence[0]);
}

/* A call at a place of its own, with a limit that does not matter. */
#define CALL \
    { \
        long ret; \
        __asm__ volatile("syscall" : "=a"(ret) : "a"(SYS_poll), "D"(&fd), "S"(1L), "d"(1000L) : "rcx", "r11", "memory"); \
        if (ret != 1) die("poll"); \
    }
#define EIGHT(what) what what what what what what what what

static NOINLINE void places(void) {
    struct pollfd fd = {ready[0], POLLIN, 0};
    EIGHT(EIGHT(EIGHT(CALL)))
}

/* Each of six calls n times, in turn. */
static void mixed(long n) {
    struct pollfd fd = {ready[0], POLLIN, 0};
    struct epoll_event event = {.events = EPOLLIN};
    int ep = epoll_create1(EPOLL_CLOEXEC);
    CHECK(epoll_ctl(ep, EPOLL_CTL_ADD, ready[0], &event));
    for (long i = 0; i < n; i++) {
        struct timespec limit = {1, 0};
        struct timeval short_limit = {1, 0};
        fd_set set, same;
        FD_ZERO(&set);
        FD_SET(ready[0], &set);
        same = set;
        int size = ready[0] + 1;
        if (poll(&fd, 1, 1000) != 1) die("poll");
        if (syscall(SYS_ppoll, &fd, 1, &limit, NULL, 8) != 1) die("ppoll");
        if (syscall(SYS_select, size, &set, NULL, NULL, &short_limit) != 1) die("select");
        limit.tv_sec = 1;
        if (syscall(SYS_pselect6, size, &same, NULL, NULL, &limit, NULL) != 1) die("pselect6");
        if (syscall(SYS_epoll_wait, ep, &event, 1, 1000) != 1) die("epoll_wait");
        if (syscall(SYS_epoll_pwait, ep, &event, 1, 1000, NULL, 8) != 1) die("epoll_pwait");
    }
    close(ep);
}

/* A futex wait that is interrupted n times and begun again by the kernel. */
static void restarts(long n) {
    struct sigaction action = {.sa_handler = nothing, .sa_flags = SA_RESTART};
    CHECK(sigaction(SIGUSR1, &action, NULL));
    waiter_tid = 0;
    PCHECK(pthread_create(&waiter, NULL, wait_for_turns, (void *)1L));
    while (waiter_tid == 0) sched_yield();
    for (long i = 0; i < n; i++) {
        asleep_in(waiter_tid, SYS_futex);
        PCHECK(pthread_kill(waiter, SIGUSR1));
        usleep(20000);
    }
    asleep_in(waiter_tid, SYS_futex);
    atomic_store(&word, 1);
    futex(&word, FUTEX_WAKE, 1);
    PCHECK(pthread_join(waiter, NULL));
}

static void *poll_for_ever(void *unused) {
    waiter_tid = (pid_t)syscall(SYS_gettid);
    poll(NULL, 0, -1);
    return unused;
}

/* A child with two threads in a wait, killed. */
static void killed(void) {
    int up[2];
    CHECK(pipe(up));
    pid_t child = fork();
    if (child == 0) {
        waiter_tid = 0;
        PCHECK(pthread_create(&waiter, NULL, poll_for_ever, NULL));
        while (waiter_tid == 0) sched_yield();
        asleep_in(waiter_tid, SYS_poll);
        if (write(up[1], "x", 1) != 1) die("write");
        poll(NULL, 0, -1);
        _exit(4);
    }
    char byte;
    close(up[1]);
    if (read(up[0], &byte, 1) != 1) die("read");
    usleep(20000);
    CHECK(kill(child, SIGKILL));
    if (waitpid(child, NULL, 0) != child) die("waitpid");
    close(up[0]);
}

static void *exec_from_thread(void *unused) {
    polls(2, 1);
    execl("/proc/self/exe", "probed", "after-exec", NULL);
    die("exec");
    return unused;
}

/* A child whose other thread polls, then calls exec: it goes on under the leader's id, and polls once more. */
static void execs(void) {
    pid_t child = fork();
    if (child == 0) {
        PCHECK(pthread_create(&waiter, NULL, exec_from_thread, NULL));
        poll(NULL, 0, -1);
        _exit(4);
    }
    int status;
    if (waitpid(child, &status, 0) != child || status != 0) die("exec'ed child: %x", status);
}

static void *late_sender(void *fd) {
    usleep(30000);
    if (send((int)(long)fd, "x", 1, 0) != 1) die("send");
    return NULL;
}

static NOINLINE void slow_recv(void) {
    int pair[2];
    char byte;
    CHECK(socketpair(AF_UNIX, SOCK_STREAM, 0, pair));
    PCHECK(pthread_create(&waiter, NULL, late_sender, (void *)(long)pair[1]));
    if (recv(pair[0], &byte, 1, 0) != 1) die("recv");
    PCHECK(pthread_join(waiter, NULL));
    close(pair[0]);
    close(pair[1]);
}

#define MOST_ATTEMPTS 256
static int attempts[MOST_ATTEMPTS];
static long attempted;

/* A TCP socket of its own port on 127.0.0.1, which stays where it was asked for. */
static int bound(struct sockaddr_in *where) {
    socklen_t len = sizeof *where;
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    *where = (struct sockaddr_in){.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    CHECK(bind(fd, (struct sockaddr *)where, sizeof *where));
    CHECK(getsockname(fd, (struct sockaddr *)where, &len));
    return fd;
}

static int dial(const struct sockaddr_in *where) {
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (connect(fd, (const struct sockaddr *)where, sizeof *where) == 0 || errno != EINPROGRESS) die("connect was answered");
    return fd;
}

/* n connections that nobody answers: the backlog is full. */
static void attempt(long n) {
    static int listener = -1;
    static struct sockaddr_in where;
    if (n > MOST_ATTEMPTS) die("too many attempts");
    if (listener < 0) {
        listener = bound(&where);
        CHECK(listen(listener, 0));
        int filler = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
        CHECK(connect(filler, (struct sockaddr *)&where, sizeof where));
    }
    for (attempted = 0; attempted < n; attempted++) attempts[attempted] = dial(&where);
}

static void give_up(void) {
    while (attempted > 0) close(attempts[--attempted]);
}

/* A connection to a port where nobody listens. */
static void refused(void) {
    struct sockaddr_in where;
    int holder = bound(&where), fd = dial(&where), error = 0;
    socklen_t len = sizeof error;
    fd_set writable;
    FD_ZERO(&writable);
    FD_SET(fd, &writable);
    if (select(fd + 1, NULL, &writable, NULL, NULL) != 1) die("select");
    CHECK(getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &len));
    if (error != ECONNREFUSED) die("not refused: %d", error);
    close(fd);
    close(holder);
}

int main(int argc, char **argv) {
    char line[64];
    if (argc > 1 && strcmp(argv[1], "after-exec") == 0) {
        polls(1, 1);
        return 0;
    }
    setvbuf(stdout, NULL, _IOLBF, 0);
    CHECK(pipe(ready));
    if (write(ready[1], "x", 1) != 1) die("write");
    puts("up");
    while (fgets(line, sizeof line, stdin) != NULL) {
        char order[32];
        long n = 0;
        if (sscanf(line, "%31s %ld", order, &n) < 1) die("order %s", line);
        if (strcmp(order, "zero") == 0) polls((int)n, 0);
        else if (strcmp(order, "finite") == 0) polls((int)n, 1);
        else if (strcmp(order, "elsewhere") == 0) polls_elsewhere((int)n);
        else if (strcmp(order, "sleep") == 0) polls(1, (int)n);
        else if (strcmp(order, "infinite") == 0) for (long i = 0; i < n; i++) poll_ready(-1);
        else if (strcmp(order, "negative") == 0) for (long i = 0; i < n; i++) poll_ready(-5);
        else if (strcmp(order, "handoff") == 0) handoff(n);
        else if (strcmp(order, "restarts") == 0) restarts(n);
        else if (strcmp(order, "killed") == 0) killed();
        else if (strcmp(order, "execs") == 0) execs();
        else if (strcmp(order, "recv") == 0) slow_recv();
        else if (strcmp(order, "words") == 0) wake_at_each(n);
        else if (strcmp(order, "gather") == 0) gather(n);
        else if (strcmp(order, "scatter") == 0) scatter();
        else if (strcmp(order, "places") == 0) places();
        else if (strcmp(order, "mixed") == 0) mixed(n);
        else if (strcmp(order, "attempt") == 0) attempt(n);
        else if (strcmp(order, "give-up") == 0) give_up();
        else if (strcmp(order, "refused") == 0) refused();
        else die("order %s", line);
        puts("done");
    }
    return 0;
}
