"""Nothing runs from data: an attack for each thing that we read from somebody else.

A trap is code that makes a file where it runs. Every attack goes the way a user's file would go;
what is refused is refused in one line, what can be skipped is skipped and counted, and no trap ever
springs. Recipes and models are attacked in test_attacks_on_models.py.
"""

import json
import pickle
import struct
import tarfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.config import Config, PrepareConfig
from pipeline.data.cache import ShardCache
from pipeline.data.faults import ContentFault
from pipeline.data.images import decode_image
from pipeline.data.manifest import Manifest, load_manifest, read_manifest
from pipeline.data.prepare import prepare
from pipeline.data.reader import ShardReader
from pipeline.errors import ConfigError, DataError
from pipeline.recipe import load_recipe
from tests.data.samples import encode, jpeg, make_tar
from tests.data.servers import serve
from tests.faults.traps import Trap, change_json

GOOD = [("good.jpg", jpeg()), ("good.txt", b"a good one")]


# --- shards ---------------------------------------------------------------------------------------


def indexed(folder: Path) -> Manifest:
    cfg = PrepareConfig(
        source="webdataset", shards=str(folder / "tars"), out=str(folder / "out"), workers=0
    )
    prepare(cfg, report=lambda _: None)
    return load_manifest(folder / "out" / "train")


def keys_of(manifest: Manifest) -> list[str]:
    reader = ShardReader(manifest, max_pixels=10**6, max_image_bytes=10**5, retry_wait=0.0)
    (size,) = manifest.sizes
    return [reader.read(0, number).key for number in range(size)]


@pytest.mark.parametrize("ending", ["pkl", "pickle", "pyd", "pth", "pt", "npy", "npz", "cls", "py"])
def test_a_pickled_member_of_a_shard_is_not_opened(
    tmp_path: Path, trap: Trap, mark: Path, ending: str
) -> None:
    members = [("bad.jpg", jpeg()), ("bad.txt", b"text"), (f"bad.{ending}", pickle.dumps(trap))]
    make_tar(tmp_path / "tars" / "0.tar", [*GOOD, *members])
    assert keys_of(indexed(tmp_path)) == ["good", "bad"]
    assert not mark.exists()


@pytest.mark.parametrize("ending", ["jpg", "json", "txt"])
def test_a_pickle_under_another_name_is_bad_content(
    tmp_path: Path, trap: Trap, mark: Path, ending: str
) -> None:
    members = {"jpg": jpeg(), "txt": b"text"} | {ending: pickle.dumps(trap)}
    make_tar(tmp_path / "tars" / "0.tar", [(f"bad.{name}", x) for name, x in members.items()])
    reader = ShardReader(indexed(tmp_path), max_pixels=10**6)
    with pytest.raises(ContentFault, match=r"undecodable image|bad JSON|invalid UTF-8"):
        reader.image(reader.read(0, 0))
    assert not mark.exists()


def link(name: str, target: str, kind: bytes) -> tarfile.TarInfo:
    made = tarfile.TarInfo(name)
    made.type, made.linkname = kind, target
    return made


@pytest.mark.parametrize(
    "name", ["../out.jpg", "/tmp/out.jpg", "a/../../out.jpg", "link.jpg", "hard.jpg", "fifo.jpg"]
)
def test_members_that_lead_out_of_the_folder_are_left_out(tmp_path: Path, name: str) -> None:
    """No tar is ever unpacked; such names are no records all the same."""
    kinds = {"link.jpg": tarfile.SYMTYPE, "hard.jpg": tarfile.LNKTYPE, "fifo.jpg": tarfile.FIFOTYPE}
    member = link(name, "/etc/passwd", kinds[name]) if name in kinds else name
    text = (name.replace(".jpg", ".txt"), b"text")
    make_tar(tmp_path / "tars" / "0.tar", [*GOOD, (member, jpeg()), text])
    manifest = indexed(tmp_path)
    assert keys_of(manifest) == ["good"]
    assert set(manifest.skipped) & {"unsafe member name", "link or sparse member"}
    assert not (tmp_path.parent / "out.jpg").exists() and not Path("/tmp/out.jpg").exists()


# --- manifests and indexes ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "[" * 100_000,
        '{"a":' * 100_000,
        '{"version": 2, "records": ' + "9" * 5000 + "}",
        '{"version": 2, "skipped": {}, "shards": NaN}',
    ],
)
def test_a_manifest_that_is_no_json_for_us_is_one_line(split: Path, text: str) -> None:
    (split / "manifest.json").write_text(text)
    with pytest.raises(DataError, match=r"manifest\.json: not"):
        load_manifest(split)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("name", "../../secret.tar"),
        ("name", "/etc/secret.tar"),
        ("name", "a/../../secret.tar"),
        ("name", 7),
        ("records", float("nan")),
        ("records", float("inf")),
        ("records", -1),
        ("records", 10**30),
        ("records", "4"),
        ("records", True),
        ("bytes", float("nan")),
        ("bytes", 10**30),
        ("sha256", ["x"]),
        ("mtime_ns", float("nan")),
        ("unknown", 1),
    ],
)
def test_a_manifest_with_values_that_cannot_be_is_one_line(
    split: Path, key: str, value: object
) -> None:
    content = json.loads((split / "manifest.json").read_text())
    content["shards"][0][key] = value
    (split / "manifest.json").write_text(json.dumps(content))
    with pytest.raises(DataError, match=r"manifest\.json: not a manifest"):
        load_manifest(split)


@pytest.mark.parametrize(
    "place", ["pipe:cat /etc/passwd", "PIPE:id", "gopher://h/x", "file::pipe://x", "ftp://h/x"]
)
def test_a_manifest_cannot_name_other_kinds_of_places(split: Path, place: str) -> None:
    change_json(split / "manifest.json", shards_at=place)
    with pytest.raises(ConfigError, match="shards are read from paths and from"):
        read_manifest(split)
    with pytest.raises(ConfigError, match="shards are read from paths and from"):
        read_manifest(place)
    with pytest.raises(ConfigError, match="shards are read from paths and from"):
        ShardCache(split / "cache").fetch(place)


def index_of(split: Path) -> Path:
    return split / "shard-000000.index.npz"


def rewritten(index: Path, *, compress: bool = False, **changes: object) -> None:
    with np.load(index) as loaded:
        arrays = {name: loaded[name] for name in loaded.files}
    save = np.savez_compressed if compress else np.savez
    save(index, allow_pickle=True, **(arrays | changes))


@pytest.mark.parametrize("column", ["names", "image_offset", "json_size"])
def test_an_index_with_pickled_columns_is_refused(
    split: Path, trap: Trap, mark: Path, column: str
) -> None:
    rewritten(index_of(split), **{column: np.array([trap] * 4, dtype=object)})
    with pytest.raises(DataError, match="damaged index"):
        ShardReader(load_manifest(split), max_pixels=1, retry_wait=0.0).read(0, 0)
    assert not mark.exists()


@pytest.mark.parametrize(
    "changes",
    [
        {"image_offset": np.zeros(4)},
        {"image_offset": np.zeros((4, 1), dtype=np.int64)},
        {"json_size": np.zeros(3, dtype=np.int64)},
        {"names": np.zeros(4, dtype=np.int64)},
        {"entry": np.array("[" * 10_000)},
    ],
)
def test_an_index_of_another_form_is_refused(split: Path, changes: dict[str, object]) -> None:
    rewritten(index_of(split), **changes)
    with pytest.raises(DataError, match="damaged index"):
        ShardReader(load_manifest(split), max_pixels=1, retry_wait=0.0).read(0, 0)


def test_an_index_that_would_unpack_to_more_than_its_size_is_refused(split: Path) -> None:
    rewritten(index_of(split), compress=True, more=np.zeros(10**6))
    with pytest.raises(DataError, match="it is compressed"):
        ShardReader(load_manifest(split), max_pixels=1, retry_wait=0.0).read(0, 0)


@pytest.mark.parametrize("offset", [-512, 0, 3, 2**62])
@pytest.mark.parametrize("size", [-700, -1, 2**40, 2**62])
@pytest.mark.parametrize("member", ["image", "json"])
def test_an_index_that_points_anywhere_reads_nothing_else(
    split: Path, member: str, offset: int, size: int
) -> None:
    places = {f"{member}_offset": np.full(4, offset), f"{member}_size": np.full(4, size)}
    rewritten(index_of(split), **places)
    reader = ShardReader(
        load_manifest(split), max_pixels=10**6, max_image_bytes=10**6, retry_wait=0.0
    )
    with pytest.raises((ContentFault, DataError)):
        reader.image(reader.read(0, 0))


# --- images and texts -----------------------------------------------------------------------------


def png_with(*chunks: tuple[bytes, bytes]) -> bytes:
    """A small PNG with more chunks behind its header."""
    plain = encode(Image.new("RGB", (8, 8)), "PNG")
    added = b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks
    )
    return plain[:33] + added + plain[33:]


def bomb(size: int) -> bytes:
    return zlib.compress(bytes(size), 9)


def header_of(kind: str, pixels: int) -> bytes:
    """A file whose header says `pixels` squared, and that holds next to nothing."""
    data = bytearray(encode(Image.new("L", (8, 8)), kind))
    if kind == "PNG":
        data[16:24] = struct.pack(">II", pixels, pixels)
        data[29:33] = struct.pack(">I", zlib.crc32(bytes(data[12:29])))
    elif kind == "GIF":
        data[6:10] = struct.pack("<HH", pixels, pixels)
    else:
        data[18:26] = struct.pack("<ii", pixels, pixels)
    return bytes(data)


BOMBS: dict[str, Callable[[], bytes]] = {
    "a huge PNG of zeros": lambda: encode(Image.new("1", (9000, 9000)), "PNG"),
    "a header that promises much": lambda: header_of("PNG", 50_000),
    "a BMP that promises much": lambda: header_of("BMP", 50_000),
    "a GIF that promises much": lambda: header_of("GIF", 60_000),
    "a text chunk that unpacks to 100 MB": lambda: png_with((b"zTXt", b"k\0\0" + bomb(10**8))),
    "an ICC profile that unpacks to 100 MB": lambda: png_with((b"iCCP", b"k\0\0" + bomb(10**8))),
    "a text chunk of EXIF that unpacks": lambda: png_with(
        (b"iTXt", b"Raw profile type exif\0\1\0\0\0" + bomb(10**8))
    ),
    "a pickle": lambda: pickle.dumps(Trap(Path("/tmp/out.jpg"))),
    "PostScript": lambda: b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(touch) system\n",
    "SVG": lambda: b"<svg xmlns='http://www.w3.org/2000/svg'><image href='file:///etc/passwd'/>",
    "cut short": lambda: encode(Image.effect_noise((64, 64), 50), "PNG")[:900],
}


def memory(kind: str) -> int:
    """KiB of this process: VmRSS, or VmHWM, which is the most since the last reset."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(kind))


@pytest.mark.parametrize("kind", BOMBS)
def test_image_bombs_cost_next_to_nothing(kind: str) -> None:
    data = BOMBS[kind]()
    Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM
    before = memory("VmRSS")
    try:
        image = decode_image(data, max_pixels=10**6)
        assert image.size == (8, 8)  # the picture is fine, what hangs on it was not unpacked
    except ContentFault as fault:
        assert fault.reason in ("too many pixels", "undecodable image", "truncated image")
    assert memory("VmHWM") - before < 30_000


def test_of_an_animation_only_the_first_frame_is_decoded() -> None:
    frames = [Image.new("P", (500, 500), number) for number in range(200)]
    for kind in ("GIF", "WEBP"):
        data = encode(frames[0], kind, save_all=True, append_images=frames[1:], duration=10)
        assert decode_image(data, max_pixels=10**6).size == (500, 500)


def test_image_files_of_too_many_bytes_are_not_read(tmp_path: Path) -> None:
    large = png_with((b"teXt", bytes(10**6)))
    make_tar(tmp_path / "tars" / "0.tar", [*GOOD, ("big.png", large), ("big.txt", b"text")])
    reader = ShardReader(indexed(tmp_path), max_pixels=10**6, max_image_bytes=10**6)
    assert reader.read(0, 0).key == "good"
    with pytest.raises(ContentFault, match=r"big: too many bytes \(\d+, more than max_image_byt"):
        reader.read(0, 1)


def test_the_recipe_bounds_the_bytes_of_an_image() -> None:
    assert Config().data.max_image_bytes == 64 * 2**20
    with pytest.raises(ConfigError, match=r"data\.max_image_bytes=0 must be above zero"):
        load_recipe(["data.max_image_bytes=0"])


def test_a_text_of_many_megabytes_is_no_text(tmp_path: Path) -> None:
    huge = b'{"caption": "' + b"x" * (17 << 20) + b'"}'
    make_tar(tmp_path / "tars" / "0.tar", [*GOOD, ("big.jpg", jpeg()), ("big.json", huge)])
    manifest = indexed(tmp_path)
    assert keys_of(manifest) == ["good"]
    assert manifest.skipped["text too large"] == 1


@pytest.mark.parametrize(
    "text",
    [
        b"[" * 100_000,
        b'{"caption": ' * 50_000,
        b'{"caption": "a", "n": ' + b"9" * 5000 + b"}",
        b'{"caption": "a", "text_bytes": NaN}',
        b'{"caption": "a", "text_bytes": 1e999}',
        b'{"caption": "a", "text_bytes": 99999999999999999999}',
    ],
)
def test_json_made_to_break_its_reader_is_a_fault_or_harmless(tmp_path: Path, text: bytes) -> None:
    make_tar(tmp_path / "tars" / "0.tar", [*GOOD, ("odd.jpg", jpeg()), ("odd.json", text)])
    reader = ShardReader(indexed(tmp_path), max_pixels=10**6)
    lengths = reader.text_bytes(np.array([[0, 0], [0, 1]]))
    assert lengths[0] == 10 and 0 <= lengths[1] <= 10
    try:
        assert reader.read(0, 1).data["captions"] == ["a"]
    except ContentFault as fault:
        assert fault.reason == "bad JSON"


# --- servers --------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", ["file:///etc/hostname", "pipe:id", "ftp://127.0.0.1/x"])
def test_a_redirect_to_another_scheme_is_not_followed(tmp_path: Path, target: str) -> None:
    (tmp_path / "served").mkdir()
    with serve(tmp_path / "served") as server:
        server.redirects = {"a.tar": target}
        cache = ShardCache(tmp_path / "cache", tries=1)
        with pytest.raises(DataError, match="cannot be fetched"):
            cache.fetch(f"{server.url}/a.tar", size=10)
        with pytest.raises(DataError, match="cannot be fetched"):
            cache.read(f"{server.url}/a.tar")
    assert not [path for path in (tmp_path / "cache").iterdir() if path.is_file()]
