"""The page of captions: safe whatever the texts are, small whatever the images are, readable."""

import base64
import io
import re
from pathlib import Path

from PIL import Image

from pipeline.pages.cards import Card
from pipeline.pages.gallery import page
from pipeline.pages.thumbnails import thumbnail
from tests.helpers import require_system
from tests.pages.browser import look


def cards(count: int) -> list[Card]:
    sizes = [(640, 480), (30, 900), (900, 20), (1, 1)]
    pictures = [thumbnail(Image.new("RGB", size, "teal")) for size in sizes]
    return [
        Card(f"folder/{'x' * 150}-{i}.jpg", pictures[i % 4], "A dog on a mat. " * (i % 9))
        for i in range(count)
    ]


def test_texts_are_escaped() -> None:
    evil = "<script>alert(1)</script>\"'&"
    html = page(
        [Card(evil, thumbnail(Image.new("RGB", (9, 9))), evil)],
        model=evil,
        captioned=1,
        skipped={evil: evil},
        ignored=0,
    )
    assert "<script" not in html and "alert(1)&lt;/script&gt;" in html
    assert not re.findall(r'(?:src|href)="(?!data:image/jpeg;base64,|#)', html)


def test_the_page_says_what_it_leaves_out() -> None:
    skipped = {f"{i:04d}.jpg": "truncated image" for i in range(1000)}
    html = page(cards(3), model="runs/x", captioned=10_000, skipped=skipped, ignored=2)
    text = " ".join(html.split())
    assert "10000 images captioned" in text and "the first 3 are shown" in text
    assert "2 other files ignored" in text and "1000 files skipped: 1000 truncated image" in text
    assert "0199.jpg: truncated image" in text and "0200.jpg" not in text
    assert "and 800 more, in captions.jsonl" in text


def test_thumbnails_are_small_and_the_image_stays_as_it_was() -> None:
    for size in ((4000, 3000), (9000, 30), (2, 8000), (1, 1)):
        image = Image.effect_noise(size, 90).convert("RGB")
        url = thumbnail(image)
        small = Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2])))
        assert image.size == size
        assert max(small.size) <= 360 and max(small.size) <= 5 * min(small.size)
        assert len(url) < 150_000


def test_in_a_browser_all_images_load_and_nothing_overflows_at_400_pixels(tmp_path: Path) -> None:
    require_system("chromium")
    html = page(cards(40), model="m" * 300, captioned=40, skipped={"y" * 200: "no"}, ignored=0)
    (tmp_path / "captions.html").write_text(html)
    found = look(tmp_path / "captions.html")
    assert found["count"] == found["loaded"] == 40
    assert 380 <= found["width"] <= 400
    assert found["needed"] <= found["width"]
