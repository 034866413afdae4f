"""Phases that were stopped on one number of ranks and end on another, as uninterrupted ones do.

The contrastive phase with its groups by layer, and tuning in two segments with adapters and an
average over steps; in real ZeRO-3 partitions and under ZeRO-1. Five launches of 1 to 4 ranks.
"""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch

from pipeline.export_files import ExportTensors
from tests.dist.launch import launch, succeeded
from tests.dist.test_training import scalars, summary
from tests.tiny import TIGHT_ZERO3, write_recipe

pytestmark = [pytest.mark.dist, pytest.mark.slow]
STOPPED = {"encoder_adapt": 2, "llm_tune": 3}  # llm_tune: in its second segment
STAGES = ("tight", "zero1")
TUNING = [  # from the base weights, so that nothing else differs
    *("encoder_adapt.enabled=false", "st_align.enabled=false"),
    *("llm_tune.ema=0.5", "llm.lora.rank=2", "llm.lora.targets=[all-linear]"),
]
OTHER_LR = 5e-3
Plan = list[tuple[str, list[str]]]


class Runs:
    """Plans of phases for some number of ranks, run in one launch each."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "tight.json").write_text(json.dumps(TIGHT_ZERO3))
        self.recipe = [f"recipe={write_recipe(folder)}", "encoder_adapt.loss=siglip"]
        self.output: dict[str, str] = {}

    def phases(self, name: str, *changes: str) -> Plan:
        """Both phases under both ZeRO stages, as runs `name`-STAGE."""
        plan = []
        for stage in STAGES:
            config = str(self.folder / "tight.json") if stage == "tight" else stage
            for phase, own in (("encoder_adapt", []), ("llm_tune", TUNING)):
                named = [f"name={name}-{stage}", f"{phase}.ds_config={config}"]
                changed = [each.replace("PHASE", phase) for each in changes]
                plan.append((phase, [*self.recipe, *own, *named, *changed]))
        return plan

    def stopped(self, name: str) -> Plan:
        """The same, each stopped half-way."""
        plan = self.phases(name)
        return [(phase, [*args, f"{phase}.stop_after={STOPPED[phase]}"]) for phase, args in plan]

    def copy(self, name: str, to: str) -> None:
        """Another run as far as `name` is."""
        for stage in STAGES:
            runs = self.folder / "runs"
            shutil.copytree(runs / f"{name}-{stage}", runs / f"{to}-{stage}")

    def launch(self, name: str, ranks: int, plan: Plan, **variables: str) -> None:
        path = self.folder / f"{name}.json"
        path.write_text(json.dumps(plan))
        program = ("tests/dist/phases_program.py", [str(path)])
        how = "deepspeed" if variables else "warm"  # which has its number of threads already
        done = launch(*program, ranks=ranks, launcher=how, variables=variables)
        self.output[name] = succeeded(done)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    runs = Runs(tmp_path_factory.mktemp("ranks"))
    prepared: Plan = [("prepare", runs.recipe), ("pretrain", runs.recipe)]
    runs.launch("two", 2, [*prepared, *runs.phases("two"), *runs.stopped("from2")])
    for ranks in (1, 3, 4):
        runs.copy("from2", f"from2on{ranks}")
    one = [*runs.phases("from2on1"), *runs.phases("one"), *runs.stopped("from1")]
    runs.launch("one", 1, one)
    same = [*runs.phases("same")[0][1], "deterministic=true"]
    variables = {"OMP_NUM_THREADS": "2"}
    program = ("stages/encoder_adapt.py", same)
    succeeded(launch(*program, ranks=1, launcher="python", variables=variables))
    changes = ["PHASE.micro_batch=3", "data.workers=1", "PHASE.log_every=1"]
    runs.launch("three", 3, runs.phases("from2on3", *changes))
    four = [*runs.phases("from2on4"), *runs.phases("four"), *runs.stopped("from4")]
    runs.launch("four", 4, four)
    for origin in ("from1", "from4"):
        runs.copy(origin, f"{origin}on2")
    runs.copy("from2", "changed")
    changed = runs.phases("changed", f"llm_tune.lr={OTHER_LR}", "resume_with_changes=true")
    later = runs.phases("changed", f"llm_tune.lr={OTHER_LR}")
    last = [*runs.phases("from1on2"), *runs.phases("from4on2"), *runs.phases("again")]
    runs.launch("last", 2, [*last, changed[1], later[1]], OMP_NUM_THREADS="3")
    return runs


def losses(made: Runs, name: str, phase: str) -> dict[int, float]:
    return scalars(made.folder / "runs" / name, phase, "train/loss")


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("phase", STOPPED)
@pytest.mark.parametrize(
    "name", ["one", "four", "from2on1", "from2on3", "from2on4", "from1on2", "from4on2"]
)
def test_every_step_has_the_loss_of_two_uninterrupted_ranks(
    made: Runs, name: str, phase: str, stage: str
) -> None:
    two, other = (losses(made, f"{each}-{stage}", phase) for each in ("two", name))
    assert two.keys() == other.keys() and len(two) >= 4
    for step, loss in two.items():
        assert abs(other[step] - loss) <= 1e-5 * abs(loss), (step, other[step], loss)
    ends = [summary(made.folder / "runs" / f"{each}-{stage}", phase) for each in ("two", name)]
    for key in ("steps", "records_seen", "records_skipped", "steps_skipped", "texts_cut"):
        assert ends[0][key] == ends[1][key]
    assert ends[1]["validation"]["end"] == pytest.approx(ends[0]["validation"]["end"], rel=1e-4)


@pytest.mark.parametrize("name", ["from2on1", "from2on3", "from2on4"])
def test_progress_of_the_rewriting_is_shown(made: Runs, name: str) -> None:
    ranks = {"1": "one", "3": "three", "4": "four"}[name[-1]]
    lines = re.findall(r".*is rewritten: 2 rank\(s\) have made it.*", made.output[ranks])
    assert len(lines) == 4 and "rewritten in" in made.output[ranks]
    assert not list((made.folder / "runs").rglob(".writing-*"))


@pytest.mark.parametrize("phase", STOPPED)
def test_a_launchers_number_of_threads_changes_no_bit(made: Runs, phase: str) -> None:
    """OMP_NUM_THREADS=3 here and 1 there; the number is ours (EIM_THREADS)."""
    two, again = (
        ExportTensors(made.folder / "runs" / f"{name}-tight" / phase / "export")
        for name in ("two", "again")
    )
    assert two.keys() == again.keys()
    assert all(torch.equal(two[name], again[name]) for name in two)


def test_deterministic_algorithms_change_no_bit_on_a_cpu(made: Runs) -> None:
    one, same = (
        ExportTensors(made.folder / "runs" / f"{name}-tight" / "encoder_adapt" / "export")
        for name in ("one", "same")
    )
    assert all(torch.equal(one[name], same[name]) for name in one)


def test_what_is_changed_knowingly_counts_from_there_on_and_is_told(made: Runs) -> None:
    """The learning rate, from the fourth step on; the loss of that step is still the old one."""
    two, changed = (losses(made, f"{name}-tight", "llm_tune") for name in ("two", "changed"))
    assert [changed[step] == two[step] for step in sorted(two)] == [True] * 4 + [False] * 2
    told = summary(made.folder / "runs" / "changed-tight", "llm_tune")
    change = f"llm_tune.lr: 0.001 then, {OTHER_LR} now"
    assert told["changes"] == [f"step 3: {change}"] and told["state"] == "finished"
    assert "changed-tight/llm_tune/export\n" in made.output["last"].split("is finished already")[-1]
