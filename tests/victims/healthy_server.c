/* A healthy epoll echo server on loopback.
 *
 *   healthy_server idle     epoll_wait(-1) on a listening socket, no client
 *   healthy_server busy     the same under load by four client threads of its own
 *
 * Truth of "busy": "port". The server thread is named "server".
 */
#include "victim.h"
#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/epoll.h>
#include <sys/socket.h>

static int listener, ep;
static struct sockaddr_in where;
static struct seat *seat;
static volatile unsigned long echoed;

static void *server(void *arg) {
    take_seat(seat);
    struct epoll_event ev = {.events = EPOLLIN, .data.fd = listener};
    CHECK(epoll_ctl(ep, EPOLL_CTL_ADD, listener, &ev));
    for (;;) {
        struct epoll_event got[16];
        int n = epoll_wait(ep, got, 16, -1);
        for (int i = 0; i < n; i++) {
            if (got[i].data.fd == listener) {
                int c = accept4(listener, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
                struct epoll_event e = {.events = EPOLLIN, .data.fd = c};
                if (c >= 0) CHECK(epoll_ctl(ep, EPOLL_CTL_ADD, c, &e));
                continue;
            }
            char buf[256];
            ssize_t r = read(got[i].data.fd, buf, sizeof buf);
            if (r <= 0) close(got[i].data.fd);
            else if (write(got[i].data.fd, buf, (size_t)r) == r) echoed++;
        }
    }
    return arg;
}

static void *client(void *arg) {
    prctl(PR_SET_NAME, "client");
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    CHECK(connect(fd, (struct sockaddr *)&where, sizeof where));
    char buf[64] = "ping";
    for (;;) {
        if (write(fd, buf, sizeof buf) != sizeof buf) die("write");
        for (size_t n = 0; n < sizeof buf;) {
            ssize_t r = read(fd, buf, sizeof buf);
            if (r <= 0) die("read");
            n += (size_t)r;
        }
    }
    return arg;
}

int main(int argc, char **argv) {
    const char *mode = argc == 2 ? argv[1] : "";
    victim_init();
    bool busy = is_mode(mode, "busy");
    if (!busy && !is_mode(mode, "idle")) die("usage: healthy_server idle|busy");
    listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    where.sin_family = AF_INET;
    where.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    socklen_t len = sizeof where;
    CHECK(bind(listener, (struct sockaddr *)&where, sizeof where));
    CHECK(getsockname(listener, (struct sockaddr *)&where, &len));
    CHECK(listen(listener, 64));
    ep = epoll_create1(EPOLL_CLOEXEC);
    seat = busy ? new_seat("server", NULL, 0) : new_seat("server", "epoll_wait", SYS_epoll_wait);
    start_thread(server, NULL);
    if (busy) {
        for (int i = 0; i < 4; i++) start_thread(client, NULL);
        while (echoed < 100) breathe();
    }
    print_truth(getpid(), mode, ",\"port\":%d", ntohs(where.sin_port));
    stay();
}
