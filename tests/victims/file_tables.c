/* Descriptors of every kind that could be taken for a socket, or missed.
 *
 *   file_tables COUNT       COUNT unconnected sockets besides; COUNT 0 is a process with few descriptors
 *
 * A listening and a connected TCP socket with both ends, UDP, unix stream (listener, both ends), datagram and seqpacket, netlink;
 * one that came through SCM_RIGHTS while its first descriptor was closed; the same socket under two descriptors; O_PATH
 * descriptors of a socket and of the file that a unix socket is bound to; pipe, eventfd, epoll, file. A thread with a table of its
 * own (unshare) has two sockets more, and has closed one that its process still has.
 * Truth: "sockets" is how many descriptors of the main thread lead to sockets, "passed" the one that came through SCM_RIGHTS,
 * "own" one that only the thread has.
 */
#include "victim.h"
#include <arpa/inet.h>
#include <linux/netlink.h>
#include <netinet/in.h>
#include <sched.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/un.h>

static int sockets;
static int closed_by_thread, own;
static struct seat *seat;

static int counted(int fd) {
    if (fd < 0) die("a descriptor");
    sockets++;
    return fd;
}

static void tcp(void) {
    struct sockaddr_in where = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t len = sizeof where;
    int listener = counted(socket(AF_INET, SOCK_STREAM, 0));
    CHECK(bind(listener, (struct sockaddr *)&where, len));
    CHECK(listen(listener, 8));
    CHECK(getsockname(listener, (struct sockaddr *)&where, &len));
    int client = counted(socket(AF_INET, SOCK_STREAM, 0));
    CHECK(connect(client, (struct sockaddr *)&where, sizeof where));
    counted(accept(listener, NULL, NULL));
}

static void named_unix(void) {
    struct sockaddr_un where = {.sun_family = AF_UNIX};
    snprintf(where.sun_path, sizeof where.sun_path, "/tmp/file_tables-%d-%d", (int)getpid(), rand());
    int listener = counted(socket(AF_UNIX, SOCK_STREAM, 0));
    CHECK(bind(listener, (struct sockaddr *)&where, sizeof where));
    CHECK(listen(listener, 8));
    /* Its inode is one of the file system that has the name: not the socket. */
    if (open(where.sun_path, O_PATH) < 0) die("O_PATH of %s", where.sun_path);
    CHECK(unlink(where.sun_path));
}

/* A socket whose first descriptor is gone before the second one comes. */
static int passed(void) {
    int way[2];
    CHECK(socketpair(AF_UNIX, SOCK_DGRAM, 0, way));
    int sent = socket(AF_INET, SOCK_DGRAM, 0);
    if (sent < 0) die("socket");
    char byte = 'x';
    struct iovec data = {&byte, 1};
    union {
        struct cmsghdr head;
        char space[CMSG_SPACE(sizeof(int))];
    } control = {.head = {CMSG_LEN(sizeof(int)), SOL_SOCKET, SCM_RIGHTS}};
    memcpy(CMSG_DATA(&control.head), &sent, sizeof sent);
    struct msghdr message = {.msg_iov = &data, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof control.space};
    if (sendmsg(way[0], &message, 0) != 1) die("sendmsg");
    CHECK(close(sent));
    message.msg_controllen = sizeof control.space;
    if (recvmsg(way[1], &message, 0) != 1) die("recvmsg");
    int fd;
    memcpy(&fd, CMSG_DATA(&control.head), sizeof fd);
    CHECK(close(way[0]));
    CHECK(close(way[1]));
    return counted(fd);
}

static void *apart(void *arg) {
    take_seat(seat);
    CHECK(unshare(CLONE_FILES));
    int quiet = silent_pipe();
    CHECK(close(closed_by_thread));
    int pair[2];
    CHECK(socketpair(AF_UNIX, SOCK_STREAM, 0, pair));
    /* The other one has the number of the descriptor that was closed. */
    own = pair[1];
    about_to_wait(seat);
    read_for_ever(quiet);
    return arg;
}

int main(int argc, char **argv) {
    int count = argc == 2 ? atoi(argv[1]) : -1;
    if (count < 0) die("usage: file_tables COUNT");
    victim_init();
    struct rlimit limit = {(rlim_t)count + 256, (rlim_t)count + 256};
    if (count > 0) CHECK(setrlimit(RLIMIT_NOFILE, &limit));
    int pair[2], ends[2];
    tcp();
    named_unix();
    for (int n = 0; n < count; n++) counted(socket(AF_INET, n % 2 ? SOCK_DGRAM : SOCK_STREAM, 0));
    static const int kinds[] = {SOCK_STREAM, SOCK_DGRAM, SOCK_SEQPACKET};
    for (int n = 0; n < 3; n++) {
        CHECK(socketpair(AF_UNIX, kinds[n], 0, pair));
        counted(pair[0]);
        counted(pair[1]);
    }
    counted(socket(AF_NETLINK, SOCK_RAW, NETLINK_ROUTE));
    closed_by_thread = counted(socket(AF_INET, SOCK_DGRAM, 0));
    counted(dup(closed_by_thread));
    int far = passed();
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", far);
    /* A link to a socket leads to it, and says so, though nothing can be read there. */
    counted(open(link, O_PATH));
    CHECK(pipe(ends));
    if (eventfd(0, 0) < 0 || epoll_create1(0) < 0 || open("/proc/self/exe", O_RDONLY) < 0) die("a descriptor");
    seat = new_seat("apart", "read", SYS_read);
    start_thread(apart, NULL);
    await_seat(seat);
    print_truth(getpid(), "file_tables", ",\"sockets\":%d,\"passed\":%d,\"own\":%d", sockets, far, own);
    stay();
}
