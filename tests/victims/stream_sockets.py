"""Two processes and their connections, in a network namespace of their own.

    stream_sockets.py owes|idle

The server accepts at 127.0.0.1:7000. `owes`: one request is read and not answered, one is not read, one connection is not
accepted. `idle`: one connection over which a request was answered. Prints the process ids and when the requests were sent
(CLOCK_MONOTONIC, ns), then sleeps.
"""

import ctypes
import fcntl
import json
import os
import socket
import struct
import sys
import time

CLONE_NEWNET = 0x40000000
SIOCSIFFLAGS = 0x8914
ADDRESS = ("127.0.0.1", 7000)


def raise_loopback():
    if ctypes.CDLL(None, use_errno=True).unshare(CLONE_NEWNET):
        sys.exit("unshare: " + os.strerror(ctypes.get_errno()))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        fcntl.ioctl(control, SIOCSIFFLAGS, struct.pack("16sH14x", b"lo", 1))


def sleep_for_ever(ready):
    os.read(ready, 1)


def client(mode, answers):
    def ask(request):
        near = socket.create_connection(ADDRESS)
        near.sendall(request)
        return near

    asked = time.monotonic_ns()
    kept = [ask(b"hello")]
    if mode == "idle":
        kept[0].recv(10)
    else:
        kept += [ask(b"unread!"), socket.create_connection(ADDRESS)]
    os.write(answers, struct.pack("q", asked))
    return kept


def main():
    mode = sys.argv[1]
    raise_loopback()
    listener = socket.create_server(ADDRESS)
    told, tell = os.pipe()
    never, _never = os.pipe()
    child = os.fork()
    if child == 0:
        listener.close()
        kept = client(mode, tell)
        sleep_for_ever(never)
    first = listener.accept()[0]
    first.recv(5)
    if mode == "idle":
        first.sendall(b"well")
    else:
        second = listener.accept()[0]
    asked = struct.unpack("q", os.read(told, 8))[0]
    print(json.dumps({"ready": True, "server": os.getpid(), "client": child, "asked_ns": asked}), flush=True)
    sleep_for_ever(never)


main()
