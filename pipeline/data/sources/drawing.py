"""How a scene looks: the scene's description and its rendering in either style.

All lengths are fractions of the image's side. Drawing is done at four times the size and averaged
down, so edges are smooth at any resolution.
"""

import math
import random
from dataclasses import dataclass

from PIL import Image, ImageDraw

Colour = tuple[int, int, int]

SHAPES = ("circle", "square", "triangle", "star", "diamond", "cross")
SIZES = {"small": 0.08, "large": 0.135}  # radius; three large ones must fit side by side
PALETTES: dict[str, dict[str, Colour]] = {
    "general": {
        "red": (225, 30, 30),
        "green": (30, 160, 50),
        "blue": (30, 70, 220),
        "yellow": (240, 205, 20),
        "orange": (245, 130, 20),
        "purple": (130, 40, 170),
    },
    "target": {
        "red": (190, 95, 90),
        "green": (110, 160, 105),
        "blue": (105, 130, 185),
        "yellow": (205, 185, 105),
        "teal": (80, 165, 160),
        "pink": (205, 140, 170),
        "beige": (215, 195, 165),
    },
}
_DARK_PAPERS: tuple[Colour, ...] = ((28, 30, 38), (40, 34, 30), (24, 38, 34), (36, 28, 42))
_OVERSAMPLING = 4


@dataclass(frozen=True)
class Group:
    """Equal objects: `count` of them, of one shape, colour name and size name."""

    shape: str
    colour: str
    size: str
    count: int


@dataclass(frozen=True)
class Spot:
    """Where an object lies: its centre, its radius, and the number of its group."""

    x: float
    y: float
    radius: float
    group: int


@dataclass(frozen=True)
class Scene:
    """What is to be seen.

    `relation` says how the first group lies to the second ("left" or "above"), None for a single
    group; `corner` is the quadrant of a single object ("top left"), else None.
    """

    groups: tuple[Group, ...]
    relation: str | None
    corner: str | None
    spots: tuple[Spot, ...]


def draw(scene: Scene, style: str, pixels: int, rng: random.Random) -> Image.Image:
    """Render a scene.

    Args:
        scene: what to draw.
        style: "general" (plain colours on white) or "target" (hatched, on dark textured paper).
        pixels: side of the square image.
        rng: decides the texture of the target style.

    Returns:
        An RGB image of (pixels, pixels).
    """
    side = pixels * _OVERSAMPLING
    background = (255, 255, 255) if style == "general" else rng.choice(_DARK_PAPERS)
    canvas = Image.new("RGB", (side, side), background)
    if style != "general":
        _texture(canvas, rng)
    angle = rng.choice((1, -1))
    for spot in scene.spots:
        group = scene.groups[spot.group]
        colour = PALETTES[style][group.colour]
        outline = [(x * side, y * side) for x, y in _outline(group.shape, spot)]
        if style == "general":
            ImageDraw.Draw(canvas).polygon(outline, fill=colour)
        else:
            _hatch(canvas, outline, colour, angle)
    return canvas.resize((pixels, pixels), Image.Resampling.BOX)


def _outline(shape: str, spot: Spot) -> list[tuple[float, float]]:
    """The corners of a shape inside its spot."""
    quarter = math.pi / 2
    if shape == "circle":
        corners = [(1.0, 2 * math.pi * i / 48) for i in range(48)]
    elif shape == "square":
        corners = [(1.2, quarter * (i + 0.5)) for i in range(4)]  # 1.2: sides at 0.85 radius
    elif shape == "triangle":
        corners = [(1.0, -quarter + 2 * math.pi * i / 3) for i in range(3)]
    elif shape == "diamond":
        corners = [(1.0 if i % 2 else 0.7, quarter * i) for i in range(4)]
    elif shape == "star":
        corners = [(0.42 if i % 2 else 1.0, -quarter + math.pi * i / 5) for i in range(10)]
    else:
        arm = math.atan2(0.3, 1.0)
        inner = 0.3 * math.sqrt(2)
        corners = []
        for i in range(4):
            turn = quarter * i
            corners += [(1.0, turn - arm), (1.0, turn + arm), (inner, turn + quarter / 2)]
    return [
        (spot.x + spot.radius * r * math.cos(a), spot.y + spot.radius * r * math.sin(a))
        for r, a in corners
    ]


def _texture(canvas: Image.Image, rng: random.Random) -> None:
    """Faint grain: short strokes a little lighter than the paper."""
    pen = ImageDraw.Draw(canvas)
    side = canvas.width
    for _ in range(160):
        x, y = rng.uniform(0, side), rng.uniform(0, side)
        length = rng.uniform(0.01, 0.05) * side
        tone = rng.randint(38, 62)
        pen.line((x, y, x + length, y + length / 3), fill=(tone, tone, tone), width=side // 128)


def _hatch(
    canvas: Image.Image, outline: list[tuple[float, float]], colour: Colour, angle: int
) -> None:
    """Fill a polygon with slanted lines and draw around it; `angle` is 1 or -1, the slant."""
    side = canvas.width
    lines = Image.new("L", canvas.size, 0)
    pen = ImageDraw.Draw(lines)
    step, width = max(side // 24, 2), max(side // 56, 1)
    for offset in range(-side, 2 * side, step):
        pen.line((offset, 0, offset + angle * side, side), fill=255, width=width)
    inside = Image.new("L", canvas.size, 0)
    ImageDraw.Draw(inside).polygon(outline, fill=255)
    mask = Image.composite(lines, Image.new("L", canvas.size, 0), inside)
    ImageDraw.Draw(mask).polygon(outline, outline=255, width=max(side // 64, 1))
    canvas.paste(colour, mask=mask)
