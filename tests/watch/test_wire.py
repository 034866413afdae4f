"""Who leaves is heard to the end, and does not wait for ever."""

import socket
import threading
import time

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


def test_parting_ends_as_soon_as_the_other_side_parts_too(monkeypatch: pytest.MonkeyPatch) -> None:
    main, other = ends(monkeypatch)
    other.send({"left": True})
    other.part(0.0)
    main.part(600.0)
    assert other.receive(1.0)[0] == [(0, None)]
