"""What a recipe trains on: one split, or a mixture of sets, local and remote."""

from collections import Counter
from itertools import chain
from pathlib import Path

import pytest

from pipeline.config import Config, DataConfig, MixConfig
from pipeline.data.collate import LanguageCollator
from pipeline.data.loader import DecodedImages, Share, StepDataset, iterate
from pipeline.data.manifest import Manifest, ShardEntry, load_manifest
from pipeline.data.plan import items_in_order
from pipeline.data.shards import write_split
from pipeline.data.sources.record import SourceRecord
from pipeline.errors import ConfigError
from pipeline.recipe import load_recipe
from pipeline.splits import Split, open_split, open_training
from tests.data.samples import DUMMY, EachCaption, PlainImage
from tests.data.servers import serve
from tests.data.test_loader import contents, layout, to_tensor

SIZES = {"a": 24, "b": 20, "c": 10}
WEIGHTS = {"a": 1.0, "b": 2.5, "c": 0.5}
RECORDS = 24 + 50 + 5


def named(name: str, count: int) -> list[SourceRecord]:
    """Records whose keys start with the set's name."""
    return [
        SourceRecord(f"{name}{i:03d}", PlainImage(i), (f"{name}{i:03d}",), i) for i in range(count)
    ]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three sets a, b and c, each with a train split; a has val as well."""
    root = tmp_path_factory.mktemp("sets")
    options = {"seed": 0, "records_per_shard": 7, "workers": 0}
    for name, size in SIZES.items():
        write_split(named(name, size), root / name / "train", **options)
    write_split(named("v", 4), root / "a" / "val", **options)
    return root


def recipe(folder: Path | str, **changes) -> Config:
    mix = [MixConfig(f"{folder}/{name}", weight=weight) for name, weight in WEIGHTS.items()]
    values = {"shards": f"{folder}/a", "mix": mix, "lanes": 4, "window": 8, **changes}
    return Config(data=DataConfig(**values))


def steps_of(split: Split, first: int, last: int, *, rank: int = 0, ranks: int = 1, workers=0):
    dataset = StepDataset(
        reader=split.reader,
        plan=split.plan(8, seed=3),
        share=Share(rank, ranks, ranks, 2),
        collate=LanguageCollator((3, 4, 4), pad_id=0, dummy=DUMMY),
        rows=EachCaption(layout),
        images=DecodedImages(to_tensor, 4),
        captions="one",
        sets=split.names,
    )
    return list(iterate(dataset, first, last, workers=workers))


def test_a_mixture_holds_every_set_by_its_weight(folder: Path) -> None:
    split = open_training(recipe(folder))
    assert split.records == RECORDS
    steps = steps_of(split, 0, 10)
    keys = Counter(key for step in contents(steps) for key, _ in step)
    for name, size in SIZES.items():
        came = [keys[f"{name}{i:03d}"] for i in range(size)]
        assert sum(came) == WEIGHTS[name] * size and max(came) - min(came) <= 1
    by_set = sum((Counter(step.by_set) for step in steps), Counter())
    assert by_set == {"a": 24, "b": 50, "c": 5}


@pytest.mark.parametrize(("ranks", "workers"), [(2, 1), (3, 2)])
def test_ranks_workers_and_a_late_start_change_no_global_batch(folder, ranks, workers) -> None:
    split = open_training(recipe(folder))
    alone = [sorted(step) for step in contents(steps_of(split, 0, 20))]
    parts = [
        steps_of(split, 7, 20, rank=rank, ranks=ranks, workers=workers) for rank in range(ranks)
    ]
    together = [sorted(chain(*step)) for step in zip(*map(contents, parts), strict=True)]
    assert together == alone[7:]
    assert all(a.by_set == b.by_set for a, b in zip(*parts[:2], strict=True))


def test_validation_and_test_stay_with_the_recipes_own_shards(folder: Path) -> None:
    split = open_split(recipe(folder), "val")
    assert split.records == 4 and split.names == ()
    assert len(items_in_order(split.in_order(3))) == 4


def test_the_fingerprint_covers_sets_and_weights_but_no_places(folder: Path) -> None:
    plain = open_training(recipe(folder, mix=[]))
    assert plain.fingerprint == load_manifest(folder / "a" / "train").fingerprint
    one = open_training(recipe(folder, mix=[MixConfig(f"{folder}/a")]))
    assert one.fingerprint == plain.fingerprint
    mixed = open_training(recipe(folder)).fingerprint
    other_weight = [MixConfig(f"{folder}/{n}", weight=w) for n, w in (WEIGHTS | {"c": 0.6}).items()]
    fewer = [MixConfig(f"{folder}/{n}", weight=w) for n, w in list(WEIGHTS.items())[:2]]
    found = {open_training(recipe(folder, mix=mix)).fingerprint for mix in (other_weight, fewer)}
    assert len(found | {mixed, plain.fingerprint}) == 4
    with serve(folder) as running:
        assert open_training(recipe(running.url)).fingerprint == mixed


def test_local_and_remote_sets_mix(folder: Path, tmp_path: Path) -> None:
    local = steps_of(open_training(recipe(folder)), 0, 12)
    with serve(folder) as running:
        config = recipe(folder, cache=str(tmp_path), cache_gb=0.01)
        config.data.mix[1].shards = f"{running.url}/b"
        mixed = steps_of(open_training(config), 0, 12)
        assert running.gets["shard-000000.tar"] == 1
    assert contents(mixed) == contents(local)


def remote_split(*sizes: int, cache_gb: float) -> Split:
    shards = tuple(ShardEntry(f"{i}.tar", size, 100) for i, size in enumerate(sizes))
    manifest = Manifest(Path("unused"), shards, at="s3://bucket/coco/train")
    return Split(DataConfig(lanes=4, cache_gb=cache_gb), (manifest,))


def test_a_cache_that_cannot_hold_one_step_is_refused_before_training() -> None:
    gigabyte = 10**9
    sizes = [gigabyte] * 6 + [3 * gigabyte]
    assert remote_split(*sizes, cache_gb=6).plan(8, seed=0).lanes == 4
    with pytest.raises(ConfigError, match=r"data.cache_gb=5.9: .* 4 lanes, .* up to 6 GB; raise"):
        remote_split(*sizes, cache_gb=5.9).plan(8, seed=0)
    remote_split(*sizes, cache_gb=5.9).plan(2, seed=0)  # two lanes
    remote_split(*sizes, cache_gb=5.9).in_order(8)


def test_a_weight_that_takes_no_record_is_refused(folder: Path) -> None:
    mix = [MixConfig(f"{folder}/a"), MixConfig(f"{folder}/c", weight=0.01)]
    with pytest.raises(ConfigError, match=r"data.mix\[1\].weight=0.01: .* no record of the 10"):
        open_training(recipe(folder, mix=mix))


@pytest.mark.parametrize(
    ("mix", "reason"),
    [
        ("[{shards: /x/a},{shards: /y/a}]", r"data.mix\[1\]: another set is called 'a' too"),
        ("[{weight: 2}]", r"data.mix\[0\].shards is empty"),
        ("[{shards: /x/a, weight: 0}]", r"data.mix\[0\].weight=0.0 must be above zero"),
        ("[{shard: /x/a}]", "did you mean 'shards'"),
    ],
)
def test_a_wrong_mixture_is_answered_in_one_line(mix: str, reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        load_recipe(["recipe=quickstart", f"data.mix={mix}"])


def test_sets_of_one_name_can_be_told_apart() -> None:
    mix = "[{shards: /x/a/, name: left},{shards: 's3://y/a'}]"
    config = load_recipe(["recipe=quickstart", f"data.mix={mix}"])
    assert [each.label for each in config.data.mix] == ["left", "a"]


def shards_of_an_epoch(split: Split) -> set[int]:
    """Of a mixture with weights below one some are left out."""
    plan = split.plan(8, seed=3)
    return {int(each) for k in range(plan.steps_per_epoch) for each in plan.step(0, k)[:, 0]}


def test_a_staged_mixture_is_the_same_and_only_what_was_read_is_copied(
    folder: Path, tmp_path: Path
) -> None:
    plain, stage = open_training(recipe(folder)), tmp_path / "stage"
    staged = open_training(recipe(folder, stage=str(stage)))
    assert staged.fingerprint == plain.fingerprint

    def copies() -> list[str]:
        return [each.name for each in stage.glob("*.tar")]

    for steps in ((0, 1), (0, plain.plan(8, seed=3).steps_per_epoch)):
        assert contents(steps_of(staged, *steps)) == contents(steps_of(plain, *steps))
        if steps == (0, 1):
            assert 0 < len(copies()) < plain.shards
    assert len(copies()) == len(shards_of_an_epoch(plain))


def test_shards_that_find_no_room_on_the_stage_are_counted_once(
    folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    staged = open_training(recipe(folder, stage=f"{tmp_path}/file/stage"))
    epoch = staged.plan(8, seed=3).steps_per_epoch
    found = steps_of(staged, 0, epoch)
    assert sum(each.unstaged for each in found) == len(shards_of_an_epoch(staged))
    assert contents(found) == contents(steps_of(open_training(recipe(folder)), 0, epoch))
