/*
 * Blocked threads whose stacks are as deep as a server's, for `cargo xtask bench stacks`.
 *
 *   deep_threads COUNT
 *
 * COUNT threads, each twelve functions deep (of three kinds in turn, so that not all stacks are the same), wait on a
 * condition variable. Prints {"ready":true,"threads":COUNT} when all of them wait, then stays until killed.
 */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t never = PTHREAD_COND_INITIALIZER;
static pthread_cond_t arrived = PTHREAD_COND_INITIALIZER;
static int waiting;

static __attribute__((noinline)) int wait_for_work(void) {
	pthread_mutex_lock(&lock);
	waiting++;
	pthread_cond_signal(&arrived);
	for (;;)
		pthread_cond_wait(&never, &lock);
	return 0;
}

static int descend(int depth, int kind);

static __attribute__((noinline)) int parse(int depth, int kind) {
	volatile char frame[96] = {0};
	return descend(depth - 1, kind) + frame[depth & 63];
}

static __attribute__((noinline)) int handle(int depth, int kind) {
	volatile char frame[240] = {0};
	return descend(depth - 1, kind) + frame[depth & 63];
}

static __attribute__((noinline)) int query(int depth, int kind) {
	volatile char frame[24] = {0};
	return descend(depth - 1, kind) + frame[depth & 15];
}

static __attribute__((noinline)) int descend(int depth, int kind) {
	int below;
	if (depth == 0)
		below = wait_for_work();
	else if ((depth + kind) % 3 == 0)
		below = parse(depth, kind);
	else if ((depth + kind) % 3 == 1)
		below = handle(depth, kind);
	else
		below = query(depth, kind);
	return below + 1;
}

static void *serve(void *kind) {
	return (void *)(long)descend(6, (int)(long)kind);
}

int main(int argc, char **argv) {
	int count = argc > 1 ? atoi(argv[1]) : 500;
	for (int n = 1; n < count; n++) {
		pthread_t thread;
		pthread_attr_t attributes;
		pthread_attr_init(&attributes);
		pthread_attr_setstacksize(&attributes, 64 * 1024);
		if (pthread_create(&thread, &attributes, serve, (void *)(long)(n % 7)) != 0) {
			fprintf(stderr, "deep_threads: cannot make thread %d\n", n);
			return 1;
		}
	}
	pthread_mutex_lock(&lock);
	while (waiting < count - 1)
		pthread_cond_wait(&arrived, &lock);
	pthread_mutex_unlock(&lock);
	printf("{\"ready\":true,\"threads\":%d}\n", count);
	fflush(stdout);
	for (;;)
		pause();
}
