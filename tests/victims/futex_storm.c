/* Futex calls as fast as two threads can make them: waits whose word has another value already, so that each returns at once.
 *
 *   futex_storm        told by lines on stdin: "storm" begins, "calm" ends (and prints {"calls":N,"ns":N} of the storm),
 *                      "bad" passes a negative timeout to futex now and then: EINVAL, so that only a probe can see it.
 *
 * Healthy until "bad".
 */
#include "victim.h"

static volatile bool storming, bad;
static volatile unsigned long calls[2];
static int word = 1;

static void *stormer(void *arg) {
    int me = (int)(intptr_t)arg;
    prctl(PR_SET_NAME, "stormer");
    for (;;) {
        while (!storming) breathe();
        while (storming) {
            for (int i = 0; i < 1000; i++) syscall(SYS_futex, &word, 0x80, 0, NULL, NULL, 0);
            calls[me] += 1000;
        }
    }
    return NULL;
}

static void *mistaken(void *arg) {
    prctl(PR_SET_NAME, "mistaken");
    const struct timespec negative = {-3, 0};
    for (;;) {
        for (int i = 0; i < 20; i++) breathe();
        if (bad && !(syscall(SYS_futex, &word, 0x80, 1, &negative, NULL, 0) == -1 && errno == EINVAL)) die("futex took a negative timeout");
    }
    return arg;
}

int main(void) {
    victim_init();
    for (int i = 0; i < 2; i++) start_thread(stormer, (void *)(intptr_t)i);
    start_thread(mistaken, NULL);
    print_truth(getpid(), "storm", "");
    char line[64];
    uint64_t began = 0;
    unsigned long before = 0;
    while (fgets(line, sizeof line, stdin)) {
        if (is_mode(line, "storm\n")) {
            before = calls[0] + calls[1];
            began = clock_ns(CLOCK_MONOTONIC);
            storming = true;
        } else if (is_mode(line, "calm\n")) {
            storming = false;
            printf("{\"calls\":%lu,\"ns\":%llu}\n", calls[0] + calls[1] - before,
                   (unsigned long long)(clock_ns(CLOCK_MONOTONIC) - began));
            fflush(stdout);
        } else if (is_mode(line, "bad\n")) {
            bad = true;
        } else {
            die("what is %s", line);
        }
    }
    return 0;
}
