/* Uninterruptible sleep: thread "vforker" called vfork() and its child neither execs nor exits.
 *
 * Truth: "child" is the vfork child.
 */
#include "victim.h"

static struct seat *parent_seat, *child_seat;

static void *vforker(void *arg) {
    take_seat(parent_seat);
    pid_t pid = vfork();
    if (pid < 0) die("vfork");
    if (pid == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        child_seat->pid = getpid();
        child_seat->tid = self_tid();
        for (;;) pause();
    }
    return arg;
}

int main(void) {
    victim_init();
    parent_seat = new_seat("vforker", "vfork", SYS_vfork);
    parent_seat->state = "D";
    child_seat = new_seat("vforker", "pause", SYS_pause);
    start_thread(vforker, NULL);
    for (int i = 0; i < seat_count; i++) await_seat(&seats[i]);
    print_truth(getpid(), "vfork", ",\"child\":%d", child_seat->pid);
    stay();
}
