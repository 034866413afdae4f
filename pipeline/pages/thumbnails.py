"""Images small enough to lie in a page by hundreds."""

import base64
import io

from PIL import Image

SIDE = 360  # pixels of a thumbnail's longer side; about 15 kB each


def thumbnail(image: Image.Image, side: int = SIDE) -> str:
    """An image as a data URL: JPEG, its longer side at most `side` pixels. The image is unchanged.

    Very long ones are cut to their middle, so that something can be seen.
    """
    small = image.convert("RGB")
    width, height = small.size
    most = 4 * min(width, height)
    if max(width, height) > most:
        left, top = max((width - most) // 2, 0), max((height - most) // 2, 0)
        small = small.crop((left, top, left + min(width, most), top + min(height, most)))
    small.thumbnail((side, side))
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=82)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"
