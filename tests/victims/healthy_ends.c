/* Processes that are joined by pipes and sockets, and healthy.
 *
 *   healthy_ends pipeline     a | b | c, all waiting for input that may come
 *   healthy_ends worker       a worker reads commands from its parent, which polls for answers and for its own input
 *   healthy_ends self-pipe    a thread reads a pipe that another thread of its process writes
 *   healthy_ends both-ends    parent and child both have both ends of a pipe; the child reads, the parent waits for a signal
 *   healthy_ends ping-pong    two processes answer each other over pipes, without end
 *   healthy_ends socket-pong  likewise over a unix socketpair
 */
#include "victim.h"
#include <sys/socket.h>

static int p[3][2];
static struct seat *a, *b, *c;
static volatile int *rounds;

static void keep(int x, int y) {
    for (int i = 0; i < 6; i++) {
        int fd = p[i / 2][i % 2];
        if (fd > 0 && fd != x && fd != y) close(fd);
    }
}
static void make_pipes(int n) {
    for (int i = 0; i < n; i++) CHECK(pipe2(p[i], O_CLOEXEC));
}

/* What cat(1) does. */
static void copy(struct seat *s, int from, int to) {
    char block[512];
    take_seat(s);
    for (;;) {
        ssize_t n = read(from, block, sizeof block);
        if (n <= 0 || write(to, block, (size_t)n) != n) return;
    }
}
static void stage_1(void) { keep(p[0][0], p[1][1]); copy(a, p[0][0], p[1][1]); }
static void stage_2(void) { keep(p[1][0], p[2][1]); copy(b, p[1][0], p[2][1]); }
static void stage_3(void) { keep(p[2][0], -1); copy(c, p[2][0], 2); }

static void work(void) { keep(p[0][0], p[1][1]); copy(b, p[0][0], p[1][1]); }
static void lead(void) {
    take_seat(a);
    child(work);
    keep(p[0][1], p[1][0]);
    struct pollfd set[] = {{.fd = p[1][0], .events = POLLIN}, {.fd = silent_pipe(), .events = POLLIN}};
    poll(set, 2, -1);
}

static void *reads_own(void *arg) {
    take_seat(arg);
    read_for_ever(p[0][0]);
    return NULL;
}
static void with_self_pipe(void) {
    start_thread(reads_own, a);
    for (;;) pause();
}

static void reads_both(void) { take_seat(b); read_for_ever(p[0][0]); }
static void waits_both(void) {
    take_seat(a);
    child(reads_both);
    for (;;) pause();
}

static void answer(int from, int to) {
    char ball;
    for (;;) {
        if (read(from, &ball, 1) != 1 || write(to, &ball, 1) != 1) return;
        __atomic_add_fetch(rounds, 1, __ATOMIC_SEQ_CST);
    }
}
static bool sockets;
static void ping(void) {
    keep(sockets ? p[0][0] : p[1][0], p[0][sockets ? 0 : 1]);
    take_seat(a);
    int from = sockets ? p[0][0] : p[1][0], to = p[0][sockets ? 0 : 1];
    if (write(to, "o", 1) != 1) die("write");
    answer(from, to);
}
static void pong(void) {
    int from = p[0][sockets ? 1 : 0], to = sockets ? p[0][1] : p[1][1];
    keep(from, to);
    take_seat(b);
    answer(from, to);
}

int main(int argc, char **argv) {
    const char *mode = argc == 2 ? argv[1] : "";
    victim_init();
    rounds = shared_memory(sizeof *rounds);
    if (is_mode(mode, "pipeline")) {
        make_pipes(3);
        a = new_seat("produce", "read", SYS_read);
        b = new_seat("filter", "read", SYS_read);
        c = new_seat("consume", "read", SYS_read);
        child(stage_1);
        child(stage_2);
        child(stage_3);
        keep(p[0][1], -1);
    } else if (is_mode(mode, "worker")) {
        make_pipes(2);
        a = new_seat("leader", "poll", SYS_poll);
        b = new_seat("worker", "read", SYS_read);
        child(lead);
        keep(-1, -1);
    } else if (is_mode(mode, "self-pipe")) {
        make_pipes(1);
        a = new_seat("reader", "read", SYS_read);
        child(with_self_pipe);
        keep(-1, -1);
    } else if (is_mode(mode, "both-ends")) {
        make_pipes(1);
        a = new_seat("parent", "pause", SYS_pause);
        b = new_seat("child", "read", SYS_read);
        child(waits_both);
        keep(-1, -1);
    } else if (is_mode(mode, "ping-pong") || is_mode(mode, "socket-pong")) {
        sockets = is_mode(mode, "socket-pong");
        if (sockets) CHECK(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, p[0]));
        else make_pipes(2);
        a = new_seat("ping", NULL, 0);
        b = new_seat("pong", NULL, 0);
        child(ping);
        child(pong);
        keep(-1, -1);
        while (*rounds < 1000) breathe();
    } else {
        die("usage: healthy_ends pipeline|worker|self-pipe|both-ends|ping-pong|socket-pong");
    }
    char pids[128] = "";
    list_pids(pids, sizeof pids);
    print_truth(seats[0].pid, mode, ",\"pids\":[%s]", pids);
    stay();
}
