"""A sheet of images, each with its predicted and its true caption underneath.

Pure drawing: no model, no TensorBoard. Used for TensorBoard and for looking at results.
"""

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont

_TILE, _TEXT_LINES, _LINE = 224, 7, 13
_COLUMNS = 4


@dataclass(frozen=True)
class Example:
    """One image with what the model says and what people said."""

    image: Image.Image
    predicted: str
    truth: str


def sheet(examples: Sequence[Example]) -> Image.Image:
    """All examples as one RGB picture, four in a row."""
    columns = min(_COLUMNS, max(len(examples), 1))
    rows = -(-len(examples) // columns)
    height = _TILE + _TEXT_LINES * _LINE + 8
    canvas = Image.new("RGB", (columns * (_TILE + 8), max(rows, 1) * height), "white")
    for i, example in enumerate(examples):
        corner = ((i % columns) * (_TILE + 8) + 4, (i // columns) * height + 4)
        _draw(canvas, example, corner)
    return canvas


def _draw(canvas: Image.Image, example: Example, corner: tuple[int, int]) -> None:
    image = example.image.copy()
    image.thumbnail((_TILE, _TILE))
    if max(image.size) < _TILE:
        scale = _TILE / max(image.size)
        image = image.resize((round(image.width * scale), round(image.height * scale)))
    canvas.paste(image, (corner[0] + (_TILE - image.width) // 2, corner[1]))
    draw = ImageDraw.Draw(canvas)
    font = ImageFont.load_default(11)
    top = corner[1] + _TILE + 2
    for label, text, colour in (
        ("model", example.predicted, "#0b5394"),
        ("truth", example.truth, "#555555"),
    ):
        lines = textwrap.wrap(f"{label}: {text}", width=38)[: _TEXT_LINES // 2]
        for line in lines or [f"{label}:"]:
            draw.text((corner[0], top), line, fill=colour, font=font)
            top += _LINE
