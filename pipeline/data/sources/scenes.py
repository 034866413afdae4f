"""Drawn scenes with five true captions each: image-text pairs that need no download.

Two styles share shapes, counts and relations but differ in rendering, palette and wording, so that
a model trained on `general` has something to adapt to on `target`. Record i of a split is a
function of (seed, style, split, i) alone, and is made when it is asked for.
"""

import io
import random
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import overload

from pipeline.config import PrepareConfig
from pipeline.data.sources.drawing import PALETTES, SHAPES, SIZES, Group, Scene, Spot, draw
from pipeline.data.sources.record import ImageBytes, SourceRecord
from pipeline.data.sources.wording import WORDINGS, describe
from pipeline.errors import ConfigError

_MARGIN = 0.02  # of the image's side, kept free around every object, so that none touch
_SMALLEST_IMAGE = 32  # pixels; below it a small star is a blob and its caption no longer true
_PAIR_COUNTS = ((1, 1), (1, 2), (2, 1), (2, 2), (1, 3), (3, 1))
_QUADRANTS = {
    "top left": (0.0, 0.0, 0.5, 0.5),
    "top right": (0.5, 0.0, 1.0, 0.5),
    "bottom left": (0.0, 0.5, 0.5, 1.0),
    "bottom right": (0.5, 0.5, 1.0, 1.0),
}
Box = tuple[float, float, float, float]


def load_scenes(cfg: PrepareConfig) -> dict[str, Sequence[SourceRecord]]:
    """Return the scenes of every split of `cfg.counts`, none of them drawn yet.

    Args:
        cfg: `style`, `counts`, `image_size` (pixels) and `seed`.

    Raises:
        ConfigError: unknown style, a negative count, or an image too small to show the shapes.
    """
    if cfg.style not in PALETTES:
        raise ConfigError(f"style={cfg.style!r}: no such style; use {' or '.join(PALETTES)}")
    if cfg.image_size < _SMALLEST_IMAGE:
        raise ConfigError(
            f"image_size={cfg.image_size}: too few pixels to tell the shapes apart; "
            f"use {_SMALLEST_IMAGE} or more"
        )
    for split, count in cfg.counts.items():
        if count < 0:
            raise ConfigError(f"counts.{split}={count}: negative; use 0 or more records")
    return {
        split: SceneSplit(
            count,
            split=split,
            style=cfg.style,
            wording=cfg.wording,
            seed=cfg.seed,
            pixels=cfg.image_size,
        )
        for split, count in cfg.counts.items()
    }


@dataclass(frozen=True)
class SceneImage:
    """Draws one scene when called; the general style is stored as PNG, the target one as JPEG."""

    scene: Scene
    style: str
    pixels: int
    ink: str  # seeds the texture

    def __call__(self) -> ImageBytes:
        """Return the bytes of the drawing."""
        image = draw(self.scene, self.style, self.pixels, random.Random(self.ink))
        buffer = io.BytesIO()
        if self.style == "target":
            image.save(buffer, "JPEG", quality=92)
            return buffer.getvalue(), "jpg"
        image.save(buffer, "PNG")
        return buffer.getvalue(), "png"


class SceneSplit(Sequence[SourceRecord]):
    """The scenes of one split; records are made on access and not kept."""

    def __init__(
        self, count: int, *, split: str, style: str, wording: str, seed: int, pixels: int
    ) -> None:
        """Args: count: records; pixels: side of the square images; the rest decides the scenes."""
        self._count = count
        self._split = split
        self._style = style
        self._wording = wording
        self._seed = seed
        self._pixels = pixels

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, index: int) -> SourceRecord: ...

    @overload
    def __getitem__(self, index: slice) -> list[SourceRecord]: ...

    def __getitem__(self, index: int | slice) -> SourceRecord | list[SourceRecord]:
        """Return a record, or those of a slice."""
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(self._count))]
        i = int(range(self._count)[index])
        stream = f"{self._seed}/{self._style}/{self._split}/{i}"
        rng = random.Random(stream)
        scene = make_scene(rng, self._style, self._split)
        told = rng.choice(sorted(WORDINGS)) if self._wording == "both" else self._style
        return SourceRecord(
            key=f"{self._style}-{self._split}-{i:06d}",
            image=SceneImage(scene, self._style, self._pixels, ink=stream),
            captions=describe(scene, told, rng),
            image_id=i,
            extra={"objects": len(scene.spots)},
        )


def make_scene(rng: random.Random, style: str, split: str) -> Scene:
    """Draw lots for a scene that belongs to `split`.

    What a scene shows (not where exactly) decides by its hash to which split it may belong, so a
    model is tested on combinations that it never saw, in either style.
    """
    while True:
        groups, relation = _content(rng, list(PALETTES[style]))
        share = zlib.crc32(repr((groups, relation)).encode()) % 10
        if share == {"val": 8, "test": 9}.get(split, min(share, 7)):
            break
    if relation is None:
        return _lay_out_one(rng, groups[0])
    halves: tuple[Box, Box] = (
        ((0.0, 0.0, 0.5, 1.0), (0.5, 0.0, 1.0, 1.0))
        if relation == "left"
        else ((0.0, 0.0, 1.0, 0.5), (0.0, 0.5, 1.0, 1.0))
    )
    spots: list[Spot] = []
    for number, (group, box) in enumerate(zip(groups, halves, strict=True)):
        slots = _slots(box, group.count, along_x=relation == "above")
        spots.extend(_spot(rng, group, number, slot) for slot in slots)
    return Scene(groups, relation, None, tuple(spots))


def _content(rng: random.Random, colours: list[str]) -> tuple[tuple[Group, ...], str | None]:
    """One group of one to four objects, or two groups and how the first lies to the second."""

    def group(count: int) -> Group:
        return Group(rng.choice(SHAPES), rng.choice(colours), rng.choice(list(SIZES)), count)

    if rng.random() < 0.35:
        return (group(rng.randint(1, 4)),), None
    first_count, second_count = rng.choice(_PAIR_COUNTS)
    first, second = group(first_count), group(second_count)
    # Captions may leave the size out, so the rest must tell the two groups apart.
    while (first.shape, first.colour) == (second.shape, second.colour):
        second = group(second_count)
    return (first, second), rng.choice(("left", "above"))


def _lay_out_one(rng: random.Random, group: Group) -> Scene:
    names = rng.sample(list(_QUADRANTS), group.count)
    spots = tuple(_spot(rng, group, 0, _QUADRANTS[name]) for name in names)
    return Scene((group,), None, names[0] if group.count == 1 else None, spots)


def _slots(box: Box, count: int, *, along_x: bool) -> list[Box]:
    """Cut a box into `count` equal parts along one side."""
    x0, y0, x1, y1 = box
    if along_x:
        width = (x1 - x0) / count
        return [(x0 + i * width, y0, x0 + (i + 1) * width, y1) for i in range(count)]
    height = (y1 - y0) / count
    return [(x0, y0 + i * height, x1, y0 + (i + 1) * height) for i in range(count)]


def _spot(rng: random.Random, group: Group, number: int, slot: Box) -> Spot:
    """A place inside a slot, away from its edges."""
    radius = SIZES[group.size] * rng.uniform(0.95, 1.05)
    free = radius + _MARGIN
    x = rng.uniform(slot[0] + free, slot[2] - free)
    y = rng.uniform(slot[1] + free, slot[3] - free)
    return Spot(x, y, radius, number)
