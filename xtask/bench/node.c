/* A busy node at rest, for `cargo xtask bench daemon`: node PROCESSES THREADS SOCKETS
 *
 * Starts PROCESSES children; together they have THREADS threads (in conditions, epoll_wait, nanosleep and read, as servers
 * have) and SOCKETS connected TCP sockets on loopback. One thread in fifty works: it wakes ten times a second.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <signal.h>
#include <time.h>
#include <unistd.h>

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t work = PTHREAD_COND_INITIALIZER;
static int ends[2];

static void fail(const char *what) { perror(what); exit(1); }

static void *thread(void *arg) {
    long n = (long)arg;
    if (n % 50 == 0) {
        struct timespec tenth = {0, 100000000};
        for (;;) nanosleep(&tenth, NULL);
    }
    if (n % 5 == 1) {
        int epoll = epoll_create1(0);
        struct epoll_event event = {.events = EPOLLIN};
        epoll_ctl(epoll, EPOLL_CTL_ADD, ends[0], &event);
        for (;;) epoll_wait(epoll, &event, 1, -1);
    }
    if (n % 5 == 2) {
        char byte;
        for (;;) if (read(ends[0], &byte, 1) <= 0) pause();
    }
    if (n % 5 == 3) for (;;) sleep(3600);
    pthread_mutex_lock(&lock);
    for (;;) pthread_cond_wait(&work, &lock);
    return NULL;
}

static void connections(int count) {
    int listener = socket(AF_INET, SOCK_STREAM, 0);
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t len = sizeof address;
    if (bind(listener, (void *)&address, len) || listen(listener, 128) || getsockname(listener, (void *)&address, &len)) fail("listen");
    for (int i = 0; i < count / 2; i++) {
        int fd = socket(AF_INET, SOCK_STREAM, 0);
        if (connect(fd, (void *)&address, len) || accept(listener, NULL, NULL) < 0) fail("connect");
    }
}

int main(int argc, char **argv) {
    if (argc != 4) return fprintf(stderr, "node PROCESSES THREADS SOCKETS\n"), 2;
    int processes = atoi(argv[1]), threads = atoi(argv[2]) / processes, sockets = atoi(argv[3]) / processes, ready[2];
    struct rlimit most = {65536, 65536};
    setrlimit(RLIMIT_NOFILE, &most);
    if (pipe(ready)) fail("pipe");
    for (int p = 0; p < processes; p++) {
        if (fork()) continue;
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        if (pipe(ends)) fail("pipe");
        connections(sockets);
        pthread_attr_t small;
        pthread_attr_init(&small);
        pthread_attr_setstacksize(&small, 65536);
        for (long n = 1; n < threads; n++) {
            pthread_t made;
            if (pthread_create(&made, &small, thread, (void *)(n + p))) fail("pthread_create");
        }
        if (write(ready[1], "r", 1) != 1) fail("write");
        for (;;) pause();
    }
    char byte;
    for (int p = 0; p < processes; p++) if (read(ready[0], &byte, 1) != 1) fail("read");
    printf("{\"ready\":true}\n");
    fflush(stdout);
    for (;;) pause();
}
