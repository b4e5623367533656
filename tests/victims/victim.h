/* What every victim shares: seats, truth and staying alive.
 *
 * A victim is a program that reaches one known state and stays there. Each thread that matters takes a
 * "seat": a record of who it is, what it is about to wait for and who holds that. Before the single line of
 * truth is printed, every seat is checked against /proc: the thread must be asleep in the promised system call.
 * The main thread then reads stdin and exits at its end, so a victim never outlives whoever started it.
 */
#ifndef VICTIM_H
#define VICTIM_H
#ifndef _GNU_SOURCE /* g++ defines it */
#define _GNU_SOURCE
#endif
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define NOINLINE __attribute__((noinline))
#define MAX_SEATS 32
#define READY_DEADLINE_MS 8000

/* One thread of interest. Lives in shared memory, so that children fill theirs. */
struct seat {
    char name[16];          /* thread name (comm) */
    volatile pid_t tid;     /* as the thread itself sees it: its own PID namespace */
    volatile pid_t pid;     /* likewise */
    pid_t outside_tid;      /* as the printer of truth sees it, if different; else 0 */
    pid_t outside_pid;
    volatile uint64_t since_ns; /* CLOCK_REALTIME just before the wait began */
    const char *syscall;    /* the system call it must sleep in; NULL: any state */
    long number;            /* its number */
    const char *state;      /* letters /proc may show; NULL: "S" */
    const char *resource;   /* kind of what it waits for: mutex, rwlock, thread, child, pipe, ...; NULL: none */
    const void *waits_for;  /* address of the lock object; NULL: none */
    struct seat *owner;     /* who holds it; NULL: nobody known, see owner_tid */
    pid_t owner_tid;        /* an owner that has no seat (a dead thread) */
    uint64_t args[6];       /* read back from /proc */
    char seen_state;
};

static struct seat *seats;
static int seat_count;

static inline void die(const char *what, ...) {
    va_list ap;
    va_start(ap, what);
    fprintf(stderr, "victim: ");
    vfprintf(stderr, what, ap);
    fprintf(stderr, " (errno %d: %s)\n", errno, strerror(errno));
    va_end(ap);
    _exit(3);
}

#define CHECK(call) do { if ((call) != 0) die("%s", #call); } while (0)
/* for pthread calls, which return the error */
#define PCHECK(call) do { int e_ = (call); if (e_ != 0) { errno = e_; die("%s", #call); } } while (0)

static inline uint64_t clock_ns(clockid_t clock) {
    struct timespec ts;
    clock_gettime(clock, &ts);
    return (uint64_t)ts.tv_sec * 1000000000u + (uint64_t)ts.tv_nsec;
}

static inline pid_t self_tid(void) { return (pid_t)syscall(SYS_gettid); }

/* A short breath while something is polled for. */
static inline void breathe(void) { (void)poll(NULL, 0, 1); }

/* Dies with the thread that forked this process. */
static inline void die_with_parent(void) { CHECK(prctl(PR_SET_PDEATHSIG, SIGKILL)); }

/* A child process that does this and ends, or dies with its parent. */
static inline pid_t child(void (*body)(void)) {
    pid_t pid = fork();
    if (pid < 0) die("fork");
    if (pid) return pid;
    die_with_parent();
    body();
    _exit(0);
}

static inline void victim_init(void) {
    die_with_parent();
    seats = (struct seat *)mmap(NULL, sizeof(struct seat) * MAX_SEATS, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (seats == MAP_FAILED) die("mmap");
}

/* Memory that children share with us. */
static inline void *shared_memory(size_t size) {
    void *p = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (p == MAP_FAILED) die("mmap shared");
    return p;
}

static inline struct seat *new_seat(const char *name, const char *syscall_name, long number) {
    if (seat_count == MAX_SEATS) die("too many seats");
    struct seat *s = &seats[seat_count++];
    snprintf(s->name, sizeof s->name, "%s", name);
    s->syscall = syscall_name;
    s->number = number;
    return s;
}

/* Called by the thread itself, first thing. */
static inline void take_seat(struct seat *s) {
    prctl(PR_SET_NAME, s->name);
    s->pid = getpid();
    s->since_ns = clock_ns(CLOCK_REALTIME);
    s->tid = self_tid();
}

/* Called by the thread itself, just before it waits for good. */
static inline void about_to_wait(struct seat *s) { s->since_ns = clock_ns(CLOCK_REALTIME); }

static inline pthread_t start_thread(void *(*body)(void *), void *arg) {
    pthread_t t;
    PCHECK(pthread_create(&t, NULL, body, arg));
    return t;
}

/* State letter of a thread, or 0 when it does not exist. */
static inline char thread_state(pid_t pid, pid_t tid) {
    char path[64], buf[512];
    snprintf(path, sizeof path, "/proc/%d/task/%d/stat", pid, tid);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) return 0;
    ssize_t n = read(fd, buf, sizeof buf - 1);
    close(fd);
    if (n <= 0) return 0;
    buf[n] = 0;
    char *p = strrchr(buf, ')');
    return p ? p[2] : 0;
}

/* Number and arguments of the system call a thread sleeps in; -1 when it runs or cannot be read. */
static inline long thread_syscall(pid_t pid, pid_t tid, uint64_t args[6]) {
    char path[64], buf[512];
    snprintf(path, sizeof path, "/proc/%d/task/%d/syscall", pid, tid);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) return -1;
    ssize_t n = read(fd, buf, sizeof buf - 1);
    close(fd);
    if (n <= 0) return -1;
    buf[n] = 0;
    long number;
    unsigned long a[6];
    if (sscanf(buf, "%ld 0x%lx 0x%lx 0x%lx 0x%lx 0x%lx 0x%lx", &number, &a[0], &a[1], &a[2], &a[3], &a[4], &a[5]) != 7)
        return -1;
    for (int i = 0; i < 6; i++) args[i] = a[i];
    return number;
}

static inline pid_t seat_pid(const struct seat *s) { return s->outside_pid ? s->outside_pid : s->pid; }
static inline pid_t seat_tid(const struct seat *s) { return s->outside_tid ? s->outside_tid : s->tid; }

/* A wait on a lock must be on that lock: the futex word lies within the object. The kernel turns away the last
 * thread of a priority-inheritance cycle; glibc then parks it on a word of its own stack: no address promised. */
static inline bool on_the_object(const struct seat *s) {
    if (!s->waits_for || s->number != SYS_futex) return true;
    uint64_t base = (uint64_t)(uintptr_t)s->waits_for;
    return s->args[0] >= base && s->args[0] < base + 64;
}

/* Waits until the thread of this seat is where it promised to be, and dies when it never gets there. */
static inline void await_seat(struct seat *s) {
    uint64_t until = clock_ns(CLOCK_MONOTONIC) + READY_DEADLINE_MS * 1000000ull;
    int seen = 0;
    while (clock_ns(CLOCK_MONOTONIC) < until) {
        char state = s->tid ? thread_state(seat_pid(s), seat_tid(s)) : 0;
        if (state && !s->syscall && !s->state) { s->seen_state = state; return; }
        if (state && strchr(s->state ? s->state : "S", state)) {
            /* Twice in a row: a thread on its way to its wait may sleep for a moment elsewhere. */
            long nr = s->syscall ? thread_syscall(seat_pid(s), seat_tid(s), s->args) : 0;
            if (!s->syscall || (nr == s->number && on_the_object(s))) {
                s->seen_state = state;
                if (++seen == 2) return;
            } else {
                seen = 0;
            }
        } else {
            seen = 0;
        }
        breathe();
    }
    die("thread %s never reached %s", s->name, s->syscall ? s->syscall : s->state);
}

/* Waits for every seat and writes their processes' ids, with commas between them. */
static inline void list_pids(char *text, size_t size) {
    size_t used = 0;
    for (int i = 0; i < seat_count && used < size; i++) {
        await_seat(&seats[i]);
        used += (size_t)snprintf(text + used, size - used, "%s%d", i ? "," : "", seats[i].pid);
    }
}

static inline void print_seat(const struct seat *s) {
    printf("{\"name\":\"%s\",\"tid\":%d,\"pid\":%d,\"state\":\"%c\",\"since_ns\":%llu", s->name, seat_tid(s), seat_pid(s),
           s->seen_state, (unsigned long long)s->since_ns);
    printf(",\"inside_tid\":%d,\"inside_pid\":%d", s->tid, s->pid);
    if (s->syscall) {
        printf(",\"syscall\":\"%s\",\"syscall_number\":%ld,\"args\":[", s->syscall, s->number);
        for (int i = 0; i < 6; i++) printf("%s\"0x%llx\"", i ? "," : "", (unsigned long long)s->args[i]);
        printf("]");
    }
    if (s->resource) printf(",\"resource\":\"%s\"", s->resource);
    if (s->waits_for) printf(",\"waits_for\":\"%p\"", s->waits_for);
    if (s->owner) printf(",\"owner\":%d,\"owner_pid\":%d", seat_tid(s->owner), seat_pid(s->owner));
    else if (s->owner_tid) printf(",\"owner\":%d", s->owner_tid);
    printf("}");
}

/* Checks every seat, then prints the one line. `pid` is whom to look at; `extra` is more JSON (",\"k\":v") or "". */
static inline void print_truth(pid_t pid, const char *shape, const char *extra, ...) {
    for (int i = 0; i < seat_count; i++) await_seat(&seats[i]);
    printf("{\"ready\":true,\"shape\":\"%s\",\"pid\":%d,\"printer\":%d,\"threads\":[", shape, pid, getpid());
    for (int i = 0; i < seat_count; i++) {
        if (i) printf(",");
        print_seat(&seats[i]);
    }
    printf("]");
    va_list ap;
    va_start(ap, extra);
    vprintf(extra, ap);
    va_end(ap);
    printf("}\n");
    fflush(stdout);
}

/* Until stdin closes. Where stdin can never close (/dev/null), until killed. */
static inline void stay(void) {
    struct stat st;
    bool held = fstat(0, &st) == 0 && (S_ISFIFO(st.st_mode) || S_ISSOCK(st.st_mode) || isatty(0));
    char c;
    if (!held) for (;;) pause();
    for (;;) {
        ssize_t n = read(0, &c, 1);
        if (n == 0 || (n < 0 && errno != EINTR)) break;
    }
    _exit(0);
}

/* Until a line arrives on stdin: how a test says "now". */
static inline void await_line(void) {
    char c;
    for (;;) {
        ssize_t n = read(0, &c, 1);
        if (n == 1 && c == '\n') return;
        if (n == 0 || (n < 0 && errno != EINTR)) _exit(0);
    }
}

/* A pipe nobody writes to: read() on it lasts until the end. */
static inline int silent_pipe(void) {
    int fds[2];
    CHECK(pipe2(fds, O_CLOEXEC));
    return fds[0];
}

static inline void read_for_ever(int fd) {
    char c;
    while (read(fd, &c, 1) != 0) { }
}

static inline void init_mutex(pthread_mutex_t *m, bool pshared, bool robust) {
    pthread_mutexattr_t a;
    PCHECK(pthread_mutexattr_init(&a));
    if (pshared) PCHECK(pthread_mutexattr_setpshared(&a, PTHREAD_PROCESS_SHARED));
    if (robust) PCHECK(pthread_mutexattr_setrobust(&a, PTHREAD_MUTEX_ROBUST));
    PCHECK(pthread_mutex_init(m, &a));
}

/* Mode names are exact; anything else is a mistake of the caller. */
static inline bool is_mode(const char *given, const char *mode) { return strcmp(given, mode) == 0; }
#endif
