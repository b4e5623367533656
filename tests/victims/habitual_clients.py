"""Clients that wait on purpose, or hardly ever say a word: `habitual_clients.py [HABIT=HOST:PORT...]`.

Each habit is one connection in one process. Prints "ready" when every server has answered what it answers at once.

http        asked once, then kept alive
redis       PING, then nothing
blpop       BLPOP of a list that stays empty, without a limit
subscribe   SUBSCRIBE of a channel where nobody speaks
monitor     MONITOR
memcached   one question, then nothing
mqtt        a subscription without a message; pings every two seconds
websocket   an upgrade, then a few bytes now and then, each way
longpoll    a question, again as soon as it is answered
stream      one question, an answer that never ends
"""

import socket
import sys
import threading
import time

GET = b"GET / HTTP/1.1\r\nHost: test\r\n\r\n"
FIRST = {
    "http": (GET, b"\r\n\r\n"),
    "redis": (b"PING\r\n", b"PONG\r\n"),
    "blpop": (b"PING\r\n", b"PONG\r\n"),
    "subscribe": (b"SUBSCRIBE silence\r\n", b":1\r\n"),
    "monitor": (b"MONITOR\r\n", b"OK\r\n"),
    "memcached": (b"get nothing\r\n", b"END\r\n"),
    # CONNECT, clean, keep-alive 60 s, client "habit".
    "mqtt": (b"\x10\x11\x00\x04MQTT\x04\x02\x00\x3c\x00\x05habit", b"\x20\x02\x00\x00"),
    "websocket": (GET, b"\r\n\r\n"),
    "longpoll": (GET, b"ok"),
    "stream": (GET, b"."),
}
begun = threading.Barrier(len(sys.argv))


def client(habit, address):
    host, port = address.rsplit(":", 1)
    connection = socket.create_connection((host, int(port)))
    question, answer = FIRST[habit]
    connection.sendall(question)
    got = b""
    while answer not in got:
        more = connection.recv(1000)
        if not more:
            raise ConnectionError(habit)
        got += more
    if habit == "blpop":
        # Not in the same tick of the kernel's clock as the answer before.
        time.sleep(0.05)
        connection.sendall(b"BLPOP empty 0\r\n")
    if habit == "mqtt":
        connection.sendall(b"\x82\x06\x00\x01\x00\x01a\x00")
        connection.recv(100)
    begun.wait()
    while True:
        if habit == "mqtt":
            time.sleep(2)
            connection.sendall(b"\xc0\x00")
        if habit == "websocket":
            connection.recv(1000)
            connection.sendall(b"\x81\x81\x00\x00\x00\x00!")
            continue
        if habit == "longpoll":
            connection.sendall(GET)
        if not connection.recv(1000):
            raise ConnectionError(habit)


for word in sys.argv[1:]:
    threading.Thread(target=client, args=word.split("=", 1), daemon=True).start()
begun.wait()
print("ready", flush=True)
sys.stdin.read()
