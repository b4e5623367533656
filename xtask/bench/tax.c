/*
 * The system calls whose price `cargo xtask bench tax` compares, each in a tight loop.
 *
 *   tax [--cpu N]
 *
 * Prints {"ready":true,"pid":N}, then waits. For every line "MILLISECONDS" on its input it runs each
 * workload for that long and prints one JSON line: nanoseconds per call, the median of many batches, by workload. A ping-pong is
 * one round trip (two futex waits, two wakes) between two threads on the same CPU.
 */
#define _GNU_SOURCE
#include <linux/futex.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define BATCH 64

static atomic_int ping, pong, stopping;

static long futex(atomic_int *word, int op, int value) {
	return syscall(SYS_futex, word, op, value, NULL, NULL, 0);
}

static long long now_ns(void) {
	struct timespec at;
	clock_gettime(CLOCK_MONOTONIC, &at);
	return at.tv_sec * 1000000000LL + at.tv_nsec;
}

static void hand_over(atomic_int *word) {
	atomic_store(word, 1);
	futex(word, FUTEX_WAKE_PRIVATE, 1);
}

static void take(atomic_int *word) {
	while (atomic_load(word) == 0)
		futex(word, FUTEX_WAIT_PRIVATE, 0);
	atomic_store(word, 0);
}

static void *partner(void *unused) {
	(void)unused;
	for (;;) {
		take(&ping);
		if (atomic_load(&stopping))
			return NULL;
		hand_over(&pong);
	}
}

static void one_pingpong(void) {
	hand_over(&ping);
	take(&pong);
}

static void one_wake(void) {
	static atomic_int nobody_waits;
	futex(&nobody_waits, FUTEX_WAKE_PRIVATE, 1);
}

static void one_wait(void) {
	static atomic_int word = 1;
	futex(&word, FUTEX_WAIT_PRIVATE, 0);
}

static struct pollfd full;

static void one_ready_poll(void) { syscall(SYS_poll, &full, 1, 1000); }

static void one_connect(void) {
	static const struct sockaddr nowhere = {.sa_family = AF_UNSPEC};
	syscall(SYS_connect, -1, &nowhere, sizeof(nowhere));
}

static void one_poll(void) { syscall(SYS_poll, NULL, 0, 0); }

static void one_getppid(void) { syscall(SYS_getppid); }

#define MOST_BATCHES 65536

static int by_size(const void *a, const void *b) {
	const double x = *(const double *)a, y = *(const double *)b;
	return (x > y) - (x < y);
}

/* The middle one of many short batches: those in which somebody else had the CPU do not count. */
static double ns_per_call(void (*one)(void), long milliseconds) {
	static double batch[MOST_BATCHES];
	for (int i = 0; i < BATCH; i++)
		one();
	long long until = now_ns() + milliseconds * 1000000LL, began, at;
	int batches = 0;
	do {
		began = now_ns();
		for (int i = 0; i < BATCH; i++)
			one();
		at = now_ns();
		batch[batches++] = (double)(at - began) / BATCH;
	} while (at < until && batches < MOST_BATCHES);
	qsort(batch, batches, sizeof(batch[0]), by_size);
	return batch[batches / 2];
}

static double pingpong_ns(long milliseconds) {
	pthread_t thread;
	atomic_store(&stopping, 0);
	if (pthread_create(&thread, NULL, partner, NULL) != 0) {
		perror("tax: no second thread");
		exit(1);
	}
	double ns = ns_per_call(one_pingpong, milliseconds);
	atomic_store(&stopping, 1);
	hand_over(&ping);
	pthread_join(thread, NULL);
	return ns;
}

int main(int argc, char **argv) {
	if (argc == 3 && strcmp(argv[1], "--cpu") == 0) {
		cpu_set_t cpus;
		CPU_ZERO(&cpus);
		CPU_SET(atoi(argv[2]), &cpus);
		if (sched_setaffinity(0, sizeof(cpus), &cpus) != 0)
			perror("tax: not pinned");
	}
	int ends[2];
	if (pipe(ends) != 0 || write(ends[1], "x", 1) != 1) {
		perror("tax: no pipe");
		return 1;
	}
	full = (struct pollfd){.fd = ends[0], .events = POLLIN};
	setvbuf(stdout, NULL, _IOLBF, 0);
	printf("{\"ready\":true,\"pid\":%d}\n", getpid());

	char line[64];
	while (fgets(line, sizeof(line), stdin)) {
		long milliseconds = atol(line);
		double pingpong = pingpong_ns(milliseconds);
		double wake = ns_per_call(one_wake, milliseconds);
		double wait = ns_per_call(one_wait, milliseconds);
		double ready = ns_per_call(one_ready_poll, milliseconds);
		double connect_ = ns_per_call(one_connect, milliseconds);
		double poll0 = ns_per_call(one_poll, milliseconds);
		double getppid_ = ns_per_call(one_getppid, milliseconds);
		printf("{\"futex ping-pong\":%.1f,\"futex wake\":%.1f,\"futex wait, at once\":%.1f,\"poll, ready\":%.1f,"
		       "\"poll(0)\":%.1f,\"connect, refused\":%.1f,\"getppid\":%.1f}\n",
		       pingpong, wake, wait, ready, poll0, connect_, getppid_);
	}
	return 0;
}
