"""Content hashes: what is the same weights, wherever it lies."""

from pathlib import Path

import torch

from pipeline.hashes import content_hash, tensor_hash


def test_content_decides_about_weights_not_their_place(tmp_path: Path) -> None:
    cache = tmp_path / "cache.json"
    for name, content in (("a", "one"), ("b", "one"), ("c", "two")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "w").write_text(content)
    a, b, c = (content_hash(tmp_path / name, cache) for name in "abc")
    assert a == b != c
    (tmp_path / "b" / "w").write_text("changed")
    assert content_hash(tmp_path / "b", cache) != a
    assert content_hash(Path("gpt2"), cache) == "gpt2"


def test_tensor_hash_sees_every_value() -> None:
    a = {"x": torch.zeros(3), "y": torch.ones(2)}
    b = {"y": torch.ones(2), "x": torch.tensor([0.0, 0.0, 1e-6])}
    assert tensor_hash(a) == tensor_hash(dict(reversed(a.items()))) != tensor_hash(b)
