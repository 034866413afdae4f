"""Content hashes: what is the same weights, wherever it lies."""

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

from pipeline.hashes import content_hashes, tensor_hash


def test_content_decides_about_weights_not_their_place(tmp_path: Path) -> None:
    cache = tmp_path / "cache.json"
    for name, content in (("a", "one"), ("b", "one"), ("c", "two")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "w").write_text(content)
    a, b, c = (content_hashes(tmp_path / name, cache) for name in "abc")
    assert a == b != c
    assert content_hashes(tmp_path / "a" / "w", cache) == {"": a["w"]}
    (tmp_path / "b" / "README.md").write_text("words")
    assert content_hashes(tmp_path / "b", cache) == a
    (tmp_path / "b" / "w").write_text("changed")
    assert content_hashes(tmp_path / "b", cache) != a


def test_a_torn_cache_is_an_empty_one_and_is_written_only_for_what_is_new(tmp_path: Path) -> None:
    cache, weights = tmp_path / "cache.json", tmp_path / "w"
    weights.write_text("one")
    cache.touch()  # what a power cut may leave
    found = content_hashes(weights, cache)
    written = cache.stat()
    assert content_hashes(weights, cache) == found and written.st_size
    assert (cache.stat().st_ino, cache.stat().st_mtime_ns) == (written.st_ino, written.st_mtime_ns)
    cache.write_text("[]")
    assert content_hashes(weights, cache) == found


def test_runs_that_start_together_share_a_cache(tmp_path: Path) -> None:
    cache = tmp_path / "cache.json"
    for i in range(200):
        (tmp_path / f"w{i}").write_text(str(i))
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda i: content_hashes(tmp_path / f"w{i}", cache), range(200)))
    assert len({each[""] for each in found}) == 200
    assert json.loads(cache.read_text())
    assert len(list(tmp_path.iterdir())) == 201  # nothing beside it


def test_tensor_hash_sees_every_value() -> None:
    a = {"x": torch.zeros(3), "y": torch.ones(2)}
    b = {"y": torch.ones(2), "x": torch.tensor([0.0, 0.0, 1e-6])}
    assert tensor_hash(a) == tensor_hash(dict(reversed(a.items()))) != tensor_hash(b)
