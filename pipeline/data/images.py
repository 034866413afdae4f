"""From the bytes of an image file to an RGB image, with guards against what the web holds.

It does not trust the bytes: pixels and shape are read from the header before anything is decoded,
only plain raster formats are opened (no EPS, which would start Ghostscript), and a damaged file is
a `ContentFault`, never a half-grey image. Transforms and tensors are not its business.
"""

import io
import struct
import zlib

import numpy as np
from PIL import Image, ImageFile, UnidentifiedImageError

from pipeline.data.faults import ContentFault

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
EXTENSIONS = ("jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff")  # of these formats

# Of the longer side to the shorter. Whoever scales the short side up to what a tower sees scales
# the long side with it: without a limit a file of 250 bytes becomes gigabytes.
_THINNEST = 100

_MAGIC = {
    b"\xff\xd8\xff": "jpg",
    b"\x89PNG\r\n\x1a\n": "png",
    b"GIF8": "gif",
    b"BM": "bmp",
    b"II*\0": "tif",
    b"MM\0*": "tif",
}
_DECODE_ERRORS = (
    OSError,
    SyntaxError,  # PIL: a broken PNG or TIFF
    ValueError,
    TypeError,
    KeyError,
    IndexError,
    EOFError,
    OverflowError,
    struct.error,
    zlib.error,
)
_ORIENTATION_TAG = 0x0112
_ORIENTATIONS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def image_extension(data: bytes) -> str | None:
    """Return the extension that fits the first bytes of an image file.

    Args:
        data: the file, or at least its first 12 bytes; its name may lie.

    Returns:
        One of `EXTENSIONS`, or None where it is in none of `FORMATS`.
    """
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "webp"
    return next((ext for magic, ext in _MAGIC.items() if data.startswith(magic)), None)


def check_bytes(size: int, limit: int | None) -> None:
    """Raise the ContentFault "too many bytes" for an image file that is larger than `limit`."""
    if limit is not None and size > limit:
        detail = f"{size}, more than max_image_bytes={limit}"
        raise ContentFault("too many bytes", detail=detail)


def decode_image(data: bytes, *, max_pixels: int, draft_size: int | None = None) -> Image.Image:
    """Decode an image file to RGB, upright, the first frame of an animation.

    Args:
        data: the bytes of the file.
        max_pixels: larger images (width * height of the header) are refused undecoded. PIL's own
            limit, about twice the default of `data.max_pixels`, holds as well.
        draft_size: pixels; a large JPEG may be decoded at 1/2, 1/4 or 1/8 of its size, which is
            faster, as long as its short side does not become smaller than this.

    Returns:
        An RGB image; transparency is laid on white, 16-bit and float values are scaled to 8 bits.

    Raises:
        ContentFault: "too many pixels", "too thin" (one side more than 100 times the other),
            "truncated image" or "undecodable image".
    """
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
        _check_size(image, max_pixels)
        if draft_size is not None:
            image.draft(None, (draft_size, draft_size))
        _load_whole(image)
        return _to_rgb(_upright(image))
    except UnidentifiedImageError as error:  # its text is the address of our buffer
        detail = f"none of {', '.join(FORMATS)}; starts {data[:8]!r}"
        raise ContentFault("undecodable image", detail=detail) from error
    except Image.DecompressionBombError as error:
        raise ContentFault("too many pixels", detail=_one_line(error)) from error
    except _DECODE_ERRORS as error:
        truncated = "truncated" in str(error).lower()
        reason = "truncated image" if truncated else "undecodable image"
        raise ContentFault(reason, detail=_one_line(error)) from error


def _check_size(image: Image.Image, max_pixels: int) -> None:
    shape = f"{image.width} x {image.height}"
    if image.width * image.height > max_pixels:
        raise ContentFault("too many pixels", detail=f"{shape}, more than max_pixels={max_pixels}")
    if max(image.size) > _THINNEST * min(image.size):
        detail = f"{shape}, one side more than {_THINNEST} times the other"
        raise ContentFault("too thin", detail=detail)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _load_whole(image: Image.Image) -> None:
    """Decode all pixels, or fail."""
    if ImageFile.LOAD_TRUNCATED_IMAGES:
        # Some library switched it on for the whole process: pixels that are missing would come
        # back grey, and training would go on with them.
        raise RuntimeError("ImageFile.LOAD_TRUNCATED_IMAGES is on; leave PIL's default, False")
    image.load()


def _upright(image: Image.Image) -> Image.Image:
    """Apply the EXIF orientation; a broken EXIF block counts as none."""
    try:
        orientation = image.getexif().get(_ORIENTATION_TAG, 1)
    except _DECODE_ERRORS:
        return image
    method = _ORIENTATIONS.get(orientation) if isinstance(orientation, int) else None
    return image if method is None else image.transpose(method)


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        return Image.fromarray(_to_8_bit(image)).convert("RGB")
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        white = Image.new("RGBA", layer.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, layer).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def _to_8_bit(image: Image.Image) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    """Grey values of 16 or more bits to 8.

    16-bit values keep their absolute scale. Modes I and F do not say theirs: 0..65535 (I), 0..1 or
    0..255 (F) are taken for the full scale where the values fit into it, else their own range.
    """
    values = np.asarray(image).astype(np.float64)
    values = np.nan_to_num(values, nan=0.0, posinf=0.0, neginf=0.0)
    low, high = float(values.min()), float(values.max())
    for scale in (1.0, 255.0) if image.mode == "F" else (65535.0,):
        if low >= 0.0 and high <= scale:
            low, high = 0.0, scale
            break
    span = high - low or 1.0
    return np.rint((values - low) * (255.0 / span)).astype(np.uint8)
