"""Python threads blocked in a lock, a sleep and an accept; tells truth as victim.h does."""
import json, os, socket, sys, threading, time

lock = threading.Lock()
lock.acquire()
listener = socket.create_server(("127.0.0.1", 0))
seats = []


def run(name, number, wait):
    seats.append((name, number, threading.get_native_id(), time.time_ns()))
    wait()


def asleep(number, tid):
    with open(f"/proc/self/task/{tid}/syscall") as file:
        return file.read().split()[0] == str(number)


WAITS = [("lock", 202, lock.acquire), ("sleep", 230, lambda: time.sleep(3600)), ("accept", 288, listener.accept)]
for wait in WAITS:
    threading.Thread(target=run, args=wait, daemon=True).start()
while len(seats) < 3 or not all(asleep(number, tid) for _, number, tid, _ in seats):
    time.sleep(0.002)
pid = os.getpid()
threads = [
    dict(name=name, tid=tid, pid=pid, inside_tid=tid, inside_pid=pid, state="S", since_ns=since)
    for name, _, tid, since in seats
]
print(json.dumps(dict(ready=True, shape="python", pid=pid, threads=threads)), flush=True)
sys.stdin.read()
os._exit(0)
