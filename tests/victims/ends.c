/* Waits that end only by way of the other end of a pipe, a socket or a process.
 *
 *   ends pipes DIR        two processes, two pipes, both full, each writes and neither reads
 *   ends socketpair DIR   likewise over one unix socketpair
 *   ends fifos DIR        each reads the FIFO that only the other can write
 *   ends child DIR        a parent waits for its child, which reads a pipe that only the parent can write
 *   ends unread DIR       a parent waits for its child, which writes into a full pipe that only the parent can read
 *   ends threads DIR      likewise, and the parent has a worker at rest
 *   ends tcp DIR          both write, all buffers full, over loopback
 *   ends veth DIR         likewise between two network namespaces (needs ip(8))
 *   ends chain DIR        flock held by one that reads from one that waits for a child that sleeps
 *   ends poll DIR         poll of a pipe to read and one to write, of other processes
 *   ends epoll DIR        epoll_wait on socketpairs of two processes
 *   ends select DIR       select on socketpairs of two processes, one of them to write as well
 *   ends pidfd DIR        poll of a pidfd and an eventfd that another process has
 *   ends waitid DIR       waitid(P_PIDFD)
 *
 * "ends" lists, per waiting thread and descriptor, who has the other end. FIFOs and files lie in DIR.
 */
#include "victim.h"
#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/file.h>
#include <sys/select.h>
#include <sys/socket.h>

enum { PAIRS = 3 };
static int p[PAIRS][2];
static struct seat *a, *b, *c, *d;
static char path[2][PATH_MAX], text[4096];
static struct { volatile int holding, port; volatile pid_t pids[4]; volatile int fds[4]; } *shared;

static void arrive(void) { __atomic_add_fetch(&shared->holding, 1, __ATOMIC_SEQ_CST); }
static void await(int n) {
    while (__atomic_load_n(&shared->holding, __ATOMIC_SEQ_CST) < n) breathe();
}

/* Closes every end but these. */
static void keep(int x, int y, int z) {
    for (int i = 0; i < PAIRS * 2; i++) {
        int fd = p[i / 2][i % 2];
        if (fd > 0 && fd != x && fd != y && fd != z) close(fd);
    }
}

static void make_pipes(int n) {
    for (int i = 0; i < n; i++) CHECK(pipe2(p[i], O_CLOEXEC));
}
static void make_pairs(int n) {
    for (int i = 0; i < n; i++) CHECK(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, p[i]));
}

/* Writes until nothing fits any more, and on. */
static void fill(struct seat *s, int fd) {
    static char block[65536];
    about_to_wait(s);
    for (;;) if (write(fd, block, sizeof block) < 0) die("write");
}
static void rest(void) { read_for_ever(silent_pipe()); }

/* One line of "ends": the thread waits at fd; `by` has the other end as `far`. */
static void end_of(struct seat *s, int fd, bool member, struct seat *by, int far) {
    size_t used = strlen(text);
    snprintf(text + used, sizeof text - used, "%s{\"name\":\"%s\",\"fd\":%d,\"member\":%s,\"pid\":%d,\"far\":%d}", used ? "," : "", s->name,
             fd, member ? "true" : "false", by->pid, far);
}

static void pipes_a(void) { keep(p[0][1], p[1][0], -1); take_seat(a); fill(a, p[0][1]); }
static void pipes_b(void) { keep(p[1][1], p[0][0], -1); take_seat(b); fill(b, p[1][1]); }
static void pair_a(void) { keep(p[0][0], -1, -1); take_seat(a); fill(a, p[0][0]); }
static void pair_b(void) { keep(p[0][1], -1, -1); take_seat(b); fill(b, p[0][1]); }

static int open_end(int i, int flags) {
    int fd = open(path[i], flags | O_CLOEXEC);
    if (fd < 0) die("open %s", path[i]);
    return fd;
}
static void fifo_a(void) {
    take_seat(a);
    int from = open_end(0, O_RDONLY);
    shared->fds[0] = from;
    shared->fds[1] = open_end(1, O_WRONLY);
    arrive();
    about_to_wait(a);
    read_for_ever(from);
}
static void fifo_b(void) {
    take_seat(b);
    shared->fds[2] = open_end(0, O_WRONLY);
    int from = open_end(1, O_RDONLY);
    shared->fds[3] = from;
    arrive();
    about_to_wait(b);
    read_for_ever(from);
}

static bool has_worker;
static void *worker(void *none) {
    pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
    pthread_cond_t work = PTHREAD_COND_INITIALIZER;
    pthread_mutex_lock(&lock);
    for (;;) pthread_cond_wait(&work, &lock);
    return none;
}
static void writer_to_parent(void) { keep(p[0][1], -1, -1); take_seat(b); fill(b, p[0][1]); }
static void parent_that_does_not_read(void) {
    keep(p[0][0], p[0][1], -1);
    pid_t pid = child(writer_to_parent);
    close(p[0][1]);
    take_seat(a);
    pthread_t thread;
    if (has_worker) CHECK(pthread_create(&thread, NULL, worker, NULL));
    about_to_wait(a);
    wait4(pid, NULL, 0, NULL);
}

static void reader_of_parent(void) {
    keep(p[0][0], -1, -1);
    take_seat(b);
    arrive();
    about_to_wait(b);
    read_for_ever(p[0][0]);
}
static void waiting_parent(void) {
    take_seat(a);
    pid_t pid = child(reader_of_parent);
    close(p[0][0]);
    await(1);
    about_to_wait(a);
    wait4(pid, NULL, 0, NULL);
}

/* Small buffers, so that they are full soon. */
static int tcp_socket(void) {
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), size = 16384;
    if (fd < 0) die("socket");
    CHECK(setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &size, sizeof size));
    CHECK(setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &size, sizeof size));
    return fd;
}
static const char *server_address = "127.0.0.1";
static bool in_namespaces;
static struct sockaddr_in server(int port) {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
    inet_pton(AF_INET, server_address, &address.sin_addr);
    return address;
}
static void run(const char *command) {
    if (system(command) != 0) die("%s", command);
}
static void tcp_a(void) {
    take_seat(a);
    if (in_namespaces) {
        CHECK(unshare(CLONE_NEWNET));
        arrive();
        await(2);
        char command[512];
        snprintf(command, sizeof command, "ip link add far0 type veth peer name near0 && ip link set near0 netns %d && "
                 "ip addr add 10.99.0.1/24 dev far0 && ip link set far0 up && ip link set lo up", b->pid);
        run(command);
        arrive();
    }
    int listener = tcp_socket();
    struct sockaddr_in address = server(0);
    socklen_t size = sizeof address;
    CHECK(bind(listener, (struct sockaddr *)&address, size));
    CHECK(listen(listener, 1));
    CHECK(getsockname(listener, (struct sockaddr *)&address, &size));
    shared->port = ntohs(address.sin_port);
    int fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
    if (fd < 0) die("accept");
    shared->fds[0] = fd;
    fill(a, fd);
}
static void tcp_b(void) {
    take_seat(b);
    if (in_namespaces) {
        await(1);
        CHECK(unshare(CLONE_NEWNET));
        arrive();
        await(3);
        run("ip addr add 10.99.0.2/24 dev near0 && ip link set near0 up");
    }
    while (!shared->port) breathe();
    int fd = tcp_socket();
    struct sockaddr_in address = server(shared->port);
    CHECK(connect(fd, (struct sockaddr *)&address, sizeof address));
    shared->fds[1] = fd;
    fill(b, fd);
}

static int open_lock(void) {
    int fd = open(path[0], O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    if (fd < 0) die("open %s", path[0]);
    return fd;
}
static void chain_1(void) {
    keep(-1, -1, -1);
    take_seat(a);
    int fd = open_lock();
    /* Both who arrive: one of them has the lock. */
    await(2);
    about_to_wait(a);
    CHECK(flock(fd, LOCK_EX));
}
static void chain_2(void) {
    keep(p[0][0], -1, -1);
    take_seat(b);
    CHECK(flock(open_lock(), LOCK_EX));
    arrive();
    about_to_wait(b);
    read_for_ever(p[0][0]);
}
static void chain_4(void) {
    keep(-1, -1, -1);
    take_seat(d);
    arrive();
    about_to_wait(d);
    struct timespec hour = {.tv_sec = 3600};
    clock_nanosleep(CLOCK_REALTIME, 0, &hour, NULL);
}
static void chain_3(void) {
    keep(p[0][1], -1, -1);
    take_seat(c);
    pid_t pid = child(chain_4);
    about_to_wait(c);
    wait4(pid, NULL, 0, NULL);
}

static void has_first(void) { keep(p[0][1], -1, -1); take_seat(b); arrive(); about_to_wait(b); rest(); }
static void has_second(void) { keep(p[1][1], -1, -1); take_seat(c); arrive(); about_to_wait(c); rest(); }
static void has_reader(void) { keep(p[1][0], -1, -1); take_seat(c); arrive(); about_to_wait(c); rest(); }

static void polls_pipes(void) {
    static char page[4096];
    keep(p[0][0], p[1][1], -1);
    take_seat(a);
    CHECK(fcntl(p[1][1], F_SETFL, O_NONBLOCK));
    while (write(p[1][1], page, sizeof page) > 0) { }
    struct pollfd set[] = {{.fd = p[0][0], .events = POLLIN}, {.fd = -1, .events = POLLIN}, {.fd = p[1][1], .events = POLLOUT}};
    await(2);
    about_to_wait(a);
    poll(set, 3, -1);
}
static void polls_epoll(void) {
    keep(p[0][0], p[1][0], -1);
    take_seat(a);
    int fd = epoll_create1(EPOLL_CLOEXEC);
    for (int i = 0; i < 2; i++) {
        struct epoll_event event = {.events = EPOLLIN | EPOLLRDHUP | (i ? EPOLLET : 0), .data.fd = p[i][0]};
        CHECK(epoll_ctl(fd, EPOLL_CTL_ADD, p[i][0], &event));
    }
    await(2);
    about_to_wait(a);
    struct epoll_event got;
    epoll_wait(fd, &got, 1, -1);
}
static void polls_select(void) {
    static char page[4096];
    keep(p[0][0], p[1][0], -1);
    take_seat(a);
    CHECK(fcntl(p[1][0], F_SETFL, O_NONBLOCK));
    while (write(p[1][0], page, sizeof page) > 0) { }
    fd_set reads, writes;
    FD_ZERO(&reads);
    FD_ZERO(&writes);
    for (int i = 0; i < 2; i++) FD_SET(p[i][0], &reads);
    FD_SET(p[1][0], &writes);
    await(2);
    about_to_wait(a);
    /* Not by way of the C library, which may call pselect6(2) for it. */
    syscall(SYS_select, 1 + (p[0][0] > p[1][0] ? p[0][0] : p[1][0]), &reads, &writes, NULL, NULL);
}

static int pidfd, counter;
static void polls_pidfd(void) {
    take_seat(a);
    struct pollfd set[] = {{.fd = pidfd, .events = POLLIN}, {.fd = counter, .events = POLLIN}};
    await(1);
    about_to_wait(a);
    poll(set, 2, -1);
}
static void has_counter(void) { take_seat(b); arrive(); about_to_wait(b); rest(); }
static void waits_pidfd(void) {
    take_seat(a);
    pid_t pid = child(has_counter);
    pidfd = (int)syscall(SYS_pidfd_open, pid, 0);
    if (pidfd < 0) die("pidfd_open");
    shared->fds[0] = pidfd;
    await(1);
    about_to_wait(a);
    syscall(SYS_waitid, 3 /* P_PIDFD */, pidfd, NULL, WEXITED, NULL);
}

#define SEAT(name, call) new_seat(name, #call, SYS_##call)

int main(int argc, char **argv) {
    if (argc != 3) die("usage: ends MODE DIR");
    const char *mode = argv[1];
    victim_init();
    shared = shared_memory(sizeof *shared);
    for (int i = 0; i < 2; i++) snprintf(path[i], sizeof path[i], "%s/%s-%d", argv[2], i ? "replies" : "requests", getpid());
    if (is_mode(mode, "pipes") || is_mode(mode, "socketpair")) {
        bool pipes = is_mode(mode, "pipes");
        if (pipes) make_pipes(2); else make_pairs(1);
        a = SEAT("left", write);
        b = SEAT("right", write);
        child(pipes ? pipes_a : pair_a);
        child(pipes ? pipes_b : pair_b);
        keep(-1, -1, -1);
        await_seat(a);
        await_seat(b);
        end_of(a, pipes ? p[0][1] : p[0][0], false, b, pipes ? p[0][0] : p[0][1]);
        end_of(b, pipes ? p[1][1] : p[0][1], false, a, pipes ? p[1][0] : p[0][0]);
    } else if (is_mode(mode, "fifos")) {
        for (int i = 0; i < 2; i++) CHECK(mkfifo(path[i], 0600));
        a = SEAT("left", read);
        b = SEAT("right", read);
        child(fifo_a);
        child(fifo_b);
        await(2);
        end_of(a, shared->fds[0], false, b, shared->fds[2]);
        end_of(b, shared->fds[3], false, a, shared->fds[1]);
    } else if (is_mode(mode, "child")) {
        make_pipes(1);
        a = SEAT("parent", wait4);
        b = SEAT("child", read);
        child(waiting_parent);
        keep(-1, -1, -1);
        await_seat(b);
        end_of(b, p[0][0], false, a, p[0][1]);
    } else if (is_mode(mode, "unread") || is_mode(mode, "threads")) {
        has_worker = is_mode(mode, "threads");
        make_pipes(1);
        a = SEAT("parent", wait4);
        b = SEAT("child", write);
        child(parent_that_does_not_read);
        keep(-1, -1, -1);
        await_seat(a);
        await_seat(b);
        end_of(b, p[0][1], false, a, p[0][0]);
    } else if (is_mode(mode, "tcp") || is_mode(mode, "veth")) {
        in_namespaces = is_mode(mode, "veth");
        if (in_namespaces) server_address = "10.99.0.1";
        a = SEAT("server", write);
        b = SEAT("client", write);
        child(tcp_a);
        child(tcp_b);
        while (!shared->fds[0] || !shared->fds[1]) breathe();
        end_of(a, shared->fds[0], false, b, shared->fds[1]);
        end_of(b, shared->fds[1], false, a, shared->fds[0]);
    } else if (is_mode(mode, "chain")) {
        make_pipes(1);
        a = SEAT("first", flock);
        b = SEAT("second", read);
        c = SEAT("third", wait4);
        d = SEAT("fourth", clock_nanosleep);
        child(chain_1);
        child(chain_2);
        child(chain_3);
        keep(-1, -1, -1);
        await(2);
        while (!c->tid) breathe();
        end_of(b, p[0][0], false, c, p[0][1]);
    } else if (is_mode(mode, "poll")) {
        make_pipes(2);
        a = SEAT("poller", poll);
        b = SEAT("writer", read);
        c = SEAT("reader", read);
        child(polls_pipes);
        child(has_first);
        child(has_reader);
        keep(-1, -1, -1);
        await(2);
        end_of(a, p[0][0], true, b, p[0][1]);
        end_of(a, p[1][1], true, c, p[1][0]);
    } else if (is_mode(mode, "epoll") || is_mode(mode, "select")) {
        make_pairs(2);
        bool epoll = is_mode(mode, "epoll");
        a = epoll ? SEAT("poller", epoll_wait) : SEAT("poller", select);
        b = SEAT("first", read);
        c = SEAT("second", read);
        child(epoll ? polls_epoll : polls_select);
        child(has_first);
        child(has_second);
        keep(-1, -1, -1);
        await(2);
        end_of(a, p[0][0], true, b, p[0][1]);
        end_of(a, p[1][0], true, c, p[1][1]);
    } else if (is_mode(mode, "pidfd")) {
        counter = eventfd(0, EFD_CLOEXEC);
        a = SEAT("poller", poll);
        b = SEAT("other", read);
        pid_t pid = child(has_counter);
        pidfd = (int)syscall(SYS_pidfd_open, pid, 0);
        if (counter < 0 || pidfd < 0) die("eventfd, pidfd_open");
        child(polls_pidfd);
        close(counter);
        await(1);
        end_of(a, counter, true, b, counter);
        while (!a->tid) breathe();
        end_of(a, counter, true, a, counter);
        shared->fds[0] = pidfd;
    } else if (is_mode(mode, "waitid")) {
        a = SEAT("parent", waitid);
        b = SEAT("child", read);
        child(waits_pidfd);
        await(1);
    } else {
        die("usage: ends pipes|socketpair|fifos|child|tcp|veth|chain|poll|epoll|select|pidfd|waitid|unread|threads DIR");
    }
    char pids[128] = "";
    list_pids(pids, sizeof pids);
    print_truth(seats[0].pid, mode, ",\"pids\":[%s],\"ends\":[%s],\"pidfd\":%d", pids, text, shared->fds[0]);
    stay();
}
