"""A phase on a mixture of a local and a remote set: resumed exactly, same on all ranks, counted."""

import json
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from pipeline.export_files import ExportTensors
from tests.data.servers import serve
from tests.dist.launch import launch, succeeded
from tests.tiny import write_recipe

pytestmark = pytest.mark.dist
STEPS = 14  # two epochs of (40 + 1.5 * 24) records in batches of 12


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """st_align on a mixture: whole and stopped on 2 ranks, whole on 1."""
    folder = tmp_path_factory.mktemp("mixture")
    other = {
        "source": "scenes",
        "style": "general",
        "out": str(folder / "served" / "other"),
        "counts": {"train": 24, "val": 1, "test": 1},
        "image_size": 32,
        "records_per_shard": 8,
        "workers": 0,
    }
    recipe = f"recipe={write_recipe(folder, prepare__other=other, st_align__epochs=2)}"
    (folder / "served").mkdir()
    with serve(folder / "served") as running:
        mixed = [
            recipe,
            f"data.mix=[{{shards: {folder}/data}}, {{shards: '{running.url}/other', weight: 1.5}}]",
            f"data.cache={folder}/cache",
            "encoder_adapt.enabled=false",
        ]
        stop = "st_align.stop_after=5"
        two = [
            ("prepare", [recipe]),
            ("pretrain", [recipe]),
            ("st_align", [*mixed, "name=whole"]),
            ("st_align", [*mixed, "name=stopped", stop]),
            ("st_align", [*mixed, "name=stopped"]),
        ]
        one = [("st_align", [*mixed, "name=alone", "st_align.micro_batch=5"])]
        for ranks, plan in ((2, two), (1, one)):
            path = folder / f"plan{ranks}.json"
            path.write_text(json.dumps(plan))
            succeeded(launch("tests/dist/phases_program.py", [str(path)], ranks=ranks))
        fetched = running.gets
    assert {name: n for name, n in fetched.items() if name.endswith(".tar")} == {
        f"shard-{i:06d}.tar": 1
        for i in range(3)  # once for all ranks and runs
    }
    return folder / "runs"


def scalars(run: Path, tag: str) -> dict[int, float]:
    board = EventAccumulator(str(run / "st_align" / "tensorboard"))
    board.Reload()
    return {event.step: event.value for event in board.Scalars(f"st_align/{tag}")}


def test_resume_is_exact_and_ranks_change_no_loss(runs: Path) -> None:
    whole, stopped = (ExportTensors(runs / n / "st_align" / "export") for n in ("whole", "stopped"))
    assert all(torch.equal(whole[name], stopped[name]) for name in whole)
    two, one = (scalars(runs / name, "train/loss") for name in ("whole", "alone"))
    assert list(two) == list(one) == list(range(1, STEPS + 1))
    for step, loss in one.items():
        assert abs(two[step] - loss) <= 1e-5 * abs(loss), (step, two[step], loss)


@pytest.mark.parametrize("name", ["whole", "stopped", "alone"])
def test_records_are_counted_by_set(runs: Path, name: str) -> None:
    summary = json.loads((runs / name / "st_align" / "summary.json").read_text())
    assert summary["records_by_set"] == {"data": 2 * 40, "other": 2 * 36}
    assert summary["records_seen"] == 2 * (40 + 36)
    assert scalars(runs / name, "data/records/other")[STEPS] == 72


def test_each_set_has_a_feature_cache_of_its_own(runs: Path) -> None:
    caches = [len(list(each.glob("*.npy"))) for each in (runs / "features").iterdir()]
    assert sorted(caches) == [1, 3, 3]  # val; data and other, in shards of 16 and 8
