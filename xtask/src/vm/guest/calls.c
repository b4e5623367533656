/* Makes a call of each probed family again and again, so that every rung has something to count: poll with -5 on a pipe
 * that is readable (it returns at once, so only a probe can see it), poll with 50 ms on nothing, a futex wait of 20 ms, and
 * a connect that is refused. For ever. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

int main(void) {
    static int word = 1;
    int ends[2];
    if (pipe(ends) || write(ends[1], "x", 1) != 1) return 1;
    struct pollfd readable = {ends[0], POLLIN, 0};
    struct timespec moment = {0, 20000000};
    struct sockaddr_in nobody = {.sin_family = AF_INET, .sin_port = htons(9), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    for (;;) {
        syscall(SYS_poll, &readable, 1, -5);
        syscall(SYS_poll, NULL, 0, 50);
        syscall(SYS_futex, &word, 0x80 /* FUTEX_WAIT | PRIVATE */, 1, &moment, NULL, 0);
        int fd = socket(AF_INET, SOCK_STREAM, 0);
        connect(fd, (struct sockaddr *)&nobody, sizeof nobody);
        close(fd);
    }
}
