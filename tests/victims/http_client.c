/* An HTTP client without time limits, and a server on the other end of a veth pair that reads and never answers.
 *
 *   http_client c               the client is this program: a thread that waits for an answer, and one that connects
 *                               again and again; the sockets have no limits
 *   http_client limited         the same with SO_RCVTIMEO and SO_SNDTIMEO of 30 s
 *   http_client python SCRIPT   the client is that script, given the server's address and port
 *
 * Each end has a network namespace of its own. The truth has the server's address as "peer".
 */
#define _GNU_SOURCE
#include "victim.h"
#include <arpa/inet.h>
#include <netinet/in.h>
#include <sched.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>

#define ADDRESS "10.98.0.1"
#define PORT 8080
static bool limited;

static void run(const char *command) {
    int status = system(command);
    if (status != 0) die("%s: status %d", command, status);
}

static void serve(int listener) {
    for (;;) {
        int fd = accept(listener, NULL, NULL);
        char buffer[512];
        if (fd < 0) continue;
        /* Those that ask stay open without an answer; those that hang up are closed. */
        if (read(fd, buffer, sizeof buffer) <= 0) close(fd);
    }
}

static NOINLINE int open_connection(void) {
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons(PORT)};
    inet_pton(AF_INET, ADDRESS, &to.sin_addr);
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0) die("socket");
    if (limited) {
        struct timeval half_a_minute = {30, 0};
        CHECK(setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &half_a_minute, sizeof half_a_minute));
        CHECK(setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &half_a_minute, sizeof half_a_minute));
    }
    CHECK(connect(fd, (struct sockaddr *)&to, sizeof to));
    return fd;
}

static NOINLINE ssize_t read_answer(int fd) {
    char buffer[512];
    ssize_t n = recv(fd, buffer, sizeof buffer, 0);
    __asm__ volatile("" ::: "memory");
    return n;
}

static NOINLINE ssize_t fetch(void) {
    static const char request[] = "GET /health HTTP/1.1\r\nHost: x\r\n\r\n";
    int fd = open_connection();
    if (write(fd, request, sizeof request - 1) < 0) die("write");
    ssize_t n = read_answer(fd);
    close(fd);
    return n;
}

static void *checker(void *seat) {
    take_seat(seat);
    about_to_wait(seat);
    for (;;) fetch();
    return NULL;
}

static int kept = -1;

static void *connector(void *arg) {
    (void)arg;
    for (;;) {
        int fd = open_connection();
        if (kept >= 0) close(kept);
        kept = fd;
        struct timespec pause = {0, 50000000};
        nanosleep(&pause, NULL);
    }
    return NULL;
}

int main(int argc, char **argv) {
    bool python = argc > 2 && is_mode(argv[1], "python");
    limited = argc > 1 && is_mode(argv[1], "limited");
    if (argc < 2 || !(python || limited || is_mode(argv[1], "c"))) die("usage: http_client c|limited|python SCRIPT");
    victim_init();
    int ready[2], linked[2];
    CHECK(pipe2(ready, O_CLOEXEC));
    CHECK(pipe2(linked, O_CLOEXEC));
    CHECK(unshare(CLONE_NEWNET));
    pid_t server = fork();
    if (server < 0) die("fork");
    char byte = 0;
    if (server == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        CHECK(unshare(CLONE_NEWNET));
        if (write(ready[1], &byte, 1) != 1 || read(linked[0], &byte, 1) != 1) _exit(1);
        run("ip addr add " ADDRESS "/24 dev far1 && ip link set far1 up && ip link set lo up");
        int listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
        struct sockaddr_in at = {.sin_family = AF_INET, .sin_port = htons(PORT)};
        CHECK(bind(listener, (struct sockaddr *)&at, sizeof at));
        CHECK(listen(listener, 128));
        if (write(ready[1], &byte, 1) != 1) _exit(1);
        serve(listener);
    }
    if (read(ready[0], &byte, 1) != 1) die("the server is gone");
    char command[256];
    snprintf(command, sizeof command,
             "ip link add near1 type veth peer name far1 && ip link set far1 netns %d && ip addr add 10.98.0.2/24 dev near1 && "
             "ip link set near1 up && ip link set lo up", server);
    run(command);
    if (write(linked[1], &byte, 1) != 1 || read(ready[0], &byte, 1) != 1) die("the server is gone");
    if (python) {
        char port[8];
        snprintf(port, sizeof port, "%d", PORT);
        execlp("/usr/bin/python3", "python3", argv[2], ADDRESS, port, (char *)NULL);
        die("no python3");
    }
    start_thread(checker, new_seat("checker", "recvfrom", SYS_recvfrom));
    start_thread(connector, NULL);
    print_truth(getpid(), argv[1], ",\"peer\":\"" ADDRESS ":%d\"", PORT);
    stay();
}
