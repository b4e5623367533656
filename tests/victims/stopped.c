/* Stopped processes, with and without somebody who waits for them.
 *
 *   stopped wait4        a child is stopped; thread "parent" waits for it in wait4(): stopped
 *   stopped lock         a child holds a process-shared mutex and is stopped, another child waits for it: stopped
 *   stopped held         as lock, but nobody is stopped yet: the test does that
 *   stopped alone        healthy: a child is stopped, nobody waits for it
 *   stopped continued    healthy: a child in poll() was stopped and continued (its system call is restart_syscall),
 *                        another in a timed nanosleep likewise
 *
 * Truth: "stopped" is the pid of the stopped child; "pid" is whom to look at, "pids" everybody.
 */
#include "victim.h"

static struct { pthread_mutex_t lock; volatile int held; } *shared;
static struct seat *child_seat, *parent_seat;

static void await_state(pid_t pid, char state) {
    for (int i = 0; i < READY_DEADLINE_MS; i++) {
        if (thread_state(pid, pid) == state) return;
        breathe();
    }
    die("child %d never was in state %c", pid, state);
}

static pid_t sleeping_child(const char *how) {
    pid_t pid = fork();
    if (pid) return pid;
    die_with_parent();
    take_seat(child_seat);
    if (how[0] == 'l') {
        PCHECK(pthread_mutex_lock(&shared->lock));
        shared->held = 1;
    }
    struct timespec hour = {3600, 0};
    if (how[0] == 'n') nanosleep(&hour, NULL);
    else poll(NULL, 0, how[0] == 't' ? 3600 * 1000 : -1);
    _exit(0);
}

static void *parent(void *child) {
    take_seat(parent_seat);
    waitpid(*(pid_t *)child, NULL, 0);
    return NULL;
}

static void stop(pid_t pid, struct seat *seat) {
    while (!seat->tid || thread_state(pid, pid) != 'S') breathe();
    CHECK(kill(pid, SIGSTOP));
    await_state(pid, 'T');
}

int main(int argc, char **argv) {
    const char *mode = argc == 2 ? argv[1] : "";
    victim_init();
    shared = shared_memory(sizeof *shared);
    init_mutex(&shared->lock, true, false);
    child_seat = new_seat("sleeper", NULL, 0);
    static pid_t child;
    if (is_mode(mode, "wait4")) {
        child = sleeping_child("poll");
        stop(child, child_seat);
        child_seat->state = "T";
        parent_seat = new_seat("parent", "wait4", SYS_wait4);
        parent_seat->resource = "child";
        parent_seat->owner = child_seat;
        start_thread(parent, &child);
        print_truth(getpid(), mode, ",\"pids\":[%d,%d],\"stopped\":%d", getpid(), child, child);
    } else if (is_mode(mode, "lock") || is_mode(mode, "held")) {
        child = sleeping_child("lock");
        while (!shared->held) breathe();
        if (is_mode(mode, "lock")) {
            stop(child, child_seat);
            child_seat->state = "T";
        }
        struct seat *waiter = new_seat("waiter", "futex", SYS_futex);
        waiter->resource = "mutex";
        waiter->waits_for = &shared->lock;
        waiter->owner = child_seat;
        pid_t pid = fork();
        if (!pid) {
            die_with_parent();
            take_seat(waiter);
            PCHECK(pthread_mutex_lock(&shared->lock));
            _exit(0);
        }
        print_truth(pid, mode, ",\"pids\":[%d,%d],\"stopped\":%d", pid, child, child);
    } else if (is_mode(mode, "alone")) {
        child = sleeping_child("poll");
        stop(child, child_seat);
        child_seat->state = "T";
        print_truth(getpid(), mode, ",\"pids\":[%d,%d],\"stopped\":%d", getpid(), child, child);
    } else if (is_mode(mode, "continued")) {
        child = sleeping_child("timed poll");
        stop(child, child_seat);
        CHECK(kill(child, SIGCONT));
        child_seat->syscall = "restart_syscall";
        child_seat->number = SYS_restart_syscall;
        await_seat(child_seat);
        pid_t first = child;
        child_seat = new_seat("napper", NULL, 0);
        child = sleeping_child("nap");
        stop(child, child_seat);
        CHECK(kill(child, SIGCONT));
        child_seat->state = "S";
        print_truth(first, mode, ",\"pids\":[%d,%d,%d]", getpid(), first, child);
    } else {
        die("usage: stopped wait4|lock|held|alone|continued");
    }
    stay();
}
