"""A star of sockets, rank 0 in the middle, that carries JSON lines beside the collectives.

A peer's end is noticed at once, whatever ended it, because its system closes the connection.
Sending never waits: what a stopped peer does not take is kept, and given up in the end.
"""

import contextlib
import json
import os
import secrets
import selectors
import socket
import threading
import time
from typing import Any

from pipeline.dist import World, from_main, wait_for_all

Message = dict[str, Any]

_OPENING_SECONDS = 60.0
_INTRODUCTION_SECONDS = 5.0
_LONGEST_INTRODUCTION = 256  # bytes
_MOST_KEPT = 1 << 20  # bytes for one peer
_CHUNK = 1 << 16


class _Peer:
    """One connection and what is underway on it."""

    def __init__(self, rank: int, connection: socket.socket) -> None:
        self.rank, self.connection = rank, connection
        self.coming, self.going = b"", b""
        connection.setblocking(False)

    def send(self, message: Message) -> None:
        """As much as the system takes; the rest goes with the next message."""
        if len(self.going) < _MOST_KEPT:
            self.going += json.dumps(message).encode() + b"\n"
        with contextlib.suppress(OSError):  # a broken one is noticed where it is read
            self.going = self.going[self.connection.send(self.going) :]

    def end(self) -> None:
        """Says all that is kept, as far as the system takes it, and that nothing more will come."""
        with contextlib.suppress(OSError):
            self.going = self.going[self.connection.send(self.going) :]
            self.connection.shutdown(socket.SHUT_WR)

    def receive(self) -> list[Message] | None:
        """The messages that have come; None when the connection has ended."""
        try:
            chunk = self.connection.recv(_CHUNK)
        except BlockingIOError:
            return []
        except OSError:
            return None
        if not chunk:
            return None
        *lines, self.coming = (self.coming + chunk).split(b"\n")
        return [json.loads(each) for each in lines]


class Wire:
    """This process's end: to all others on rank 0, to rank 0 on the others."""

    def __init__(self, world: World) -> None:
        """Connects; a collective, call it on every rank."""
        self._selector = selectors.DefaultSelector()
        # What wakes the waiting thread: other threads, and signals (see `signals.py`).
        self._bell, self.knocker = os.pipe()
        for each in (self._bell, self.knocker):
            os.set_blocking(each, False)
        self._selector.register(self._bell, selectors.EVENT_READ)
        self._sending = threading.Lock()  # the training thread sends too
        self._peers: list[_Peer] = []
        if world.size > 1:
            self._peers = _meet(world)
            wait_for_all(world)  # before the first message: rank 0 still reads introductions
        for peer in self._peers:
            self._selector.register(peer.connection, selectors.EVENT_READ, peer)

    def knock(self) -> None:
        """Wakes the thread that waits in `receive`."""
        os.write(self.knocker, b"\0")

    def send(self, message: Message) -> None:
        """To rank 0, or from it to all others."""
        with self._sending:
            for peer in self._peers:
                peer.send(message)

    def receive(self, seconds: float) -> tuple[list[tuple[int, Message | None]], bytes]:
        """Waits that long at most; (rank, its message, or None when it has ended) and knocks."""
        found: list[tuple[int, Message | None]] = []
        knocks = b""
        for key, _ in self._selector.select(max(seconds, 0.0)):
            if key.data is None:
                knocks += os.read(self._bell, _CHUNK)
                continue
            peer: _Peer = key.data
            messages = peer.receive()
            if messages is None:
                self._selector.unregister(peer.connection)
                with self._sending:
                    self._peers.remove(peer)
                found.append((peer.rank, None))
            else:
                found += [(peer.rank, each) for each in messages]
        return found, knocks

    def part(self, seconds: float) -> None:
        """Says no more, and waits that long at most until the others have nothing to say either.

        A process that ends with something unread resets its connections, and its last words are
        lost where the other has not read them yet.
        """
        with self._sending:
            for peer in self._peers:
                peer.end()
        until = time.monotonic() + seconds
        while self._peers and (left := until - time.monotonic()) > 0:
            self.receive(left)

    def close(self) -> None:
        """Ends all connections."""
        for peer in self._peers:
            peer.connection.close()


def _meet(world: World) -> list[_Peer]:
    """Rank 0 listens, the others come; a word that only they know keeps strangers out."""
    if not world.is_main:
        port, word = from_main(None, world)
        address = (os.environ["MASTER_ADDR"], port)
        connection = socket.create_connection(address, timeout=_OPENING_SECONDS)
        connection.sendall(json.dumps([world.rank, word]).encode() + b"\n")
        return [_Peer(0, connection)]
    peers: list[_Peer] = []
    with socket.create_server(("", 0), backlog=world.size) as server:
        word = secrets.token_hex(16)
        from_main([server.getsockname()[1], word], world)
        server.settimeout(_OPENING_SECONDS)
        while len(peers) < world.size - 1:
            connection = server.accept()[0]
            rank, known = _introduction(connection)
            if known == word:
                peers.append(_Peer(rank, connection))
            else:
                connection.close()
    return peers


def _introduction(connection: socket.socket) -> tuple[int, str]:
    """Who has come, and the word; a stranger may say anything, or nothing."""
    connection.settimeout(_INTRODUCTION_SECONDS)
    try:
        with connection.makefile("rb") as lines:
            rank, word = json.loads(lines.readline(_LONGEST_INTRODUCTION))
        return int(rank), str(word)
    except (OSError, ValueError, TypeError):
        return -1, ""
