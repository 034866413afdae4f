"""A sheet of images, each with what the model says and what is true underneath.

Pure drawing: no model, no TensorBoard. Used for TensorBoard and for looking at results.
"""

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont

_TILE, _LINE = 224, 13
_WIDTH = 38  # characters of a line
_COLUMNS = 4
_SAID_LINES, _ASKED_LINES = 3, 12  # at most, of a caption or answer, and of a question


@dataclass(frozen=True)
class Example:
    """One image with what the model says and what people said, and what was asked, if anything."""

    image: Image.Image
    predicted: str
    truth: str
    asked: str = ""


def sheet(examples: Sequence[Example]) -> Image.Image:
    """All examples as one RGB picture, four in a row; texts that are too long end in dots."""
    columns = min(_COLUMNS, max(len(examples), 1))
    rows = -(-len(examples) // columns)
    texts = [_lines(each) for each in examples]
    height = _TILE + max(map(len, texts), default=1) * _LINE + 12
    canvas = Image.new("RGB", (columns * (_TILE + 8), max(rows, 1) * height), "white")
    for i, (example, lines) in enumerate(zip(examples, texts, strict=True)):
        corner = ((i % columns) * (_TILE + 8) + 4, (i // columns) * height + 4)
        _draw(canvas, example.image, lines, corner)
    return canvas


def _lines(example: Example) -> list[tuple[str, str]]:
    """(text, colour) of each line under the image."""
    parts = [
        (f"model: {example.predicted}", "#0b5394", _SAID_LINES),
        (f"truth: {example.truth}", "#555555", _SAID_LINES),
    ]
    if example.asked:
        parts.insert(0, (example.asked, "#000000", _ASKED_LINES))
    return [
        (line, colour)
        for text, colour, most in parts
        for line in textwrap.wrap(text, width=_WIDTH, max_lines=most, placeholder=" ...")
    ]


def _draw(
    canvas: Image.Image,
    image: Image.Image,
    lines: Sequence[tuple[str, str]],
    corner: tuple[int, int],
) -> None:
    image = image.copy()
    image.thumbnail((_TILE, _TILE))
    if max(image.size) < _TILE:
        scale = _TILE / max(image.size)
        image = image.resize((round(image.width * scale), round(image.height * scale)))
    canvas.paste(image, (corner[0] + (_TILE - image.width) // 2, corner[1]))
    draw = ImageDraw.Draw(canvas)
    font = ImageFont.load_default(11)
    top = corner[1] + _TILE + 2
    for line, colour in lines:
        draw.text((corner[0], top), line, fill=colour, font=font)
        top += _LINE
