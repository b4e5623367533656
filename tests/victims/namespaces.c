/* A two-thread deadlock inside its own PID namespace: the futex owners in its memory are TIDs of that namespace.
 *
 * Truth: "pid", "tid", "owner" are what the outside sees (from NSpid); "inside_pid", "inside_tid" what is written
 * in the target's memory.
 */
#include "victim.h"
#include <dirent.h>

static pthread_mutex_t payments_lock = PTHREAD_MUTEX_INITIALIZER, ledger_lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_barrier_t both;
static struct seat *a, *b;

static void *payments(void *arg) {
    take_seat(a);
    PCHECK(pthread_mutex_lock(&payments_lock));
    pthread_barrier_wait(&both);
    about_to_wait(a);
    PCHECK(pthread_mutex_lock(&ledger_lock));
    return arg;
}
static void *ledger(void *arg) {
    take_seat(b);
    PCHECK(pthread_mutex_lock(&ledger_lock));
    pthread_barrier_wait(&both);
    about_to_wait(b);
    PCHECK(pthread_mutex_lock(&payments_lock));
    return arg;
}

/* The innermost number of the NSpid line of /proc/PID/task/TID/status. */
static pid_t innermost(pid_t pid, pid_t tid) {
    char path[64], line[256];
    snprintf(path, sizeof path, "/proc/%d/task/%d/status", pid, tid);
    FILE *f = fopen(path, "re");
    if (!f) return 0;
    pid_t last = 0;
    while (fgets(line, sizeof line, f))
        if (!strncmp(line, "NSpid:", 6)) {
            char *p = strrchr(line, '\t');
            if (p) last = atoi(p);
        }
    fclose(f);
    return last;
}

static void find_outside(pid_t pid, struct seat *s) {
    char path[64];
    snprintf(path, sizeof path, "/proc/%d/task", pid);
    DIR *d = opendir(path);
    if (!d) die("opendir %s", path);
    for (struct dirent *e; (e = readdir(d));)
        if (atoi(e->d_name) && innermost(pid, atoi(e->d_name)) == s->tid) {
            s->outside_tid = atoi(e->d_name);
            s->outside_pid = pid;
        }
    closedir(d);
    if (!s->outside_tid) die("no thread of %d is %d inside", pid, s->tid);
}

int main(void) {
    victim_init();
    a = new_seat("payments", "futex", SYS_futex);
    b = new_seat("ledger", "futex", SYS_futex);
    CHECK(unshare(CLONE_NEWPID));
    pid_t pid = fork();
    if (pid < 0) die("fork");
    if (pid == 0) {
        die_with_parent();
        PCHECK(pthread_barrier_init(&both, NULL, 2));
        /* Some TIDs of the new namespace are used up first, so that inside and outside never agree by accident. */
        for (int i = 0; i < 3; i++) {
            pid_t used = fork();
            if (used == 0) _exit(0);
            waitpid(used, NULL, 0);
        }
        start_thread(payments, NULL);
        start_thread(ledger, NULL);
        for (;;) pause();
    }
    while (!a->tid || !b->tid) breathe();
    find_outside(pid, a);
    find_outside(pid, b);
    a->resource = b->resource = "mutex";
    a->waits_for = &ledger_lock;
    b->waits_for = &payments_lock;
    a->owner = b;
    b->owner = a;
    print_truth(pid, "pid-namespace", "");
    stay();
}
