/* A shared library that calls its program back: library_outer > library_middle > the caller's function. */
#define NOINLINE __attribute__((noinline))

static volatile int steps;

NOINLINE int library_middle(int (*back)(int), int fd) {
    int n = back(fd);
    steps += n;
    return n + 1;
}

NOINLINE int library_outer(int (*back)(int), int fd) {
    int n = library_middle(back, fd);
    steps += n;
    return n + 1;
}
