"""The reader and the decoder: any record by number, any image to RGB, every fault named."""

import io
import os
import pickle

import numpy as np
import pytest
from PIL import Image, ImageOps

from pipeline.data.faults import ContentFault
from pipeline.data.images import decode_image
from pipeline.data.reader import ShardReader
from pipeline.data.shards import write_split
from pipeline.errors import DataError
from tests.data.samples import encode, jpeg, records

LIMIT = 10**6


def decode(data, **options):
    image = decode_image(data, **{"max_pixels": LIMIT, **options})
    assert image.mode == "RGB"
    return image


def first_pixel(image):
    return image.getpixel((0, 0))


@pytest.fixture
def manifest(tmp_path):
    options = {"seed": 1, "records_per_shard": 5, "workers": 0}
    return write_split(records(12), tmp_path / "train", **options)[0]


def test_every_record_is_found(manifest):
    reader = ShardReader(manifest, max_pixels=LIMIT, open_shards=1)
    items = np.array([(s, r) for s, n in enumerate(manifest.sizes) for r in range(n)])[::-1]
    raws = [reader.read(int(s), int(r)) for s, r in items]
    assert sorted(raw.key for raw in raws) == [r.key for r in records(12)]
    assert reader.keys(items) == [raw.key for raw in raws]
    assert [reader.position(int(s), int(r)) for s, r in items] == list(range(12))[::-1]
    lengths = [sum(len(c.encode()) for c in raw.data["captions"]) for raw in raws]
    assert reader.text_bytes(items).tolist() == lengths
    for raw in raws:
        assert raw.data["image_id"] == int(raw.key.removeprefix("rec"))
        assert reader.image(raw).size == (24, 16)


def test_a_reader_travels_without_its_files(manifest):
    reader = ShardReader(manifest, max_pixels=LIMIT)
    first = reader.read(0, 0)
    other = pickle.loads(pickle.dumps(reader))
    reader.close()
    assert other.read(0, 0) == first == reader.read(0, 0)


def test_files_are_closed_again(manifest):
    reader = ShardReader(manifest, max_pixels=LIMIT, open_shards=1)
    before = len(os.listdir("/proc/self/fd"))
    for shard in (0, 1, 2, 0, 1, 2):
        reader.read(shard, 0)
    assert len(os.listdir("/proc/self/fd")) == before + 1
    reader.close()
    assert len(os.listdir("/proc/self/fd")) == before


def overwrite(manifest, member, content):
    """Put `content`, padded with spaces, in place of the first record's member."""
    path = manifest.path(0)
    with np.load(path.with_suffix(".index.npz")) as index:
        offset, size = int(index[f"{member}_offset"][0]), int(index[f"{member}_size"][0])
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(content.ljust(size)[:size])


@pytest.mark.parametrize(
    ("member", "content", "reason"),
    [
        ("json", b"{", "bad JSON"),
        ("json", b"\xff\xfe", "bad JSON"),
        ("json", b"[1]", "bad JSON"),
        ("json", b'{"captions": [" "]}', "no captions"),
        ("image", b"GIF89a", "undecodable image"),
    ],
)
def test_a_fault_names_its_record(manifest, member, content, reason):
    overwrite(manifest, member, content)
    reader = ShardReader(manifest, max_pixels=LIMIT)
    with pytest.raises(ContentFault) as caught:
        reader.image(reader.read(0, 0))
    fault = pickle.loads(pickle.dumps(caught.value))
    assert (fault.reason, fault.shard) == (reason, "shard-000000.tar")
    assert fault.key == reader.keys(np.array([[0, 0]]))[0]
    assert str(fault).startswith(f"{fault.shard}/{fault.key}: {reason}")
    assert reader.image(reader.read(0, 1)).size == (24, 16)


def test_reading_is_tried_again_and_then_fatal(manifest, monkeypatch):
    reader = ShardReader(manifest, max_pixels=LIMIT, retry_wait=0.0)
    real, calls = os.open, []

    def flaky(path, *args):
        calls.append(path)
        if len(calls) < 3:
            raise OSError(116, "Stale file handle")
        return real(path, *args)

    monkeypatch.setattr(os, "open", flaky)
    assert reader.read(0, 0).image
    assert len(calls) == 3
    monkeypatch.undo()
    os.truncate(manifest.path(1), 100)
    with pytest.raises(DataError, match=r"shard-000001.tar: .*100 bytes, but the manifest"):
        reader.read(1, 0)
    manifest.path(2).with_suffix(".index.npz").unlink()
    with pytest.raises(DataError, match=r"shard-000002.index.npz: .* 5 tries"):
        reader.read(2, 0)


def test_grey_palette_and_one_bit():
    assert first_pixel(decode(encode(Image.new("L", (8, 8), 77), "PNG"))) == (77, 77, 77)
    assert first_pixel(decode(encode(Image.new("1", (8, 8), 1), "PNG"))) == (255, 255, 255)
    palette = Image.new("RGB", (8, 8), (10, 200, 30)).convert("P", palette=Image.Palette.ADAPTIVE)
    assert first_pixel(decode(encode(palette, "PNG"))) == (10, 200, 30)


def test_transparency_is_laid_on_white():
    clear, half = Image.new("RGBA", (8, 8), (255, 0, 0, 0)), Image.new("LA", (8, 8), (0, 128))
    assert first_pixel(decode(encode(clear, "PNG"))) == (255, 255, 255)
    assert first_pixel(decode(encode(half, "PNG"))) == (127, 127, 127)
    palette = Image.new("P", (8, 8), 0)
    palette.putpalette([0, 0, 0, 9, 9, 9])
    assert first_pixel(decode(encode(palette, "PNG", transparency=0))) == (255, 255, 255)
    keyed = encode(Image.new("RGB", (8, 8), (1, 2, 3)), "PNG", transparency=(1, 2, 3))
    assert first_pixel(decode(keyed)) == (255, 255, 255)


def test_cmyk():
    red, green, blue = first_pixel(decode(jpeg((0, 255, 255, 0), mode="CMYK")))
    assert red > 200 and green < 60 and blue < 60


def test_deep_images_are_scaled():
    deep = Image.fromarray(np.full((8, 8), 32896, dtype=np.uint16))
    assert first_pixel(decode(encode(deep, "PNG"))) == (128, 128, 128)
    whole = Image.fromarray(np.full((8, 8), 32896, dtype=np.int32))
    assert first_pixel(decode(encode(whole, "TIFF"))) == (128, 128, 128)
    for value, expected in ((0.5, 128), (51.0, 51)):
        real = Image.fromarray(np.full((8, 8), value, dtype=np.float32))
        assert first_pixel(decode(encode(real, "TIFF"))) == (expected,) * 3
    signed = Image.fromarray(np.array([[-5.0, 0.0], [5.0, 5.0]], dtype=np.float32))
    assert first_pixel(decode(encode(signed, "TIFF"))) == (0, 0, 0)
    flat = Image.fromarray(np.full((8, 8), -5.0, dtype=np.float32))
    assert first_pixel(decode(encode(flat, "TIFF"))) == (0, 0, 0)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(orientation):
    image = Image.new("RGB", (32, 16), (0, 0, 0))
    image.paste((255, 255, 255), (0, 0, 16, 8))
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encode(image, "JPEG", quality=100, exif=exif)
    expected = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    np.testing.assert_array_equal(np.asarray(decode(data)), np.asarray(expected))


def test_the_first_frame_of_an_animation():
    frames = [Image.new("RGB", (8, 8), c) for c in ((255, 0, 0), (0, 255, 0))]
    data = encode(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert first_pixel(decode(data)) == (255, 0, 0)


def test_too_many_pixels_are_refused_from_the_header(monkeypatch):
    bomb = encode(Image.new("1", (3000, 3000)), "PNG")
    monkeypatch.setattr(Image.Image, "load", lambda _: pytest.fail("was decoded"))
    with pytest.raises(ContentFault, match=r"too many pixels .*3000 x 3000.*max_pixels=1000000"):
        decode(bomb)


def test_beyond_pils_own_limit():
    header = encode(Image.new("1", (8, 8)), "PNG")
    huge = header[:16] + (60000).to_bytes(4, "big") * 2 + header[24:]
    with pytest.raises(ContentFault) as caught:
        decode(huge, max_pixels=10**12)
    assert caught.value.reason in ("too many pixels", "undecodable image")


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_a_truncated_file_is_a_fault(kind):
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    data = encode(Image.fromarray(noise), kind)
    with pytest.raises(ContentFault) as caught:
        decode(data[: len(data) // 2])
    assert caught.value.reason == "truncated image"
    for cut in (b"", data[:3], data[:20], b"%!PS-Adobe-3.0 EPSF-3.0\n", b"nonsense" * 9):
        with pytest.raises(ContentFault, match="image"):
            decode(cut)


def test_draft_never_goes_below_the_wanted_size():
    large = jpeg(size=(1600, 900))
    assert decode(large, max_pixels=10**7, draft_size=224).size == (400, 225)
    assert decode(large, max_pixels=10**7, draft_size=300).size == (800, 450)
    assert decode(large, max_pixels=10**7, draft_size=2000).size == (1600, 900)
    assert decode(large, max_pixels=10**7).size == (1600, 900)
    assert decode(encode(Image.new("RGB", (640, 480)), "PNG"), draft_size=64).size == (640, 480)
