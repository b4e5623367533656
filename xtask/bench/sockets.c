/*
 * Many established connections over loopback, for `cargo xtask bench sockets`.
 *
 *   sockets COUNT PER_PROCESS
 *   sockets measure PROGRAM [ARGUMENT…]
 *
 * The first form, in a network namespace of its own, brings the loopback device up and makes COUNT connected sockets
 * (COUNT / 2 connections), PER_PROCESS of them in one process, each process at an address of its own. A byte has gone each
 * way over every connection. Prints {"ready":true,"sockets":COUNT,"processes":N}, then stays until killed.
 * The second form runs a program, its output thrown away, and prints {"wall_ns":…,"cpu_ns":…,"peak_kib":…}.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <net/if.h>
#include <netinet/in.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <signal.h>
#include <time.h>
#include <unistd.h>

static void die(const char *what) {
	fprintf(stderr, "sockets: %s: %s\n", what, strerror(errno));
	exit(1);
}

static void raise_loopback(void) {
	struct ifreq request = {.ifr_name = "lo", .ifr_flags = IFF_UP | IFF_RUNNING};
	int fd = socket(AF_INET, SOCK_DGRAM, 0);
	if (fd < 0 || ioctl(fd, SIOCSIFFLAGS, &request))
		die("cannot raise the loopback device");
	close(fd);
}

static void pass_a_byte(int from, int to) {
	char byte = 'x';
	if (write(from, &byte, 1) != 1 || read(to, &byte, 1) != 1)
		die("a byte did not pass");
}

static void connect_all(int number, int sockets) {
	struct rlimit limit = {(rlim_t)sockets + 64, (rlim_t)sockets + 64};
	if (setrlimit(RLIMIT_NOFILE, &limit))
		die("RLIMIT_NOFILE");
	struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(7000)};
	address.sin_addr.s_addr = htonl(0x7f000001u + ((unsigned)(number + 1) << 8));
	int listener = socket(AF_INET, SOCK_STREAM, 0);
	if (listener < 0 || bind(listener, (struct sockaddr *)&address, sizeof address) || listen(listener, 128))
		die("listen");
	for (int made = 0; made < sockets; made += 2) {
		int near = socket(AF_INET, SOCK_STREAM, 0), far;
		if (near < 0 || connect(near, (struct sockaddr *)&address, sizeof address))
			die("connect");
		far = accept(listener, NULL, NULL);
		if (far < 0)
			die("accept");
		pass_a_byte(near, far);
		pass_a_byte(far, near);
	}
}

static long long ns(struct timeval t) { return t.tv_sec * 1000000000LL + t.tv_usec * 1000LL; }

static int measure(char **command) {
	struct timespec began, ended;
	struct rusage usage;
	int status;
	clock_gettime(CLOCK_MONOTONIC, &began);
	pid_t pid = fork();
	if (pid < 0)
		die("fork");
	if (!pid) {
		int nowhere = open("/dev/null", O_WRONLY);
		dup2(nowhere, 1);
		execvp(command[0], command);
		die(command[0]);
	}
	if (wait4(pid, &status, 0, &usage) != pid || !WIFEXITED(status) || WEXITSTATUS(status))
		die("it failed");
	clock_gettime(CLOCK_MONOTONIC, &ended);
	long long wall = (ended.tv_sec - began.tv_sec) * 1000000000LL + ended.tv_nsec - began.tv_nsec;
	printf("{\"wall_ns\":%lld,\"cpu_ns\":%lld,\"peak_kib\":%ld}\n", wall, ns(usage.ru_utime) + ns(usage.ru_stime),
	       usage.ru_maxrss);
	return 0;
}

int main(int argc, char **argv) {
	if (argc > 2 && !strcmp(argv[1], "measure"))
		return measure(argv + 2);
	if (argc != 3)
		return fprintf(stderr, "usage: sockets COUNT PER_PROCESS | sockets measure PROGRAM…\n"), 2;
	int count = atoi(argv[1]), each = atoi(argv[2]), processes = 0;
	atomic_int *ready = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (ready == MAP_FAILED)
		die("mmap");
	raise_loopback();
	for (int left = count; left > 0; left -= each, processes++) {
		pid_t pid = fork();
		if (pid < 0)
			die("fork");
		if (!pid) {
			prctl(PR_SET_PDEATHSIG, SIGKILL);
			connect_all(processes, left < each ? left : each);
			atomic_fetch_add(ready, 1);
			for (;;)
				pause();
		}
	}
	while (atomic_load(ready) < processes) {
		if (waitpid(-1, NULL, WNOHANG) > 0)
			die("a process ended early");
		usleep(1000);
	}
	printf("{\"ready\":true,\"sockets\":%d,\"processes\":%d}\n", count, processes);
	fflush(stdout);
	for (;;)
		pause();
}
