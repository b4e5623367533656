/* A healthy program that starts short-lived children in a loop, ten milliseconds apart.
 *
 *   healthy_spawner posix_spawn
 *   healthy_spawner vfork
 *
 * Each vfork parent is in D state for a moment: never for long. Truth: "spawned" so far.
 */
#include "victim.h"
#include <spawn.h>

extern char **environ;
static volatile unsigned long spawned;
static bool by_vfork;

static void *spawner(void *arg) {
    prctl(PR_SET_NAME, "spawner");
    char *argv[] = {"/bin/true", NULL};
    for (;;) {
        pid_t pid;
        if (by_vfork) {
            pid = vfork();
            if (pid == 0) {
                execve(argv[0], argv, environ);
                _exit(127);
            }
        } else {
            PCHECK(posix_spawn(&pid, argv[0], NULL, NULL, argv, environ));
        }
        if (waitpid(pid, NULL, 0) != pid) die("waitpid");
        spawned++;
        (void)poll(NULL, 0, 10);
    }
    return arg;
}

int main(int argc, char **argv) {
    const char *mode = argc == 2 ? argv[1] : "";
    victim_init();
    by_vfork = is_mode(mode, "vfork");
    if (!by_vfork && !is_mode(mode, "posix_spawn")) die("usage: healthy_spawner posix_spawn|vfork");
    start_thread(spawner, NULL);
    while (spawned < 5) breathe();
    print_truth(getpid(), mode, ",\"spawned\":%lu", spawned);
    stay();
}
