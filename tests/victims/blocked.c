/* Threads blocked at a known chain of functions, for whoever unwinds their stacks. Built in many ways.
 *
 *   blocked calls      "reader": outer > middle > blocked_here > read; "locker": lock_outer > lock_middle > lock_here > mutex;
 *                      "waiter": wait_outer > wait_here > condition variable
 *   blocked signal     "signal": a fault in faults_here, its handler blocks: on_signal > outer > middle > blocked_here
 *   blocked altstack   the same, the handler on a stack of its own
 *   blocked large      "small": frames of 20 KiB; "big": 100 KiB; "alloca": 70 KiB whose size is known at run time only
 *   blocked inlined    "inlined": not_inlined > inlined_outer > inlined_inner > blocked_here; the truth tells the lines
 *   blocked deep       "deep": 10,000 frames of recurse above deep_outer
 *   blocked library F  "library": outer > library_outer > library_middle > called_back > blocked_here, library_* in file F
 *
 * The main thread is always in main > attend > read. Every call is followed by work, so that none is a tail call.
 */
#include <sched.h>
#include "victim.h"
#include <alloca.h>
#ifdef WITH_LIBRARY
#include <dlfcn.h>
#endif

static volatile int steps;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t news = PTHREAD_COND_INITIALIZER;
static const char *mode;
static int quiet;
static volatile int line_of_inner, line_of_outer, line_of_call;

NOINLINE int blocked_here(int fd) {
    char c;
    int n = (int)read(fd, &c, 1);
    steps += n;
    return n;
}

NOINLINE int middle(int fd) {
    int n = blocked_here(fd);
    steps += n + 1;
    return n + 1;
}

NOINLINE int outer(int fd) {
    int n = middle(fd);
    steps += n + 2;
    return n + 2;
}

static void *reader(void *arg) {
    take_seat(arg);
    about_to_wait(arg);
    steps += outer(quiet);
    return NULL;
}

NOINLINE int lock_here(pthread_mutex_t *m) {
    int e = pthread_mutex_lock(m);
    steps += e;
    return e;
}

NOINLINE int lock_middle(pthread_mutex_t *m) {
    int e = lock_here(m);
    steps += e + 1;
    return e + 1;
}

NOINLINE int lock_outer(pthread_mutex_t *m) {
    int e = lock_middle(m);
    steps += e + 2;
    return e + 2;
}

static void *locker(void *arg) {
    take_seat(arg);
    about_to_wait(arg);
    steps += lock_outer(&lock);
    return NULL;
}

NOINLINE int wait_here(pthread_mutex_t *m) {
    int e = pthread_cond_wait(&news, m);
    steps += e;
    return e;
}

NOINLINE int wait_outer(void) {
    static pthread_mutex_t own = PTHREAD_MUTEX_INITIALIZER;
    int e = pthread_mutex_lock(&own);
    while (steps >= 0) e += wait_here(&own);
    steps += e + 1;
    return e + 1;
}

static void *waiter(void *arg) {
    take_seat(arg);
    about_to_wait(arg);
    steps += wait_outer();
    return NULL;
}

/* A handler that never comes back: what a logging or crash handler does that takes a lock. */
NOINLINE void on_signal(int number) {
    steps += number;
    steps += outer(quiet);
}

NOINLINE int faults_here(volatile int *nowhere) {
    int value = *nowhere;
    steps += value;
    return value;
}

NOINLINE int faults_outer(volatile int *nowhere) {
    int value = faults_here(nowhere);
    steps += value + 1;
    return value + 1;
}

static void *faulter(void *arg) {
    static char stack[64 * 1024];
    struct sigaction action;
    memset(&action, 0, sizeof action);
    action.sa_handler = on_signal;
    take_seat(arg);
    if (is_mode(mode, "altstack")) {
        stack_t other = {.ss_sp = stack, .ss_size = sizeof stack, .ss_flags = 0};
        CHECK(sigaltstack(&other, NULL));
        action.sa_flags = SA_ONSTACK;
    }
    CHECK(sigaction(SIGSEGV, &action, NULL));
    about_to_wait(arg);
    steps += faults_outer((volatile int *)8);
    return NULL;
}

/* The bytes are written and read, or the frame would not be there. */
NOINLINE int small_frame(int fd) {
    volatile char room[20 * 1024];
    room[0] = room[sizeof room - 1] = (char)fd;
    int n = outer(fd);
    steps += n + room[sizeof room - 1];
    return n;
}

NOINLINE int big_frame(int fd) {
    volatile char room[100 * 1024];
    room[0] = room[sizeof room - 1] = (char)fd;
    int n = outer(fd);
    steps += n + room[sizeof room - 1];
    return n;
}

NOINLINE int alloca_frame(int fd, size_t size) {
    volatile char *room = alloca(size);
    room[0] = room[size - 1] = (char)fd;
    int n = outer(fd);
    steps += n + room[size - 1];
    return n;
}

static void *large(void *arg) {
    struct seat *seat = arg;
    take_seat(seat);
    about_to_wait(seat);
    if (is_mode(seat->name, "small")) steps += small_frame(quiet);
    else if (is_mode(seat->name, "big")) steps += big_frame(quiet);
    else steps += alloca_frame(quiet, 70 * 1024 + (size_t)(steps & 1));
    return NULL;
}

static inline __attribute__((always_inline)) int inlined_inner(int fd) {
    line_of_inner = __LINE__ + 1;
    int n = blocked_here(fd);
    steps += n * 3;
    return n;
}

static inline __attribute__((always_inline)) int inlined_outer(int fd) {
    steps += fd;
    line_of_outer = __LINE__ + 1;
    int n = inlined_inner(fd + 0);
    steps += n * 5;
    return n;
}

NOINLINE int not_inlined(int fd) {
    line_of_call = __LINE__ + 1;
    int n = inlined_outer(fd);
    steps += n * 7;
    return n;
}

static void *inlined(void *arg) {
    take_seat(arg);
    about_to_wait(arg);
    steps += not_inlined(quiet);
    return NULL;
}

NOINLINE int recurse(int depth, int fd) {
    int n = depth > 1 ? recurse(depth - 1, fd) : blocked_here(fd);
    steps += n;
    return n + steps;
}

NOINLINE int deep_outer(int fd) {
    int n = recurse(10000, fd);
    steps += n;
    return n;
}

static void *deep(void *arg) {
    take_seat(arg);
    about_to_wait(arg);
    steps += deep_outer(quiet);
    return NULL;
}

#ifdef WITH_LIBRARY
static int (*library_outer)(int (*)(int), int);

NOINLINE int called_back(int fd) {
    int n = blocked_here(fd);
    steps += n;
    return n + 1;
}

NOINLINE int calls_library(int fd) {
    int n = library_outer(called_back, fd);
    steps += n;
    return n + 1;
}

static void *library(void *arg) {
    take_seat(arg);
    about_to_wait(arg);
    steps += calls_library(quiet);
    return NULL;
}

static void load_library(const char *path) {
    void *handle = dlopen(path, RTLD_NOW);
    if (!handle) die("%s", dlerror());
    library_outer = (int (*)(int (*)(int), int))dlsym(handle, "library_outer");
    if (!library_outer) die("%s", dlerror());
}
#endif

NOINLINE int attend(void) {
    char c;
    ssize_t n;
    do n = read(0, &c, 1);
    while (n > 0 || (n < 0 && errno == EINTR));
    steps += (int)n;
    return (int)n;
}

int main(int argc, char **argv) {
    mode = argc >= 2 ? argv[1] : "";
    victim_init();
    quiet = silent_pipe();
    if (is_mode(mode, "calls")) {
        PCHECK(pthread_mutex_lock(&lock));
        start_thread(reader, new_seat("reader", "read", SYS_read));
        start_thread(locker, new_seat("locker", "futex", SYS_futex));
        start_thread(waiter, new_seat("waiter", "futex", SYS_futex));
    } else if (is_mode(mode, "signal") || is_mode(mode, "altstack")) {
        start_thread(faulter, new_seat("signal", "read", SYS_read));
    } else if (is_mode(mode, "large")) {
        static const char *const names[] = {"small", "big", "alloca"};
        for (int i = 0; i < 3; i++) start_thread(large, new_seat(names[i], "read", SYS_read));
    } else if (is_mode(mode, "inlined")) {
        start_thread(inlined, new_seat("inlined", "read", SYS_read));
        while (line_of_inner == 0) sched_yield();
    } else if (is_mode(mode, "deep")) {
        start_thread(deep, new_seat("deep", "read", SYS_read));
#ifdef WITH_LIBRARY
    } else if (is_mode(mode, "library") && argc == 3) {
        load_library(argv[2]);
        start_thread(library, new_seat("library", "read", SYS_read));
#endif
    } else {
        die("usage: blocked calls|signal|altstack|large|inlined|deep|library FILE");
    }
    print_truth(getpid(), mode, ",\"line_of_inner\":%d,\"line_of_outer\":%d,\"line_of_call\":%d", line_of_inner,
                line_of_outer, line_of_call);
    steps += attend();
    return 0;
}
