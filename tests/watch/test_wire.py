"""Who leaves is heard to the end, and does not wait for ever."""

import json
import socket
import threading
import time
from typing import Any

import pytest
import torch

from pipeline.dist import World
from pipeline.watch import wire
from pipeline.watch.wire import Wire


def ends(monkeypatch: pytest.MonkeyPatch) -> tuple[Wire, Wire]:
    """Rank 0's end and rank 1's, of one real connection."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        other = socket.create_connection(server.getsockname())
        main = server.accept()[0]
    monkeypatch.setattr(wire, "wait_for_all", lambda world: None)
    made = []
    for rank, connection in enumerate((main, other)):
        peers = [wire._Peer(1 - rank, connection)]
        monkeypatch.setattr(wire, "_meet", lambda world, peers=peers: peers)
        made.append(Wire(World(rank, 2, rank, 2, torch.device("cpu"))))
    return made[0], made[1]


def test_one_that_leaves_waits_until_its_last_words_are_heard(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    main, other = ends(monkeypatch)
    heard = []

    def listen() -> None:
        time.sleep(0.5)  # busy with other things
        heard.extend(other.receive(5.0)[0])
        other.part(0.0)

    other.send({"pulse": 1})
    main.send({"verdict": 2})
    listener = threading.Thread(target=listen)
    listener.start()
    main.part(600.0)
    assert heard == [(0, {"verdict": 2})]
    listener.join()


def test_it_waits_no_longer_than_it_was_told(monkeypatch: pytest.MonkeyPatch) -> None:
    main, _other = ends(monkeypatch)
    began = time.monotonic()
    main.part(0.3)
    assert 0.3 <= time.monotonic() - began < 10


def test_strangers_at_the_door_do_not_end_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire, "_INTRODUCTION_SECONDS", 0.2)
    visitors: list[socket.socket] = []

    def visit(port: int, word: str) -> None:
        for said in (None, b"\xff\xfe\n", b"[1, 2", b"x" * 10_000, json.dumps([1, word]).encode()):
            visitors.append(socket.create_connection(("127.0.0.1", port)))
            if said is not None:
                visitors[-1].sendall(said + b"\n")

    def told(value: list[Any], world: World) -> list[Any]:
        threading.Thread(target=visit, args=value).start()
        return value

    monkeypatch.setattr(wire, "from_main", told)
    (peer,) = wire._meet(World(0, 2, 0, 2, torch.device("cpu")))
    assert peer.rank == 1
    assert peer.connection.getpeername() == visitors[-1].getsockname()


def test_parting_ends_as_soon_as_the_other_side_parts_too(monkeypatch: pytest.MonkeyPatch) -> None:
    main, other = ends(monkeypatch)
    other.send({"left": True})
    other.part(0.0)
    main.part(600.0)
    assert other.receive(1.0)[0] == [(0, None)]
