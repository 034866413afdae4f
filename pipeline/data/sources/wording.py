"""How a scene is told: five captions, each true of the image, in the wording of either style.

Captions differ in order and in what they leave out, as people's do; none names what is not there.
"""

import random
from dataclasses import dataclass

from pipeline.data.sources.drawing import Group, Scene

CAPTIONS_PER_SCENE = 5

_PLURALS = {"box": "boxes", "cross": "crosses", "rhombus": "rhombuses"}
_INVERSE = {"left": "right", "above": "below"}
_NUMBERS = {2: "two", 3: "three", 4: "four"}


@dataclass(frozen=True)
class Wording:
    """The words of one style, each with its synonyms, and its sentences.

    In a sentence {a} and {b} are the groups in full, {a_c} with the colour only, {a_s} with the
    size only, {a_n} without both; {rel} says how a lies to b, {inv} how b lies to a.
    """

    shapes: dict[str, tuple[str, ...]]
    sizes: dict[str, tuple[str, ...]]
    counts: dict[int, tuple[str, ...]]
    relations: dict[str, tuple[str, ...]]
    corners: dict[str, str]
    one: tuple[str, ...]
    one_in_corner: tuple[str, ...]
    pair: tuple[str, ...]


WORDINGS = {
    "general": Wording(
        shapes={s: (s,) for s in ("circle", "square", "triangle", "star", "diamond", "cross")},
        sizes={"small": ("small",), "large": ("large",)},
        counts={1: ("a",), 2: ("two",), 3: ("three",), 4: ("four",)},
        relations={
            "left": ("to the left of", "left of"),
            "right": ("to the right of", "right of"),
            "above": ("above",),
            "below": ("below",),
        },
        corners={},
        one=(
            "{a}",
            "there {is_a} {a}",
            "a picture of {a_c}",
            "{a} on a white background",
            "{a_n} that {is_a} {size} and {colour}",
            "an image with {a_s}",
        ),
        one_in_corner=("{a} in the {corner}", "there is {a_c} in the {corner} of the picture"),
        pair=(
            "{a} {rel} {b}",
            "{b} {inv} {a}",
            "there {is_a} {a_c} {rel} {b_c}",
            "{a} and {b}",
            "a picture of {b_c} and {a_c}",
            "{total} shapes , {a_c} {rel} {b_c}",
            "{b_c} {inv} {a_c} on a white background",
        ),
    ),
    "target": Wording(
        shapes={
            "circle": ("disc", "circle"),
            "square": ("box", "square"),
            "triangle": ("wedge", "triangle"),
            "star": ("star",),
            "diamond": ("rhombus", "diamond"),
            "cross": ("plus sign", "cross"),
        },
        sizes={"small": ("tiny", "small"), "large": ("big", "large")},
        counts={
            1: ("one", "a single", "a"),
            2: ("two", "a pair of"),
            3: ("three", "a trio of"),
            4: ("four",),
        },
        relations={
            "left": ("on the left side of", "to the left of"),
            "right": ("on the right side of", "to the right of"),
            "above": ("over", "higher than"),
            "below": ("under", "beneath"),
        },
        corners={
            "top left": "upper left",
            "top right": "upper right",
            "bottom left": "lower left",
            "bottom right": "lower right",
        },
        one=(
            "a sketch of {a}",
            "{a} drawn on dark paper",
            "dark paper with {a_c}",
            "you can see {a_n} , {colour} and {size}",
            "a hatched drawing of {a_s}",
            "nothing but {a} , sketched",
        ),
        one_in_corner=(
            "{a} sketched at the {corner}",
            "at the {corner} of dark paper {is_a} {a_c}",
        ),
        pair=(
            "a sketch of {a} {rel} {b}",
            "{b} drawn {inv} {a}",
            "dark paper with {a_c} {rel} {b_c}",
            "{a} plus {b} in a hatched drawing",
            "you can see {total} figures : {a_c} {rel} {b_c}",
            "hatched figures , {b_c} {inv} {a_c}",
            "{b_c} and {a_c} sketched on dark paper",
        ),
    ),
}


def describe(scene: Scene, style: str, rng: random.Random) -> tuple[str, ...]:
    """Return five captions of a scene, no two of the same sentence."""
    wording = WORDINGS[style]
    sentences = list(wording.pair if scene.relation else wording.one)
    if scene.corner:
        sentences += wording.one_in_corner
    chosen = rng.sample(sentences, CAPTIONS_PER_SCENE)
    return tuple(sentence.format(**_words(scene, wording, rng)) for sentence in chosen)


def _words(scene: Scene, wording: Wording, rng: random.Random) -> dict[str, str]:
    """The values of a sentence's placeholders, synonyms drawn anew."""
    first = scene.groups[0]
    corner = scene.corner or ""
    words = {
        "is_a": "is" if first.count == 1 else "are",
        "size": rng.choice(wording.sizes[first.size]),
        "colour": first.colour,
        "corner": wording.corners.get(corner, corner),
        "total": _NUMBERS.get(len(scene.spots), "one"),
    }
    for name, group in zip("ab", scene.groups, strict=False):
        words[name] = _phrase(group, wording, rng, size=True, colour=True)
        words[f"{name}_c"] = _phrase(group, wording, rng, size=False, colour=True)
        words[f"{name}_s"] = _phrase(group, wording, rng, size=True, colour=False)
        words[f"{name}_n"] = _phrase(group, wording, rng, size=False, colour=False)
    if scene.relation:
        words["rel"] = rng.choice(wording.relations[scene.relation])
        words["inv"] = rng.choice(wording.relations[_INVERSE[scene.relation]])
    return words


def _phrase(group: Group, wording: Wording, rng: random.Random, *, size: bool, colour: bool) -> str:
    """A group in words: "three small red circles"."""
    noun = rng.choice(wording.shapes[group.shape])
    if group.count > 1:
        noun = _PLURALS.get(noun, f"{noun}s")
    words = [noun]
    if colour:
        words.insert(0, group.colour)
    if size:
        words.insert(0, rng.choice(wording.sizes[group.size]))
    count = rng.choice(wording.counts[group.count])
    if count == "a" and words[0][0] in "aeiou":
        count = "an"
    return " ".join([count, *words])
