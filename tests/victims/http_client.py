"""An HTTP client without a timeout, as most are written: http.client, given an address and a port."""
import http.client
import json
import os
import sys
import threading
import time


def check_health(address, port):
    connection = http.client.HTTPConnection(address, port)
    connection.request("GET", "/health")
    return connection.getresponse().read()


def in_recv(tid):
    with open(f"/proc/self/task/{tid}/syscall") as file:
        return file.read().startswith("45 ")


address, port = sys.argv[1], int(sys.argv[2])
thread = threading.Thread(target=check_health, args=(address, port), daemon=True)
thread.start()
while not in_recv(thread.native_id):
    time.sleep(0.001)
pid = os.getpid()
seat = {"name": "checker", "tid": thread.native_id, "pid": pid, "inside_tid": thread.native_id, "inside_pid": pid}
seat |= {"state": "S", "since_ns": time.time_ns()}
print(json.dumps({"ready": True, "shape": "python", "pid": pid, "threads": [seat], "peer": f"{address}:{port}"}), flush=True)
sys.stdin.read()
os._exit(0)
