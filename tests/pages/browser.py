"""A page as a browser shows it, in a frame of a phone's width; for tests."""

import json
import re
import subprocess
from pathlib import Path
from typing import Any

_FRAME = """<iframe src="{page}" width=400 height=800></iframe><pre></pre><script>
onload = () => {{
  const inside = document.querySelector("iframe").contentDocument;
  const images = [...inside.images];
  const found = {{
    count: images.length, loaded: images.filter(i => i.complete && i.naturalWidth).length,
    width: inside.documentElement.clientWidth, needed: inside.documentElement.scrollWidth,
  }};
  {script}
  document.querySelector("pre").textContent = JSON.stringify(found);
}}</script>"""


def look(page: Path, script: str = "") -> dict[str, Any]:
    """What is found in a page at 400 pixels: images, widths, and what `script` adds to `found`.

    A frame, because windows have a least width and a page may forbid scripts; `inside` is its
    document.
    """
    frame = page.with_name("frame.html")
    frame.write_text(_FRAME.format(page=page.name, script=script))
    done = subprocess.run(
        [
            *("chromium", "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run"),
            *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
            *("--allow-file-access-from-files", f"--user-data-dir={page.parent / 'profile'}"),
            *("--dump-dom", frame.as_uri()),
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    match = re.search("<pre>(.*?)</pre>", done.stdout)
    assert match is not None, done.stdout[-2000:]
    found: dict[str, Any] = json.loads(match[1])
    return found
