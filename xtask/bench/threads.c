/*
 * Many threads that sleep in futex, for `cargo xtask bench census`.
 *
 *   threads COUNT [PER_PROCESS]
 *
 * Starts COUNT threads in all, at most PER_PROCESS (default 1000) in one process, on one small stack
 * each (16 KiB, carved from one mapping, so that vm.max_map_count is no limit). Prints
 * {"ready":true,"threads":COUNT,"processes":N} when all of them run, then stays until killed. The
 * first process's own thread is one of COUNT.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <linux/futex.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <signal.h>
#include <unistd.h>

#define STACK (16 * 1024)

/* Shared by all processes: how many threads have arrived, and whether one could not be made. */
static struct {
	atomic_int arrived, failed;
} *shared;

static void sleep_for_ever(void) {
	static atomic_int never;
	for (;;)
		syscall(SYS_futex, &never, FUTEX_WAIT_PRIVATE, 0, NULL, NULL, 0);
}

static void arrive(atomic_int *counter) {
	atomic_fetch_add(counter, 1);
	syscall(SYS_futex, &shared->arrived, FUTEX_WAKE, 1, NULL, NULL, 0);
}

static void *sleeper(void *unused) {
	arrive(&shared->arrived);
	sleep_for_ever();
	return unused;
}

static void fail(const char *what, int error) {
	fprintf(stderr, "threads: %s: %s\n", what, strerror(error));
	arrive(&shared->failed);
	arrive(&shared->arrived);
}

/* Makes COUNT threads beside the calling one. */
static void fill(int count) {
	char *stacks = mmap(NULL, (size_t)count * STACK + 1, PROT_READ | PROT_WRITE,
	                    MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (stacks == MAP_FAILED) {
		fail("no room for stacks", errno);
		return;
	}
	for (int i = 0; i < count; i++) {
		pthread_t thread;
		pthread_attr_t attributes;
		pthread_attr_init(&attributes);
		pthread_attr_setstack(&attributes, stacks + (size_t)i * STACK, STACK);
		int error = pthread_create(&thread, &attributes, sleeper, NULL);
		if (error != 0) {
			fail("no further thread", error);
			return;
		}
	}
}

int main(int argc, char **argv) {
	int count = argc > 1 ? atoi(argv[1]) : 0;
	int per_process = argc > 2 ? atoi(argv[2]) : 1000;
	if (count < 1 || per_process < 1) {
		fprintf(stderr, "usage: threads COUNT [PER_PROCESS]\n");
		return 2;
	}
	shared = mmap(NULL, sizeof(*shared), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (shared == MAP_FAILED) {
		perror("threads: mmap");
		return 1;
	}
	int processes = 1, left = count;
	int own = left < per_process ? left : per_process;
	for (left -= own; left > 0; processes++) {
		int theirs = left < per_process ? left : per_process;
		pid_t parent = getpid();
		pid_t child = fork();
		if (child < 0) {
			perror("threads: fork");
			return 1;
		}
		if (child == 0) {
			prctl(PR_SET_PDEATHSIG, SIGKILL);
			if (getppid() != parent)
				return 1;
			fill(theirs - 1);
			arrive(&shared->arrived);
			sleep_for_ever();
		}
		left -= theirs;
	}
	fill(own - 1);
	arrive(&shared->arrived);

	int arrived;
	while (!atomic_load(&shared->failed) && (arrived = atomic_load(&shared->arrived)) < count)
		syscall(SYS_futex, &shared->arrived, FUTEX_WAIT, arrived, NULL, NULL, 0);
	if (atomic_load(&shared->failed))
		return 1;
	printf("{\"ready\":true,\"threads\":%d,\"processes\":%d}\n", count, processes);
	fflush(stdout);
	sleep_for_ever();
}
