/* Calls poll with -5 on a pipe that is readable, so that it returns at once and only a probe can see it, and with
 * 50 ms on nothing; then a futex wait of 20 ms. For ever. */
#define _GNU_SOURCE
#include <poll.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

int main(void) {
    static int word = 1;
    int ends[2];
    if (pipe(ends) || write(ends[1], "x", 1) != 1) return 1;
    struct pollfd readable = {ends[0], POLLIN, 0};
    struct timespec moment = {0, 20000000};
    for (;;) {
        syscall(SYS_poll, &readable, 1, -5);
        syscall(SYS_poll, NULL, 0, 50);
        syscall(SYS_futex, &word, 0x80 /* FUTEX_WAIT | PRIVATE */, 1, &moment, NULL, 0);
    }
}
