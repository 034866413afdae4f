"""What comes from outside is let in within bounds, or refused with what to do."""

import io
import os
from pathlib import Path

import pytest
from PIL import Image

from pipeline.chat.limits import Limits, Refused, Sampling
from pipeline.config import ChatConfig

LIMITS = Limits.of(ChatConfig(max_pixels=1_000_000, max_image_bytes=50_000, max_new_tokens=9))


def png(size: tuple[int, int]) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size, "teal").save(buffer, "PNG")
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "undecodable image"),
        (b"%PDF-1.4 nothing to see", "undecodable image"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n", "undecodable image"),  # would start Ghostscript
        (png((40, 40))[:-30], "truncated image|undecodable image"),
        (png((2000, 600)), "too many pixels"),
        (bytes(50_001), "too many bytes"),
        (png((60_000, 1)), r"too thin \(60000 x 1"),
        (png((9, 901)), r"too thin \(9 x 901"),
    ],
)
def test_what_is_no_usable_image_is_refused(data: bytes, reason: str) -> None:
    with pytest.raises(Refused, match=reason):
        LIMITS.open_image(data)


def test_of_a_large_image_a_smaller_one_is_kept() -> None:
    assert LIMITS.open_image(png((1000, 900))).size == (569, 512)
    assert LIMITS.open_image(png((30, 900))).size == (30, 900)
    assert LIMITS.open_image(png((9, 900))).size == (9, 900)  # as thin as may be


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for name in ("pipe", "missing", "."):
        with pytest.raises(Refused, match="is no file"):
            LIMITS.open_file(tmp_path / name)
    (tmp_path / "a.png").write_bytes(png((8, 9)))
    assert LIMITS.open_file(tmp_path / "a.png").size == (8, 9)


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ((-1, 1, 5, 0), "temperature is -1"),
        ((float("nan"), 1, 5, 0), "temperature is nan"),
        ((1e-40, 1, 5, 0), "temperature is 1e-40; it can be 0, or 0.01 to 10"),
        ((1, 0, 5, 0), "top_p is 0"),
        ((1, 1, 10, 0), "1 to 9 tokens"),
        ((1, 1, 0, 0), "1 to 9 tokens"),
        ((1, 1, 5, -3), "seed is -3"),
        ((1, 1, 5, 2**64), "seed"),
    ],
)
def test_settings_by_which_nothing_can_be_chosen_are_refused(values, reason: str) -> None:
    with pytest.raises(Refused, match=reason):
        LIMITS.check_sampling(Sampling(*values))
    for temperature in (0, 0.01, 1.0):
        LIMITS.check_sampling(Sampling(temperature, 1.0, 9, 0))
