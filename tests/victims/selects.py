"""select.poll() with a limit a few dozen times, then without one. Begins when a line arrives on stdin.

selects.py loop: a main loop over its own wake-up pipe and a connection (healthy)
selects.py peer: a connection to a silent peer alone (wrong)
"""
import json
import os
import select
import socket
import sys
import threading
import time

TIMES = 40
sys.stdin.readline()
listener = socket.create_server(("127.0.0.1", 0))
if os.fork() == 0:
    silent, _ = listener.accept()
    sys.stdin.read()
    os._exit(0)
connection = socket.create_connection(listener.getsockname())
listener.close()
poll = select.poll()
poll.register(connection, select.POLLIN)
if sys.argv[1] == "loop":
    poll.register(os.pipe()[0], select.POLLIN)


def wait():
    for _ in range(TIMES):
        poll.poll(3)
    poll.poll()


thread = threading.Thread(target=wait, daemon=True)
thread.start()
while True:
    with open(f"/proc/self/task/{thread.native_id}/syscall") as file:
        fields = file.read().split()
    if fields[0] == "7" and int(fields[3], 16) & 0xFFFFFFFF == 0xFFFFFFFF:
        break
    time.sleep(0.001)
pid = os.getpid()
seat = {"name": "waiter", "tid": thread.native_id, "pid": pid, "inside_tid": thread.native_id, "inside_pid": pid}
seat |= {"state": "S", "since_ns": time.time_ns()}
print(json.dumps({"ready": True, "shape": sys.argv[1], "pid": pid, "threads": [seat], "calls": TIMES}), flush=True)
sys.stdin.read()
os._exit(0)
