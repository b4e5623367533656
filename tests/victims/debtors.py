"""Servers that come to owe something, and healthy ones that look like them: `debtors.py MODE [ARGUMENT...]`.

Each prints the port it listens at (or "ready"). A line on stdin makes the victims among them stop doing their duty;
they answer that with a line, "stopped".

backend [HOST]      answers each line with the same line
pool ADDRESS SIZE   HTTP; a pool of SIZE threads, and a queue of SIZE connections to such a backend: a request takes two of them
relay ADDRESS       HTTP; a thread and a connection to such a backend for each client; waits for an answer without a limit
accepts BACKLOG     HTTP; after the line it accepts nobody
accepts-unix BACKLOG PATH   the same at a unix socket
reads               HTTP, in one thread; after the line it reads nothing, but accepts
loop                HTTP, in one event loop; after the line the next request waits in it for a lock
logs                HTTP, in one event loop that writes a line into a pipe for each request; after the line that pipe is full
longpoll SECONDS    healthy: HTTP, an answer comes after so long
websocket SECONDS   healthy: a client asks once; then each side sends a few bytes, the server unasked, every SECONDS
stream              healthy: an answer of one byte a second, without an end
"""

import asyncio
import queue
import select
import selectors
import socket
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor


def say(what):
    print(what, flush=True)


def listen(backlog=128, path=None):
    if path:
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(path)
        listener.listen(backlog)
        say("ready")
    else:
        listener = socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", 0))
        listener.listen(backlog)
        say(listener.getsockname()[1])
    return listener


def connect(address):
    host, port = address.rsplit(":", 1)
    connection = socket.create_connection((host, int(port)))
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection


def question(connection):
    """Asks a backend; its answer is one line."""
    connection.sendall(b"question\n")
    answer = b""
    while not answer.endswith(b"\n"):
        more = connection.recv(100)
        if not more:
            raise ConnectionError("the backend is gone")
        answer += more


def read_request(client):
    request = b""
    while not request.endswith(b"\r\n\r\n"):
        more = client.recv(1000)
        if not more:
            return False
        request += more
    return True


ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


def thread_each(listener, serve):
    while True:
        client, _ = listener.accept()
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        threading.Thread(target=serve, args=(client,), daemon=True).start()


def backend(host="127.0.0.1"):
    listener = socket.socket()
    listener.bind((host, 0))
    listener.listen(64)
    say(listener.getsockname()[1])

    def serve(client):
        while data := client.recv(1000):
            # Some work: requests that come at once meet.
            time.sleep(0.02)
            client.sendall(data)

    thread_each(listener, serve)


def pool(address, size):
    size = int(size)
    connections = queue.Queue()
    for _ in range(size):
        connections.put(connect(address))
    threads = ThreadPoolExecutor(size)

    def one_request(client):
        # One thread takes each request, as thread-pool servers do: read it, answer it, back to the selector.
        if not read_request(client):
            client.close()
            return
        first = connections.get()
        try:
            question(first)
            second = connections.get()
            question(second)
            connections.put(second)
        finally:
            connections.put(first)
        client.sendall(ANSWER)
        idle.put(client)
        waker.send(b"!")

    listener = listen()
    idle = queue.Queue()
    wakes, waker = socket.socketpair()
    selector = selectors.DefaultSelector()
    selector.register(listener, selectors.EVENT_READ)
    selector.register(wakes, selectors.EVENT_READ)
    while True:
        for key, _ in selector.select():
            if key.fileobj is listener:
                client, _ = listener.accept()
                client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                selector.register(client, selectors.EVENT_READ)
            elif key.fileobj is wakes:
                wakes.recv(100)
                while not idle.empty():
                    selector.register(idle.get(), selectors.EVENT_READ)
            else:
                selector.unregister(key.fileobj)
                threads.submit(one_request, key.fileobj)


def relay(address):
    def serve(client):
        connection = connect(address)
        while read_request(client):
            question(connection)
            client.sendall(ANSWER)

    thread_each(listen(), serve)


def serve_client(client):
    while read_request(client):
        client.sendall(ANSWER)


def accepts(backlog, path=None):
    """One thread accepts, each client has a thread: the acceptor comes to wait for something that never happens."""
    listener = listen(int(backlog), path)
    listener.setblocking(False)
    commands = selectors.DefaultSelector()
    commands.register(listener, selectors.EVENT_READ)
    commands.register(sys.stdin, selectors.EVENT_READ)
    while True:
        for key, _ in commands.select():
            if key.fileobj is sys.stdin:
                sys.stdin.readline()
                say("stopped")
                threading.Event().wait()
            client, _ = listener.accept()
            client.setblocking(True)
            threading.Thread(target=serve_client, args=(client,), daemon=True).start()


def reads():
    listener = listen()
    reading = threading.Event()
    reading.set()

    def serve(client):
        while True:
            # Looks before it reads, and waits for its turn in between: what came stays in the kernel.
            select.select([client], [], [])
            reading.wait()
            if not read_request(client):
                return
            client.sendall(ANSWER)

    def command():
        sys.stdin.readline()
        reading.clear()
        say("stopped")

    threading.Thread(target=command, daemon=True).start()
    thread_each(listener, serve)


async def asynchronous(serve):
    async def guarded(reader, writer):
        try:
            await serve(reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass

    server = await asyncio.start_server(guarded, "127.0.0.1", 0)
    say(server.sockets[0].getsockname()[1])
    await server.serve_forever()


def loop():
    stopped = threading.Event()
    lock = threading.Lock()
    lock.acquire()

    async def serve(reader, writer):
        while await reader.readuntil(b"\r\n\r\n"):
            if stopped.is_set():
                lock.acquire()
            writer.write(ANSWER)
            await writer.drain()

    def command():
        sys.stdin.readline()
        stopped.set()
        say("stopped")

    threading.Thread(target=command, daemon=True).start()
    asyncio.run(asynchronous(serve))


def logs():
    """The log goes to a process that has never read any of it, and now the pipe between them is full."""
    import ctypes
    import os
    import subprocess

    die_with_parent = lambda: ctypes.CDLL(None).prctl(1, 9)
    reader = subprocess.Popen(["sleep", "1000"], stdin=subprocess.PIPE, preexec_fn=die_with_parent)
    log = reader.stdin.fileno()

    async def serve(reader, writer):
        while await reader.readuntil(b"\r\n\r\n"):
            os.write(log, b"a request\n")
            writer.write(ANSWER)
            await writer.drain()

    def command():
        sys.stdin.readline()
        os.set_blocking(log, False)
        size = 4096
        while size:
            try:
                os.write(log, b"." * size)
            except BlockingIOError:
                size //= 2
        os.set_blocking(log, True)
        say("stopped")

    threading.Thread(target=command, daemon=True).start()
    asyncio.run(asynchronous(serve))


def longpoll(seconds):
    async def serve(reader, writer):
        while await reader.readuntil(b"\r\n\r\n"):
            await asyncio.sleep(float(seconds))
            writer.write(ANSWER)
            await writer.drain()

    asyncio.run(asynchronous(serve))


def websocket(seconds):
    async def serve(reader, writer):
        async def unasked():
            while True:
                await asyncio.sleep(float(seconds))
                writer.write(b"\x81\x02hi")
                await writer.drain()

        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n")
        sender = asyncio.create_task(unasked())
        # What a client says is not answered.
        while await reader.read(1000):
            pass
        sender.cancel()

    asyncio.run(asynchronous(serve))


def stream():
    async def serve(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
        while True:
            writer.write(b".")
            await writer.drain()
            await asyncio.sleep(1)

    asyncio.run(asynchronous(serve))


MODES = {
    "backend": backend,
    "pool": pool,
    "relay": relay,
    "accepts": accepts,
    "accepts-unix": accepts,
    "reads": reads,
    "loop": loop,
    "logs": logs,
    "longpoll": longpoll,
    "websocket": websocket,
    "stream": stream,
}
MODES[sys.argv[1]](*sys.argv[2:])
