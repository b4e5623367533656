"""Locks of Python that hang, and some that do not: `locks.py MODE [THREADS]`; says `ready NAME=TID ...` when it is there."""
import concurrent.futures, ctypes, os, queue, sys, threading, time

mode, number = sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 4
tids = {}


def start(name, work, *args):
    def run():
        tids[name] = threading.get_native_id()
        work(*args)

    thread = threading.Thread(target=run, name=name, daemon=True)
    thread.start()
    while name not in tids:
        time.sleep(0.001)
    return tids[name]


def syscall(tid):
    with open(f"/proc/self/task/{tid}/syscall") as file:
        return file.read().split()[0]


def until_in(tid, number):
    while syscall(tid) != str(number):
        time.sleep(0.002)


def ready():
    print("ready", *(f"{name}={tid}" for name, tid in tids.items()), flush=True)


def rest():
    sys.stdin.read()
    os._exit(0)


def spin():
    total = 0
    while True:
        total = (total * 31 + 7) % 1_000_003


def opposite(make):
    """Two threads, two locks, in opposite order, with a third that waits behind them."""
    left, right, both = make(), make(), threading.Barrier(2)

    def transfer(first, second):
        with first:
            both.wait()
            with second:
                raise AssertionError("it did not hang")

    for name, locks in [("left", (left, right)), ("right", (right, left))]:
        start(name, transfer, *locks)
    for tid in list(tids.values()):
        until_in(tid, 202)
    # Once more: the barrier is a futex, too.
    time.sleep(0.3)
    ready()
    rest()


def itself():
    """One thread that takes a lock that is not recursive twice."""
    lock = threading.Lock()

    def inner():
        with lock:
            raise AssertionError("it did not hang")

    def outer():
        with lock:
            inner()

    until_in(start("itself", outer), 202)
    ready()
    rest()


def held(how):
    """A holder that sleeps for long, and threads behind it. `bare`: the lock is taken without `with`."""
    lock = threading.RLock() if how == "rlock" else threading.Lock()

    def inside():
        if how == "bare":
            lock.acquire()
            time.sleep(3600)
        with lock:
            time.sleep(3600)

    def behind():
        with lock:
            raise AssertionError("it was let go")

    until_in(start("holder", inside), 230)
    for each in range(number):
        until_in(start(f"behind-{each}", behind), 202)
    ready()
    rest()


def stale():
    """A frame that was inside of `with lock:` and sleeps now, while another has the lock without `with`."""
    lock = threading.Lock()

    def earlier():
        with lock:
            pass
        time.sleep(3600)

    def waits():
        condition = threading.Condition(lock)
        with lock:
            condition.wait()

    def holder():
        lock.acquire()
        time.sleep(3600)

    until_in(start("earlier", earlier), 230)
    until_in(start("in-wait", waits), 202)
    until_in(start("holder", holder), 230)
    until_in(start("behind", lambda: lock.acquire()), 202)
    ready()
    rest()


def gil():
    """A C function that keeps the GIL; whoever is started must be ready before."""
    libc = ctypes.PyDLL("libc.so.6")
    go = threading.Event()

    def behind():
        go.wait()
        spin()

    for each in range(number):
        start(f"behind-{each}", behind)
    tids["main"] = threading.get_native_id()
    ready()
    go.set()
    time.sleep(0.05)
    libc.sleep(3600)


def gil_and_mutex():
    """A thread with the GIL waits for a mutex, whose owner waits for the GIL."""
    mutex = ctypes.create_string_buffer(64)
    keeps, lets_go = ctypes.PyDLL("libc.so.6"), ctypes.CDLL("libc.so.6")
    has_it = threading.Event()

    def owner():
        lets_go.pthread_mutex_lock(mutex)
        has_it.set()
        spin()

    start("owner", owner)
    tids["main"] = threading.get_native_id()
    has_it.wait()
    ready()
    keeps.pthread_mutex_lock(mutex)


def busy():
    for each in range(number):
        start(f"busy-{each}", spin)
    ready()
    rest()


def pool():
    """Workers at rest: a pool, a queue, an event, a condition, a timer, a join."""
    executor = concurrent.futures.ThreadPoolExecutor(number)
    list(executor.map(time.sleep, [0.01] * number))
    work, event, lock = queue.Queue(), threading.Event(), threading.Lock()
    condition = threading.Condition(lock)

    def wait_with_its_lock():
        with lock:
            condition.wait()

    start("queue", work.get)
    start("simple", queue.SimpleQueue().get)
    start("event", event.wait)
    start("condition", wait_with_its_lock)
    start("timed", event.wait, 3600)
    other = threading.Thread(target=event.wait, daemon=True)
    other.start()
    start("join", other.join)
    time.sleep(0.2)
    ready()
    rest()


def contended(make):
    """A lock that is wanted by all and passed on all the time, the holder asleep with it for a while."""
    lock = make()

    def work(pause):
        while True:
            with lock:
                time.sleep(0.01)
            time.sleep(pause)

    for each in range(number):
        start(f"worker-{each}", work, each % 2 * 0.002)
    ready()
    rest()


{
    "lock": lambda: opposite(threading.Lock),
    "rlock": lambda: opposite(threading.RLock),
    "itself": itself,
    "held-lock": lambda: held("lock"),
    "held-rlock": lambda: held("rlock"),
    "held-bare": lambda: held("bare"),
    "stale": stale,
    "gil": gil,
    "gil-and-mutex": gil_and_mutex,
    "busy": busy,
    "pool": pool,
    "contended": lambda: contended(threading.Lock),
    "contended-rlock": lambda: contended(threading.RLock),
}[mode]()
