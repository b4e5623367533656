/* A connection attempt nobody answers: a loopback listener whose backlog is full drops the SYN.
 *
 *   connects blocking       thread "dialer" is in connect()
 *   connects nonblocking    thread "dialer" waits in poll(POLLOUT, -1) for a non-blocking connect
 *   connects established    healthy: connected to a listener that accepts, and reads from it
 *
 * Truth: "remote" ("127.0.0.1:port"), "local", "fd" of the socket. TCP_INFO says SYN_SENT before truth is told.
 */
#include "victim.h"
#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>

static struct sockaddr_in where;
static struct seat *seat;
static int dial_fd;
static const char *mode;

static int tcp_state(int fd) {
    struct tcp_info info;
    socklen_t len = sizeof info;
    CHECK(getsockopt(fd, IPPROTO_TCP, TCP_INFO, &info, &len));
    return info.tcpi_state;
}

static void *dialer(void *arg) {
    take_seat(seat);
    int r = connect(dial_fd, (struct sockaddr *)&where, sizeof where);
    if (is_mode(mode, "nonblocking")) {
        if (r == 0 || errno != EINPROGRESS) die("connect was answered");
        struct pollfd p = {dial_fd, POLLOUT, 0};
        poll(&p, 1, -1);
    } else if (is_mode(mode, "established")) {
        about_to_wait(seat);
        read_for_ever(dial_fd);
    }
    return arg; /* the kernel gave up (two minutes) */
}

int main(int argc, char **argv) {
    mode = argc == 2 ? argv[1] : "";
    victim_init();
    bool healthy = is_mode(mode, "established");
    if (is_mode(mode, "blocking")) seat = new_seat("dialer", "connect", SYS_connect);
    else if (is_mode(mode, "nonblocking")) seat = new_seat("dialer", "poll", SYS_poll);
    else if (healthy) seat = new_seat("dialer", "read", SYS_read);
    else die("usage: connects blocking|nonblocking|established");
    int listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    where.sin_family = AF_INET;
    where.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    CHECK(bind(listener, (struct sockaddr *)&where, sizeof where));
    socklen_t len = sizeof where;
    CHECK(getsockname(listener, (struct sockaddr *)&where, &len));
    CHECK(listen(listener, healthy ? 8 : 0));
    if (!healthy) {
        /* A backlog of 0 has room for one; it is completed by the kernel and never accepted. */
        int filler = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
        CHECK(connect(filler, (struct sockaddr *)&where, sizeof where));
    }
    dial_fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | (is_mode(mode, "nonblocking") ? SOCK_NONBLOCK : 0), 0);
    start_thread(dialer, NULL);
    if (healthy && accept(listener, NULL, NULL) < 0) die("accept");
    await_seat(seat);
    if (tcp_state(dial_fd) != (healthy ? TCP_ESTABLISHED : TCP_SYN_SENT)) die("socket is in state %d", tcp_state(dial_fd));
    struct sockaddr_in local;
    len = sizeof local;
    CHECK(getsockname(dial_fd, (struct sockaddr *)&local, &len));
    print_truth(getpid(), mode, ",\"remote\":\"127.0.0.1:%d\",\"local\":\"127.0.0.1:%d\",\"fd\":%d", ntohs(where.sin_port),
                ntohs(local.sin_port), dial_fd);
    stay();
}
