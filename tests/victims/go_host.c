/* A C program with a Go runtime in a library: go_host LIBRARY. Its second thread waits in Go. */
#include "victim.h"

#include <dlfcn.h>

static void (*wait_in_go)(void);

static void *waiter(void *unused)
{
	(void)unused;
	wait_in_go();
	return NULL;
}

int main(int argc, char **argv)
{
	void *library = argc > 1 ? dlopen(argv[1], RTLD_NOW) : NULL;
	if (!library)
		return 1;
	void (*start)(void) = (void (*)(void))dlsym(library, "Start");
	wait_in_go = (void (*)(void))dlsym(library, "Wait");
	pthread_t thread;
	if (!start || !wait_in_go)
		return 1;
	start();
	if (pthread_create(&thread, NULL, waiter, NULL))
		return 1;
	printf("{\"ready\":true,\"shape\":\"go_host\",\"pid\":%d,\"threads\":[]}\n", getpid());
	fflush(stdout);
	char end;
	return read(0, &end, 1) < 0;
}
