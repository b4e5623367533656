/* Victims of the tests of observer's `proc` room: victim MODE [ARG]. Each prints one line when it is ready. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <net/if.h>
#include <pthread.h>
#include <sched.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

static void die(const char *what) { perror(what); exit(1); }

static void ready(uint64_t value) { printf("%llu\n", (unsigned long long)value); fflush(stdout); }

/* Until the test closes our input, or kills us. */
static void wait_for_end(void) { char c; while (read(0, &c, 1) > 0) {} }

/* A page that nobody will ever serve. */
static void never_serve(char *page) {
    int fd = syscall(SYS_userfaultfd, O_CLOEXEC);
    if (fd < 0) die("userfaultfd");
    struct uffdio_api api = { .api = UFFD_API };
    if (ioctl(fd, UFFDIO_API, &api)) die("UFFDIO_API");
    struct uffdio_register r = { .range = { (uintptr_t)page, 4096 }, .mode = UFFDIO_REGISTER_MODE_MISSING };
    if (ioctl(fd, UFFDIO_REGISTER, &r)) die("UFFDIO_REGISTER");
    if (madvise(page, 4096, MADV_DONTNEED)) die("madvise");
}

static void *idle_thread(void *unused) { (void)unused; pause(); return NULL; }

static void connect_to_full(void) {
    int one = socket(AF_INET, SOCK_STREAM, 0);
    struct sockaddr_in a = { .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
    socklen_t len = sizeof a;
    if (bind(one, (struct sockaddr *)&a, len) || listen(one, 0) || getsockname(one, (struct sockaddr *)&a, &len)) die("listen");
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    for (int i = 0; i < 4; i++) {
        int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
        connect(fd, (struct sockaddr *)&a, len);
    }
    ready(t.tv_sec * 1000000000ull + t.tv_nsec);
}

int main(int argc, char **argv) {
    const char *mode = argc > 1 ? argv[1] : "";
    alarm(120);
    if (!strcmp(mode, "unserved")) {
        char *page = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        never_serve(page);
        ready((uintptr_t)page);
    } else if (!strcmp(mode, "unserved-cmdline")) {
        /* The argument is long: pages of it hold nothing else. */
        never_serve((char *)(((uintptr_t)argv[2] + 8192) & ~4095ul));
        ready(0);
    } else if (!strcmp(mode, "memory")) {
        char *pages = mmap(NULL, 3 * 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        memset(pages, 'a', 4096);
        memset(pages + 8192, 'c', 4096);
        munmap(pages + 4096, 4096);
        ready((uintptr_t)pages);
    } else if (!strcmp(mode, "exec")) {
        char c;
        ready(0);
        if (read(0, &c, 1) == 1) execl("/proc/self/exe", "again", "idle", "as another", NULL);
        return 1;
    } else if (!strcmp(mode, "leaderless")) {
        /* The main thread ends; another one lives on, with the memory. */
        static char word[] = "still here";
        pthread_t t;
        pthread_create(&t, NULL, idle_thread, NULL);
        ready((uintptr_t)word);
        pthread_exit(NULL);
    } else if (!strcmp(mode, "threads")) {
        pthread_t t;
        for (int i = 1; i < atoi(argv[2]); i++) pthread_create(&t, NULL, idle_thread, NULL);
        ready((uintptr_t)mode);
    } else if (!strcmp(mode, "connect-in-netns")) {
        if (unshare(CLONE_NEWNET)) die("unshare");
        struct ifreq lo = { .ifr_name = "lo", .ifr_flags = IFF_UP };
        if (ioctl(socket(AF_INET, SOCK_DGRAM, 0), SIOCSIFFLAGS, &lo)) die("lo");
        connect_to_full();
    } else {
        ready(0);
    }
    wait_for_end();
    return 0;
}
