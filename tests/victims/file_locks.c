/* File locks: flock(2), fcntl(F_SETLKW), fcntl(F_OFD_SETLKW); between processes that each open the file themselves.
 *
 *   file_locks flock DIR       a process waits behind a flock whose holder reads a silent pipe
 *   file_locks posix DIR       likewise for bytes 100 to 199 of a file; another holder has the first hundred
 *   file_locks ofd DIR         likewise with open-file-description locks
 *   file_locks cycle DIR       two processes, two files, flock in opposite order
 *   file_locks mutex DIR       one holds a flock and wants a process-shared mutex, the other the reverse
 *   file_locks child DIR       a parent holds a flock and waits for its child, which wants it
 *   file_locks inherited DIR   who took the flock is gone; its child, which reads a silent pipe, still has it
 *   file_locks turns DIR       two processes take turns at one flock, a few thousand times a second: healthy
 *   file_locks idle DIR        a process holds a flock for ever, nobody wants it: healthy
 *
 * The truth's "path" is the file waited for. Files lie in DIR.
 */
#include "victim.h"
#include <sys/file.h>

static struct { pthread_mutex_t ledger; volatile int holding, round; } *shared;
static char path[2][PATH_MAX];
static struct seat *a, *b, *c;

static int open_file(int i) {
    int fd = open(path[i], O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    if (fd < 0) die("open %s", path[i]);
    return fd;
}

static int lock_range(int fd, int command, off_t start, off_t len) {
    struct flock lock = {.l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = start, .l_len = len};
    return fcntl(fd, command, &lock);
}

static void arrive(void) { __atomic_add_fetch(&shared->holding, 1, __ATOMIC_SEQ_CST); }
static void await(int n) {
    while (__atomic_load_n(&shared->holding, __ATOMIC_SEQ_CST) < n) breathe();
}

static void hold_flock(void) {
    take_seat(a);
    CHECK(flock(open_file(0), LOCK_EX));
    arrive();
    about_to_wait(a);
    read_for_ever(silent_pipe());
}
static void want_flock(void) {
    take_seat(b);
    int fd = open_file(0);
    await(1);
    about_to_wait(b);
    CHECK(flock(fd, LOCK_EX));
}

static int set_wait;
static void hold_range(void) {
    take_seat(a);
    CHECK(lock_range(open_file(0), set_wait, 100, 100));
    arrive();
    about_to_wait(a);
    read_for_ever(silent_pipe());
}
static void hold_other_range(void) {
    take_seat(c);
    CHECK(lock_range(open_file(0), set_wait, 0, 100));
    arrive();
    about_to_wait(c);
    read_for_ever(silent_pipe());
}
static void want_range(void) {
    take_seat(b);
    int fd = open_file(0);
    await(2);
    about_to_wait(b);
    CHECK(lock_range(fd, set_wait, 150, 10));
}

static void cycle_of(struct seat *s, int first, int second) {
    take_seat(s);
    int fd = open_file(second);
    CHECK(flock(open_file(first), LOCK_EX));
    arrive();
    await(2);
    about_to_wait(s);
    CHECK(flock(fd, LOCK_EX));
}
static void first_then_second(void) { cycle_of(a, 0, 1); }
static void second_then_first(void) { cycle_of(b, 1, 0); }

static void flock_then_mutex(void) {
    take_seat(a);
    CHECK(flock(open_file(0), LOCK_EX));
    arrive();
    await(2);
    about_to_wait(a);
    PCHECK(pthread_mutex_lock(&shared->ledger));
}
static void mutex_then_flock(void) {
    take_seat(b);
    int fd = open_file(0);
    PCHECK(pthread_mutex_lock(&shared->ledger));
    arrive();
    await(2);
    about_to_wait(b);
    CHECK(flock(fd, LOCK_EX));
}

static void flock_then_wait(void) {
    take_seat(a);
    CHECK(flock(open_file(0), LOCK_EX));
    arrive();
    pid_t pid = child(want_flock);
    about_to_wait(a);
    wait4(pid, NULL, 0, NULL);
}

/* Leaves the lock to a child. It dies with the main process, by the pipe that only that one keeps open. */
static int lifeline[2];
static void take_and_leave(void) {
    CHECK(flock(open_file(0), LOCK_EX));
    pid_t pid = fork();
    if (pid < 0) die("fork");
    if (pid) return;
    close(lifeline[1]);
    take_seat(a);
    arrive();
    about_to_wait(a);
    read_for_ever(lifeline[0]);
    _exit(0);
}

static void take_turns(void) {
    int fd = open_file(0);
    for (;;) {
        CHECK(flock(fd, LOCK_EX));
        for (volatile int i = 0; i < 20000; i++) { }
        CHECK(flock(fd, LOCK_UN));
        arrive();
    }
}

static void edge(struct seat *from, const char *resource, const void *object, struct seat *owner) {
    from->resource = resource;
    from->waits_for = object;
    from->owner = owner;
}

int main(int argc, char **argv) {
    if (argc != 3) die("usage: file_locks MODE DIR");
    const char *mode = argv[1];
    victim_init();
    for (int i = 0; i < 2; i++) snprintf(path[i], sizeof path[i], "%s/%s-%d.lock", argv[2], i ? "stock" : "orders", getpid());
    shared = shared_memory(sizeof *shared);
    init_mutex(&shared->ledger, true, false);
    pid_t pa, pb, pc = 0;
    if (is_mode(mode, "flock")) {
        a = new_seat("holder", "read", SYS_read);
        b = new_seat("waiter", "flock", SYS_flock);
        edge(b, "file", NULL, a);
        pa = child(hold_flock);
        pb = child(want_flock);
    } else if (is_mode(mode, "posix") || is_mode(mode, "ofd")) {
        set_wait = is_mode(mode, "posix") ? F_SETLKW : F_OFD_SETLKW;
        a = new_seat("holder", "read", SYS_read);
        b = new_seat("waiter", "fcntl", SYS_fcntl);
        c = new_seat("other", "read", SYS_read);
        edge(b, "file", NULL, a);
        pa = child(hold_range);
        pc = child(hold_other_range);
        pb = child(want_range);
    } else if (is_mode(mode, "cycle")) {
        a = new_seat("orders", "flock", SYS_flock);
        b = new_seat("stock", "flock", SYS_flock);
        edge(a, "file", NULL, b);
        edge(b, "file", NULL, a);
        pa = child(first_then_second);
        pb = child(second_then_first);
    } else if (is_mode(mode, "mutex")) {
        a = new_seat("has-file", "futex", SYS_futex);
        b = new_seat("has-mutex", "flock", SYS_flock);
        edge(a, "mutex", &shared->ledger, b);
        edge(b, "file", NULL, a);
        pa = child(flock_then_mutex);
        pb = child(mutex_then_flock);
    } else if (is_mode(mode, "child")) {
        a = new_seat("parent", "wait4", SYS_wait4);
        b = new_seat("child", "flock", SYS_flock);
        edge(a, "child", NULL, b);
        edge(b, "file", NULL, a);
        pa = child(flock_then_wait);
        while (!b->tid) breathe();
        pb = b->pid;
    } else if (is_mode(mode, "inherited")) {
        CHECK(pipe2(lifeline, O_CLOEXEC));
        a = new_seat("heir", "read", SYS_read);
        b = new_seat("waiter", "flock", SYS_flock);
        edge(b, "file", NULL, a);
        pid_t gone = child(take_and_leave);
        if (waitpid(gone, NULL, 0) != gone) die("waitpid");
        await(1);
        pa = a->pid;
        /* The waiter must not keep the heir alive. */
        pb = fork();
        if (pb < 0) die("fork");
        if (!pb) {
            close(lifeline[1]);
            die_with_parent();
            want_flock();
            _exit(0);
        }
    } else if (is_mode(mode, "turns")) {
        pa = child(take_turns);
        pb = child(take_turns);
        await(1000);
    } else if (is_mode(mode, "idle")) {
        a = new_seat("holder", "read", SYS_read);
        pa = pb = child(hold_flock);
    } else {
        die("usage: file_locks flock|posix|ofd|cycle|mutex|child|inherited|turns|idle DIR");
        return 2;
    }
    print_truth(pb, mode, ",\"pids\":[%d,%d,%d],\"path\":\"%s\"", pa, pb, pc ? pc : pb, path[0]);
    stay();
}
