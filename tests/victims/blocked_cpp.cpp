/* C++ threads blocked at a known chain: a namespace, a template, a virtual method and a lambda.
 *
 * "mutex": ledger::Book<int>::post > ledger::lock_book<int> > std::mutex; "lambda": run_all > a lambda > blocked_here.
 */
#include "victim.h"
#include <functional>
#include <mutex>

static volatile int steps;
static std::mutex book_lock;
static int quiet;

namespace ledger {
struct Poster {
    virtual int post(int amount) = 0;
    virtual ~Poster() {}
};

template <typename T> NOINLINE T lock_book(std::mutex &m, T amount) {
    m.lock();
    steps = steps + (int)amount;
    return amount + 1;
}

template <typename T> struct Book : Poster {
    NOINLINE int post(int amount) override {
        int n = (int)lock_book<T>(book_lock, (T)amount);
        steps = steps + n;
        return n + 1;
    }
};
} // namespace ledger

namespace {
NOINLINE int blocked_here(int fd) {
    char c;
    int n = (int)read(fd, &c, 1);
    steps = steps + n;
    return n;
}

NOINLINE int run_all(const std::function<int(int)> &job) {
    int n = job(quiet);
    steps = steps + n;
    return n + 1;
}
} // namespace

static void *poster(void *arg) {
    struct seat *seat = (struct seat *)arg;
    take_seat(seat);
    about_to_wait(seat);
    ledger::Poster *book = new ledger::Book<int>;
    steps = steps + book->post(5);
    return NULL;
}

static void *runner(void *arg) {
    struct seat *seat = (struct seat *)arg;
    take_seat(seat);
    about_to_wait(seat);
    steps = steps + run_all([](int fd) {
        int n = blocked_here(fd);
        steps = steps + n;
        return n + 2;
    });
    return NULL;
}

int main() {
    victim_init();
    quiet = silent_pipe();
    book_lock.lock();
    start_thread(poster, new_seat("mutex", "futex", SYS_futex));
    start_thread(runner, new_seat("lambda", "read", SYS_read));
    print_truth(getpid(), "cpp", "");
    stay();
}
