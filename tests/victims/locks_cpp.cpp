// Two threads of C++ that wait for each other by the locks of its library.
//
//   locks_cpp mutex|recursive|timed|shared|shared-reader|call-once|guard|slow
//
// `shared`: both take std::shared_mutex to write; `shared-reader`: the first one holds its own to read. `call-once`, `guard`: two
// values that are initialised once (std::call_once, static variables of functions) need each other. Healthy: `slow`, two threads
// wait for a call_once that takes four seconds. Prints `ready`, and the addresses of the locks.
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <unistd.h>

#include <mutex>
#include <shared_mutex>
#include <thread>

static pthread_barrier_t both;

template <class Lock> struct Books {
    Lock payments, ledger;
};

template <class Lock> __attribute__((noinline)) void transfer(Lock &first, Lock &second) {
    std::lock_guard<Lock> one(first);
    pthread_barrier_wait(&both);
    std::lock_guard<Lock> two(second);
}

__attribute__((noinline)) void read_and_write(std::shared_mutex &first, std::shared_mutex &second) {
    std::shared_lock<std::shared_mutex> one(first);
    pthread_barrier_wait(&both);
    std::lock_guard<std::shared_mutex> two(second);
}

static void named(const char *name) { prctl(PR_SET_NAME, name); }

template <class Lock> static void circle(void (*first)(Lock &, Lock &)) {
    static Books<Lock> books;
    printf("ready %p %p\n", (void *)&books.payments, (void *)&books.ledger);
    fflush(stdout);
    std::thread([first] { named("payments"); first(books.payments, books.ledger); }).detach();
    std::thread([] { named("ledger"); transfer<Lock>(books.ledger, books.payments); }).detach();
}

static std::once_flag flags[2];

__attribute__((noinline)) static void make(int number) {
    std::call_once(flags[number], [number] {
        pthread_barrier_wait(&both);
        make(1 - number);
    });
}

static int second_value();

__attribute__((noinline)) static int begin(int (*next)()) {
    pthread_barrier_wait(&both);
    return next() + 1;
}

__attribute__((noinline)) static int first_value() {
    static int value = begin(second_value);
    return value;
}

__attribute__((noinline)) static int second_value() {
    static int value = begin(first_value);
    return value;
}

int main(int argc, char **argv) {
    const char *mode = argc > 1 ? argv[1] : "";
    pthread_barrier_init(&both, NULL, 2);
    if (!strcmp(mode, "mutex")) circle<std::mutex>(transfer<std::mutex>);
    else if (!strcmp(mode, "recursive")) circle<std::recursive_mutex>(transfer<std::recursive_mutex>);
    else if (!strcmp(mode, "timed")) circle<std::timed_mutex>(transfer<std::timed_mutex>);
    else if (!strcmp(mode, "shared")) circle<std::shared_mutex>(transfer<std::shared_mutex>);
    else if (!strcmp(mode, "shared-reader")) circle<std::shared_mutex>(read_and_write);
    else {
        if (!strcmp(mode, "call-once")) {
            printf("ready %p %p\n", (void *)&flags[0], (void *)&flags[1]);
            for (int n = 0; n < 2; n++) std::thread([n] { named(n ? "second" : "first"); make(n); }).detach();
        } else if (!strcmp(mode, "guard")) {
            printf("ready\n");
            std::thread([] { named("first"); first_value(); }).detach();
            std::thread([] { named("second"); second_value(); }).detach();
        } else if (!strcmp(mode, "slow")) {
            printf("ready\n");
            for (int n = 0; n < 3; n++)
                std::thread([] { named("slow"); std::call_once(flags[0], [] { usleep(4000000); }); }).detach();
        } else {
            return 2;
        }
        fflush(stdout);
    }
    char c;
    while (read(0, &c, 1) > 0) continue;
    _exit(0);
}
