/* A healthy pool of six workers on a condition variable.
 *
 *   healthy_pool idle     no work: all in pthread_cond_wait
 *   healthy_pool timed    no work: all in pthread_cond_timedwait with an hour's limit
 *   healthy_pool busy     a producer hands out work all the time
 */
#include "victim.h"

#define WORKERS 6
static pthread_mutex_t queue_lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t has_work = PTHREAD_COND_INITIALIZER;
static int queued;
static volatile unsigned long done;
static bool timed;

static void *worker(void *arg) {
    take_seat(arg);
    struct timespec hour;
    clock_gettime(CLOCK_REALTIME, &hour);
    hour.tv_sec += 3600;
    for (;;) {
        PCHECK(pthread_mutex_lock(&queue_lock));
        while (queued == 0) {
            if (timed) pthread_cond_timedwait(&has_work, &queue_lock, &hour);
            else pthread_cond_wait(&has_work, &queue_lock);
        }
        queued--;
        done++;
        PCHECK(pthread_mutex_unlock(&queue_lock));
    }
    return NULL;
}

static void *producer(void *arg) {
    prctl(PR_SET_NAME, "producer");
    for (;;) {
        PCHECK(pthread_mutex_lock(&queue_lock));
        queued += 4;
        PCHECK(pthread_cond_broadcast(&has_work));
        PCHECK(pthread_mutex_unlock(&queue_lock));
        struct timespec ms = {0, 500000};
        nanosleep(&ms, NULL);
    }
    return arg;
}

int main(int argc, char **argv) {
    const char *mode = argc == 2 ? argv[1] : "";
    victim_init();
    bool busy = is_mode(mode, "busy");
    timed = is_mode(mode, "timed");
    if (!busy && !timed && !is_mode(mode, "idle")) die("usage: healthy_pool idle|timed|busy");
    for (int i = 0; i < WORKERS; i++)
        start_thread(worker, busy ? new_seat("worker", NULL, 0) : new_seat("worker", "futex", SYS_futex));
    if (busy) {
        start_thread(producer, NULL);
        while (done < 100) breathe();
    }
    print_truth(getpid(), mode, "");
    stay();
}
