/* A process that blocks whoever reads its memory.
 *
 * Two threads wait for a mutex that lives on a page of its own, held by a third that reads a silent pipe. Then the
 * page is given to userfaultfd and dropped, and its faults are never served: a reader from outside
 * with process_vm_readv sleeps until this process dies. (A read of /proc/PID/mem fails with EIO instead: it cannot
 * give the mmap lock back and retry. Kernel 6.18.)
 *
 * Truth: "page" is the page's address.
 */
#include "victim.h"
#include <linux/userfaultfd.h>
#include <sys/ioctl.h>

static pthread_mutex_t *lock;
static pthread_barrier_t held;
static struct seat *hold_seat;

static void *holder(void *arg) {
    take_seat(hold_seat);
    PCHECK(pthread_mutex_lock(lock));
    pthread_barrier_wait(&held);
    read_for_ever(silent_pipe());
    return arg;
}

static void *waiter(void *arg) {
    take_seat(arg);
    PCHECK(pthread_mutex_lock(lock));
    return arg;
}

int main(void) {
    victim_init();
    size_t size = (size_t)sysconf(_SC_PAGESIZE);
    void *page = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (page == MAP_FAILED) die("mmap");
    lock = page;
    init_mutex(lock, false, false);
    PCHECK(pthread_barrier_init(&held, NULL, 2));
    hold_seat = new_seat("holder", "read", SYS_read);
    start_thread(holder, NULL);
    pthread_barrier_wait(&held);
    for (int i = 0; i < 2; i++) {
        struct seat *s = new_seat(i ? "waiter-2" : "waiter-1", "futex", SYS_futex);
        s->resource = "mutex";
        s->waits_for = lock;
        s->owner = hold_seat;
        start_thread(waiter, s);
    }
    for (int i = 0; i < seat_count; i++) await_seat(&seats[i]);
    int uffd = (int)syscall(SYS_userfaultfd, O_CLOEXEC);
    if (uffd < 0) die("userfaultfd");
    struct uffdio_api api = {.api = UFFD_API};
    CHECK(ioctl(uffd, UFFDIO_API, &api));
    struct uffdio_register reg = {.range = {(uintptr_t)page, size}, .mode = UFFDIO_REGISTER_MODE_MISSING};
    CHECK(ioctl(uffd, UFFDIO_REGISTER, &reg));
    CHECK(madvise(page, size, MADV_DONTNEED));
    print_truth(getpid(), "userfaultfd", ",\"page\":\"%p\"", page);
    stay();
}
