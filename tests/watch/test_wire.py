"""What was said last is heard, however busy the one that hears it was."""

import socket

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


def test_the_last_words_of_one_that_has_not_read_all_are_heard(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    main, other = ends(monkeypatch)
    other.send({"pulse": 1})  # which rank 0 never reads before it leaves
    main.send({"verdict": 2})
    main.part(0.2)
    main.close()
    assert other.receive(1.0)[0] == [(0, {"verdict": 2})]
    assert other.receive(1.0)[0] == [(0, None)]


def test_parting_ends_as_soon_as_the_other_side_parts_too(monkeypatch: pytest.MonkeyPatch) -> None:
    main, other = ends(monkeypatch)
    other.send({"left": True})
    other.part(0.0)
    main.part(600.0)
    assert other.receive(1.0)[0] == [(0, None)]
