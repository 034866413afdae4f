"""Remote shards: whole or not at all, a bounded cache that processes share, faults by URL."""

import os
import pickle
import signal
import subprocess
import sys
import time
from pathlib import Path

import boto3
import numpy as np
import pytest
from moto.server import ThreadedMotoServer

from pipeline.data.cache import ShardCache
from pipeline.data.collate import LanguageCollator
from pipeline.data.files import sha256_of
from pipeline.data.loader import DecodedImages, Share, StepDataset, iterate
from pipeline.data.manifest import Manifest, load_manifest, save_manifest
from pipeline.data.plan import Plan
from pipeline.data.reader import ShardReader
from pipeline.data.remote import SCHEMES, checked_place, is_remote
from pipeline.data.shards import write_split
from pipeline.errors import ConfigError, DataError
from tests.data.samples import DUMMY, EachCaption, records
from tests.data.servers import FaultyServer, serve
from tests.data.test_loader import contents, layout, to_tensor
from tests.helpers import REPOSITORY

SIZE = 50_000


@pytest.fixture
def server(tmp_path: Path):
    """A server of ten files, f0 to f9, of SIZE bytes each."""
    folder = tmp_path / "served"
    folder.mkdir()
    for i in range(10):
        (folder / f"f{i}").write_bytes(np.random.default_rng(i).bytes(SIZE))
    with serve(folder) as running:
        yield running


def cache_in(tmp_path: Path, *, limit: int = 10**9) -> ShardCache:
    return ShardCache(tmp_path / "cache", limit, tries=3, wait=0.01)


def held(cache: ShardCache) -> int:
    """Bytes of all that counts in the cache, downloads included."""
    total = 0
    for path in cache.folder.iterdir():
        if path.is_file():
            try:
                total += path.stat().st_size
            except FileNotFoundError:
                continue
    return total


def test_a_file_is_fetched_once_and_whole(server: FaultyServer, tmp_path: Path) -> None:
    cache = cache_in(tmp_path)
    first = cache.fetch(f"{server.url}/f0", size=SIZE, sha256=sha256_of(server.folder / "f0"))
    assert first.read_bytes() == (server.folder / "f0").read_bytes()
    again = cache.fetch(f"{server.url}/f0", size=SIZE, sha256=sha256_of(server.folder / "f0"))
    assert again == first and server.gets["f0"] == 1
    assert [path.name for path in cache.folder.iterdir() if path.is_file()] == [first.name]


@pytest.mark.parametrize("faults", [[500, 500], ["short"], ["wrong"], [503, "short"]])
def test_what_a_second_try_mends_is_not_noticed(server, tmp_path, faults) -> None:
    server.faults["f1"] = list(faults)
    digest = sha256_of(server.folder / "f1")
    got = cache_in(tmp_path).fetch(f"{server.url}/f1", size=SIZE, sha256=digest)
    assert sha256_of(got) == digest
    assert server.gets["f1"] == len(faults) + 1


@pytest.mark.parametrize(
    ("faults", "cause", "gets"),
    [
        ([500] * 9, "HTTP 500", 3),
        (["short"] * 9, "", 3),
        (["wrong"] * 9, "SHA-256 is not the manifest's", 3),
        ([404] * 9, "not found", 1),
        ([403] * 9, "HTTP 403", 1),
    ],
)
def test_what_stays_wrong_is_fatal_with_url_and_cause(server, tmp_path, faults, cause, gets):
    server.faults["f2"] = list(faults)
    cache, url = cache_in(tmp_path), f"{server.url}/f2"
    with pytest.raises(DataError) as caught:
        cache.fetch(url, size=SIZE, sha256=sha256_of(server.folder / "f2"))
    assert str(caught.value).startswith(f"{url}: cannot be fetched")
    assert cause in str(caught.value) and "\n" not in str(caught.value)
    assert server.gets["f2"] == gets
    assert held(cache) == 0


def test_a_sick_server_is_asked_again_for_a_size_and_not_called_empty(server, tmp_path) -> None:
    cache, url = cache_in(tmp_path), f"{server.url}/f3"
    server.heads["f3"], server.faults["f3"] = [503], [503]  # fsspec asks by HEAD, then by GET
    assert cache.size(url) == SIZE
    server.heads["f3"], server.faults["f3"] = [503] * 9, [503] * 9
    with pytest.raises(DataError, match=r"HTTP 503"):
        cache.size(url)
    with pytest.raises(DataError, match=r"Cannot connect"):
        cache.size("http://127.0.0.1:9/x.tar")
    with pytest.raises(DataError, match=r"not found"):
        cache.size(f"{server.url}/nothing")


def test_another_size_than_the_manifests_is_fatal(server, tmp_path) -> None:
    with pytest.raises(DataError, match=f"{SIZE} bytes came, but the manifest says 7"):
        cache_in(tmp_path).fetch(f"{server.url}/f2", size=7)


def test_a_server_that_is_gone_is_fatal(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"http://127.0.0.1:9/x.tar: cannot be fetched"):
        cache_in(tmp_path).fetch("http://127.0.0.1:9/x.tar", size=1)


def test_without_a_known_size_or_length_the_file_comes_all_the_same(server, tmp_path) -> None:
    cache = cache_in(tmp_path, limit=SIZE)
    cache.fetch(f"{server.url}/f0")
    server.faults["f1"] = ["lengthless"]
    assert cache.fetch(f"{server.url}/f1").stat().st_size == SIZE
    assert held(cache) == SIZE


def test_a_damaged_copy_is_fetched_again(server, tmp_path) -> None:
    cache = cache_in(tmp_path)
    os.truncate(cache.fetch(f"{server.url}/f0", size=SIZE), 10)
    assert cache.fetch(f"{server.url}/f0", size=SIZE).stat().st_size == SIZE


def test_the_least_recently_used_makes_room(server, tmp_path) -> None:
    cache = cache_in(tmp_path, limit=3 * SIZE + 10)
    for i in (0, 1, 2, 0, 3):
        cache.fetch(f"{server.url}/f{i}", size=SIZE)
        time.sleep(0.01)  # the clock of a file system has coarse ticks
    cache.fetch(f"{server.url}/f0", size=SIZE)
    assert held(cache) == 3 * SIZE
    assert server.gets == {"f0": 1, "f1": 1, "f2": 1, "f3": 1}
    cache.fetch(f"{server.url}/f1", size=SIZE)
    assert server.gets["f1"] == 2


def test_other_files_in_the_folder_are_left_alone(server, tmp_path) -> None:
    cache = cache_in(tmp_path, limit=SIZE)
    cache.folder.mkdir()
    (cache.folder / "thesis.part").write_bytes(b"x" * SIZE)
    (cache.folder / "photo.jpg").write_bytes(b"x" * SIZE)
    for i in range(3):
        cache.fetch(f"{server.url}/f{i}", size=SIZE)
    assert (cache.folder / "thesis.part").exists() and (cache.folder / "photo.jpg").exists()


def test_an_open_file_stays_readable_when_it_is_evicted(server, tmp_path) -> None:
    cache = cache_in(tmp_path, limit=SIZE)
    path = cache.fetch(f"{server.url}/f0", size=SIZE)
    with path.open("rb") as file:
        cache.fetch(f"{server.url}/f1", size=SIZE)
        assert not path.exists()
        assert file.read() == (server.folder / "f0").read_bytes()


def test_a_file_larger_than_the_cache_is_an_error_that_says_so(server, tmp_path) -> None:
    with pytest.raises(DataError, match=r"f0: 5e-05 GB, but .* 1e-05 GB; raise cache_gb"):
        cache_in(tmp_path, limit=10_000).fetch(f"{server.url}/f0", size=SIZE)


def test_a_cache_that_cannot_be_used_is_an_error_that_says_so(server, tmp_path) -> None:
    cache = cache_in(tmp_path)
    name = cache.fetch(f"{server.url}/f0", size=SIZE).name
    lock = cache.folder / "locks" / f"{name}.lock"
    (cache.folder / name).unlink()
    lock.unlink()
    lock.mkdir()
    with pytest.raises(DataError, match=rf"{cache.folder}: cannot be used as cache .*key cache"):
        cache.fetch(f"{server.url}/f0", size=SIZE)


READ_MANY = """
import sys, hashlib, numpy as np
from pathlib import Path
from pipeline.data.cache import ShardCache
url, folder, limit, seed = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
cache = ShardCache(folder, limit, wait=0.01)
for i in np.random.default_rng(seed).integers(0, 10, 60):
    while True:
        try:
            data = cache.fetch(f"{url}/f{i}", size=50_000).read_bytes()
            break
        except FileNotFoundError:
            continue  # evicted by the other process before it was opened
    assert data == np.random.default_rng(int(i)).bytes(50_000)
"""


def start(program: str, *arguments: object) -> subprocess.Popen[str]:
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    command = [sys.executable, "-c", program, *map(str, arguments)]
    return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)


def test_processes_share_a_small_cache_and_never_exceed_it(server, tmp_path) -> None:
    cache = cache_in(tmp_path, limit=3 * SIZE)
    cache.folder.mkdir()
    both = [start(READ_MANY, server.url, cache.folder, cache.limit, seed) for seed in (1, 2)]
    most = 0
    while any(each.poll() is None for each in both):
        most = max(most, held(cache))
        time.sleep(0.002)
    assert [each.returncode for each in both] == [0, 0], [each.communicate()[1] for each in both]
    assert 0 < most <= cache.limit
    assert sum(server.gets.values()) < 2 * 60  # what one has fetched, the other reads


FETCH_ONE = """
import sys
from pathlib import Path
from pipeline.data.cache import ShardCache
ShardCache(Path(sys.argv[2]), 10**9).fetch(sys.argv[1], size=50_000)
"""


def test_processes_that_want_the_same_file_fetch_it_once(server, tmp_path) -> None:
    many = [start(FETCH_ONE, f"{server.url}/f0", tmp_path / "cache") for _ in range(4)]
    assert [each.wait() for each in many] == [0] * 4
    assert server.gets["f0"] == 1


def test_a_killed_download_leaves_nothing_that_counts(server, tmp_path) -> None:
    cache = cache_in(tmp_path, limit=SIZE)
    server.faults["f0"] = ["stall"]
    running = start(FETCH_ONE, f"{server.url}/f0", cache.folder)
    deadline = time.monotonic() + 30
    while not any(path.stat().st_size for path in cache.folder.glob("*.part")):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    running.send_signal(signal.SIGKILL)
    running.wait()
    assert list(cache.folder.glob("*.part"))
    other = cache.fetch(f"{server.url}/f1", size=SIZE)  # has room: the torn file does not count
    assert not list(cache.folder.glob("*.part"))
    assert other.exists()
    whole = cache.fetch(f"{server.url}/f0", size=SIZE)
    assert whole.read_bytes() == (server.folder / "f0").read_bytes()


@pytest.mark.parametrize(
    ("place", "reason"),
    [
        ("pipe:cat /etc/passwd", "pipe: shards are read from paths and from file, http, https, s3"),
        ("ftp://host/coco", "ftp: shards are read"),
        ("simplecache::s3://bucket/coco", "simplecache: shards"),
        ("http://host/zip://x::http://host/y", "http: shards are read"),
        ("gs://bucket/coco", "with the key schemes"),
        ("https://me:secret@host/coco", "https://host/...: an address must not hold credentials"),
        ("https://host/coco?token=secret", "must not hold credentials or a query"),
    ],
)
def test_other_addresses_are_refused_in_one_line_without_secrets(place: str, reason: str) -> None:
    with pytest.raises(ConfigError, match=reason) as caught:
        load_manifest(place)
    assert "secret" not in str(caught.value) and "\n" not in str(caught.value)
    with pytest.raises(ConfigError):
        ShardCache().fetch(place)


def test_places_in_their_one_form() -> None:
    assert checked_place("file:///data/coco") == "/data/coco" == checked_place("/data/coco")
    assert checked_place("S3://bucket/coco/") == "s3://bucket/coco"
    assert checked_place("gs://b/c", (*SCHEMES, "gs")) == "gs://b/c"
    assert [is_remote(p) for p in ("a/b", "/a:b", "./a:b", "file:///a")] == [False] * 4
    assert is_remote("https://host/a")


@pytest.mark.parametrize(("status", "cause"), [(404, "not found"), (500, "HTTP 500")])
def test_a_signature_that_the_server_sends_is_not_shown(server, tmp_path, status, cause) -> None:
    server.redirects = {"f0": f"{server.url}/f1?signature=xyzzy"}
    server.faults["f1"] = [status] * 9
    with pytest.raises(DataError, match=cause) as caught:
        cache_in(tmp_path).fetch(f"{server.url}/f0", size=SIZE)
    assert "xyzzy" not in str(caught.value)


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    folder = tmp_path_factory.mktemp("data") / "my set" / "train"  # a space in the URL
    return write_split(records(40), folder, seed=0, records_per_shard=8, workers=0)[0]


def dataset(manifest: Manifest, *, rank: int = 0, ranks: int = 1) -> StepDataset:
    return StepDataset(
        reader=ShardReader(manifest, max_pixels=10_000),
        plan=Plan(manifest.sizes, seed=3, global_batch=6, lanes=2, window=4),
        share=Share(rank, ranks, ranks, 2),
        collate=LanguageCollator((3, 4, 4), pad_id=0, dummy=DUMMY),
        rows=EachCaption(layout),
        images=DecodedImages(to_tensor, 4),
    )


def batches_of(manifest: Manifest, workers: int) -> list[tuple[list, list]]:
    steps = list(iterate(dataset(manifest), 0, 10, workers=workers))
    assert not any(step.fatal for step in steps)
    return [
        (rows, [batch.images.numpy().tobytes() for batch in step.batches])
        for rows, step in zip(contents(steps), steps, strict=True)
    ]


@pytest.mark.parametrize("workers", [0, 2])
def test_over_http_the_batches_are_those_of_the_local_folder(local, tmp_path, workers) -> None:
    largest = max(entry.bytes for entry in local.shards)
    with serve(local.folder.parents[1]) as running:
        cache = cache_in(tmp_path, limit=4 * largest)
        remote = load_manifest(f"{running.url}/my set/train", cache)
        assert remote.fingerprint == local.fingerprint and remote.sizes == local.sizes
        assert batches_of(remote, workers) == batches_of(local, 0)
        assert held(cache) <= cache.limit
        assert running.gets["shard-000000.tar"] >= 1


def test_local_indexes_of_remote_shards(local, tmp_path) -> None:
    with serve(local.folder.parents[1]) as running:
        elsewhere = Manifest(tmp_path, local.shards, at=f"{running.url}/my set/train")
        save_manifest(elsewhere)
        for number in range(len(local.shards)):
            index = local.index_path(number)
            (tmp_path / index.name).write_bytes(index.read_bytes())
        loaded = load_manifest(tmp_path, cache_in(tmp_path))
        assert loaded.at == elsewhere.at and loaded.fingerprint == local.fingerprint
        assert batches_of(loaded, 0) == batches_of(local, 0)
        assert running.gets["shard-000000.index.npz"] == 0


def test_a_remote_shard_of_another_content_stops_the_step_that_needs_it(local, tmp_path) -> None:
    with serve(local.folder.parents[1]) as running:
        for entry in local.shards:
            running.faults[entry.name] = ["wrong"] * 99
        remote = load_manifest(f"{running.url}/my set/train", cache_in(tmp_path))
        fatal = dataset(remote)[0].fatal
    assert fatal is not None
    assert fatal.startswith(f"{running.url}/my set/train/shard-") and "SHA-256" in fatal


def test_a_remote_folder_without_manifest_is_an_error_with_its_url(server, tmp_path) -> None:
    with pytest.raises(DataError, match=rf"{server.url}/coco/manifest.json: .*not found"):
        load_manifest(f"{server.url}/coco", cache_in(tmp_path))


def test_a_remote_manifest_cannot_point_at_local_files(local, tmp_path) -> None:
    save_manifest(Manifest(tmp_path, local.shards, at="/etc"))
    with serve(tmp_path) as running, pytest.raises(DataError, match="is a local path"):
        load_manifest(running.url, cache_in(tmp_path))


def test_a_manifest_travels_to_a_worker_process(local, tmp_path) -> None:
    with serve(local.folder) as running:
        remote = load_manifest(running.url, cache_in(tmp_path))
        assert pickle.loads(pickle.dumps(remote)).path(0) == remote.path(0)


@pytest.fixture
def bucket(local: Manifest, monkeypatch: pytest.MonkeyPatch):
    """An S3 server on loopback with the split at s3://shards/coco/train."""
    running = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    running.start()
    host, port = running.get_host_and_port()
    values = {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "hush",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    for name, value in values.items():
        monkeypatch.setenv(name, value)
    client = boto3.client("s3")
    client.create_bucket(Bucket="shards")
    for path in local.folder.iterdir():
        client.upload_file(str(path), "shards", f"coco/train/{path.name}")
    yield client
    running.stop()


def test_over_s3_the_batches_are_those_of_the_local_folder(bucket, local, tmp_path) -> None:
    remote = load_manifest("s3://shards/coco/train", cache_in(tmp_path))
    assert remote.fingerprint == local.fingerprint
    assert batches_of(remote, workers=2) == batches_of(local, 0)


def test_what_s3_lacks_is_named(bucket, tmp_path) -> None:
    with pytest.raises(DataError, match=r"s3://shards/x.tar: cannot be fetched .*not found"):
        cache_in(tmp_path).fetch("s3://shards/x.tar")
