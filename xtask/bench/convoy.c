/*
 * A convoy, for `cargo xtask bench convoy`: many threads behind one mutex whose holder sleeps in read().
 *
 *   convoy COUNT
 *
 * Prints {"ready":true,"threads":COUNT} when all of them wait, then stays until killed.
 */
#define _GNU_SOURCE
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static int silent[2];

static __attribute__((noinline)) void update_account(void) {
	pthread_mutex_lock(&lock);
	abort();
}

static __attribute__((noinline)) void handle_request(void) {
	update_account();
	abort();
}

static void *serve(void *unused) {
	handle_request();
	return unused;
}

static void *hold(void *unused) {
	char byte;
	pthread_mutex_lock(&lock);
	while (read(silent[0], &byte, 1) != 0)
		;
	return unused;
}

/* How many threads of this process sleep in futex. */
static int waiting(int count, const pid_t *tids) {
	int found = 0;
	for (int n = 0; n < count; n++) {
		char path[64], text[16] = "";
		snprintf(path, sizeof path, "/proc/self/task/%d/syscall", tids[n]);
		FILE *file = fopen(path, "r");
		if (file == NULL)
			continue;
		if (fgets(text, sizeof text, file) != NULL && strncmp(text, "202 ", 4) == 0)
			found++;
		fclose(file);
	}
	return found;
}

static pid_t *tids;
static int arrived;

static void *waiter(void *at) {
	tids[(long)at] = gettid();
	__atomic_fetch_add(&arrived, 1, __ATOMIC_RELEASE);
	return serve(at);
}

int main(int argc, char **argv) {
	int count = argc > 1 ? atoi(argv[1]) : 500;
	pthread_t thread;
	pthread_attr_t attributes;
	tids = calloc((size_t)count, sizeof *tids);
	if (count < 1 || tids == NULL || pipe(silent) != 0)
		return 1;
	pthread_attr_init(&attributes);
	pthread_attr_setstacksize(&attributes, 64 * 1024);
	if (pthread_create(&thread, &attributes, hold, NULL) != 0)
		return 1;
	while (pthread_mutex_trylock(&lock) == 0) {
		pthread_mutex_unlock(&lock);
		usleep(1000);
	}
	for (long n = 0; n < count; n++) {
		if (pthread_create(&thread, &attributes, waiter, (void *)n) != 0) {
			fprintf(stderr, "convoy: cannot make thread %ld\n", n);
			return 1;
		}
	}
	while (__atomic_load_n(&arrived, __ATOMIC_ACQUIRE) < count || waiting(count, tids) < count)
		usleep(1000);
	printf("{\"ready\":true,\"threads\":%d}\n", count);
	fflush(stdout);
	for (;;)
		pause();
}
