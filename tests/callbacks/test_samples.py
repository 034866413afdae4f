"""The sheet of samples: every image is on it, whatever its shape."""

from PIL import Image

from pipeline.callbacks.samples import Example, sheet


def test_every_image_and_its_captions_are_on_the_sheet() -> None:
    shapes = [((255, 0, 0), (300, 20)), ((0, 255, 0), (1, 1)), ((0, 0, 255), (10, 900))]
    examples = [Example(Image.new("RGB", size, c), "a " * 99, "b") for c, size in shapes]
    found = {colour for _, colour in sheet(examples * 2).getcolors(100_000)}
    assert {(255, 0, 0), (0, 255, 0), (0, 0, 255)} <= found
    assert (11, 83, 148) in found  # the model's words, in their colour


def test_a_question_stands_above_its_answers_and_makes_the_sheet_as_high_as_it_needs() -> None:
    image = Image.new("RGB", (30, 20), (255, 0, 0))
    plain = sheet([Example(image, "(A) one", "(B) two")])
    asked = sheet([Example(image, "(A) one", "(B) two", "Which is it? (A) one (B) two " * 3)])
    endless = sheet([Example(image, "(A) one", "(B) two", "Which is it? " * 1000)])
    assert plain.width == asked.width and plain.height < asked.height < endless.height < 500
    assert (0, 0, 0) in {colour for _, colour in asked.getcolors(100_000)}


def test_an_empty_sheet_is_a_picture_too() -> None:
    assert sheet([]).size[0] > 0
