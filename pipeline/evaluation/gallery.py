"""A page of images with their captions: one HTML file that needs no network and no other file.

Pure layout: it knows neither models nor files on disk. Pictures are small JPEGs inside the page;
every text is escaped, and the page forbids itself scripts and requests.
"""

import base64
import io
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from jinja2 import Environment, StrictUndefined
from PIL import Image

_SIDE = 360  # pixels of a thumbnail's longer side; about 15 kB each
_LISTED = 200  # most skipped files that are named


@dataclass(frozen=True)
class Card:
    """One image of the page."""

    name: str
    picture: str  # from `thumbnail`
    caption: str


def thumbnail(image: Image.Image) -> str:
    """An image as a data URL: JPEG, its longer side at most 360 pixels. The image is not changed.

    Very long ones are cut to their middle, so that something can be seen.
    """
    small = image.convert("RGB")
    width, height = small.size
    most = 4 * min(width, height)
    if max(width, height) > most:
        left, top = max((width - most) // 2, 0), max((height - most) // 2, 0)
        small = small.crop((left, top, left + min(width, most), top + min(height, most)))
    small.thumbnail((_SIDE, _SIDE))
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=82)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def by_reason(skipped: Mapping[str, str]) -> str:
    """'3 truncated image, 1 unreadable file' from file -> reason, whose details do not count."""
    counts = Counter(reason.partition(" (")[0] for reason in skipped.values())
    return ", ".join(f"{count} {reason}" for reason, count in counts.most_common())


def page(
    cards: Sequence[Card], *, model: str, captioned: int, skipped: Mapping[str, str], ignored: int
) -> str:
    """The page as HTML text.

    Args:
        cards: what is shown, in order; may be fewer than were captioned.
        model: where the captions come from.
        captioned: all images with a caption.
        skipped: file -> reason, of the unusable ones.
        ignored: files that were not looked at because their names end otherwise.
    """
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    return environment.from_string(_PAGE).render(
        cards=cards,
        model=model,
        captioned=captioned,
        skipped=list(skipped.items())[:_LISTED],
        skipped_count=len(skipped),
        reasons=by_reason(skipped),
        ignored=ignored,
    )


_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy"
      content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ captioned }} captions</title>
<style>
  :root { color-scheme: light; }
  * { box-sizing: border-box; }
  body { margin: 0 auto; max-width: 1600px; padding: 24px clamp(12px, 3vw, 40px);
         background: #f6f6f4; color: #1c1c1a; font: 16px/1.45 system-ui, sans-serif; }
  h1 { margin: 0 0 4px; font-size: 1.5rem; line-height: 1.2; }
  p, summary { margin: 0; color: #55554f; overflow-wrap: anywhere; }
  main { display: grid; gap: 16px; margin: 20px 0;
         grid-template-columns: repeat(auto-fill, minmax(min(220px, 100%), 1fr)); }
  figure { margin: 0; background: #fff; border: 1px solid #dededa; border-radius: 8px;
           overflow: hidden; }
  img { display: block; width: 100%; aspect-ratio: 4 / 3; object-fit: contain;
        background: #ececea; }
  figcaption { padding: 10px 12px 12px; overflow-wrap: anywhere; }
  small { display: block; margin-top: 6px; color: #6d6d66; font-size: .8rem; }
  a { color: #0b5394; }
  ul { margin: 8px 0 0; padding-left: 20px; color: #55554f; overflow-wrap: anywhere; }
</style>
</head>
<body>
<h1>{{ captioned }} image{{ "" if captioned == 1 else "s" }} captioned</h1>
<p>by {{ model }}{% if cards | length < captioned %}; the first {{ cards | length }} are shown, all
are in captions.jsonl{% endif %}{% if ignored %}; {{ ignored }} other
file{{ "" if ignored == 1 else "s" }} ignored{% endif %}{% if skipped_count %};
<a href="#skipped">{{ skipped_count }} skipped</a>{% endif %}</p>
<main>
{% for card in cards %}
<figure>
<img src="{{ card.picture }}" alt="{{ card.caption }}">
<figcaption>{{ card.caption or "(nothing)" }}<small>{{ card.name }}</small></figcaption>
</figure>
{% endfor %}
</main>
{% if skipped_count %}
<details id="skipped" open>
<summary>{{ skipped_count }} file{{ "" if skipped_count == 1 else "s" }} skipped:
{{ reasons }}</summary>
<ul>
{% for name, reason in skipped %}
<li>{{ name }}: {{ reason }}</li>
{% endfor %}
{% if skipped | length < skipped_count %}
<li>and {{ skipped_count - skipped | length }} more, in captions.jsonl</li>
{% endif %}
</ul>
</details>
{% endif %}
</body>
</html>
"""
