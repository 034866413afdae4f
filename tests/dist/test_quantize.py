"""Frozen weights in 4 and 8 bits through the phases: two ranks under ZeRO-2, resumed, scored."""

import json
from pathlib import Path

import pytest
import torch

from pipeline.evaluation.scienceqa import read_results
from pipeline.export_files import ExportTensors
from tests.dist.launch import launch, succeeded
from tests.dist.test_training import scalars, summary
from tests.tiny import write_questions

pytestmark = pytest.mark.dist
pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed (the extra `quantize`)")

FAMILIES = {"lavin": "4bit", "llama_adapter": "8bit"}
PHASES = ("st_align", "llm_tune")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both families, each in its bits: whole and stopped on 2 ranks, whole on 1 rank."""
    folder = tmp_path_factory.mktemp("quantize")
    two, one = [], []
    for family, bits in FAMILIES.items():
        path = write_questions(
            folder,
            family,
            ds_config="zero2",
            llm__quantize=bits,
            encoder_adapt__enabled=False,
            pretrain__scratch__llm_width=64,
        )
        recipe = f"recipe={path}"
        two += [("prepare", [recipe]), ("pretrain", [recipe, f"name={family}-base"])]
        for phase in PHASES:
            two.append((phase, [recipe, f"name={family}-whole"]))
            one.append((phase, [recipe, f"name={family}-alone", f"{phase}.micro_batch=5"]))
        start = folder / "runs" / f"{family}-whole" / "st_align" / "export"
        stopped = [recipe, f"name={family}-stopped", f"llm_tune.init_from={start}"]
        two.append(("llm_tune", [*stopped, "llm_tune.stop_after=3"]))
        two.append(("llm_tune", stopped))
        two.append(("evaluate", [recipe, f"name={family}-whole"]))
        half = ["precision=bf16", f"llm_tune.init_from={start}", "llm_tune.max_steps=3"]
        two.append(("llm_tune", [recipe, f"name={family}-half", *half]))
        tuned = f"evaluate.export={folder / 'runs' / f'{family}-whole' / 'llm_tune' / 'export'}"
        one.append(("evaluate", [recipe, f"name={family}-scored", tuned]))
        one.append(("evaluate", [recipe, f"name={family}-full", tuned, "llm.quantize=none"]))
    for ranks, plan in ((2, two), (1, one)):
        path = folder / f"plan{ranks}.json"
        path.write_text(json.dumps(plan))
        succeeded(launch("tests/dist/phases_program.py", [str(path)], ranks=ranks))
    return folder / "runs"


@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("family", FAMILIES)
def test_one_and_two_ranks_agree_in_every_loss(runs: Path, family: str, phase: str) -> None:
    two, one = (scalars(runs / f"{family}-{n}", phase, "train/loss") for n in ("whole", "alone"))
    assert two.keys() == one.keys() and len(one) >= 4
    # 8 bits round what goes into a product by its largest number, and so by who shares it.
    near = 1e-5 if FAMILIES[family] == "4bit" else 1e-3
    assert all(abs(two[step] - loss) <= near * abs(loss) for step, loss in one.items())


@pytest.mark.parametrize("family", FAMILIES)
def test_stopped_and_resumed_equals_uninterrupted(runs: Path, family: str) -> None:
    names = [f"{family}-{name}" for name in ("whole", "stopped")]
    whole, stopped = (ExportTensors(runs / name / "llm_tune" / "export") for name in names)
    assert whole.keys() == stopped.keys()
    assert all(torch.equal(whole[name], stopped[name]) for name in whole)


@pytest.mark.parametrize("family", FAMILIES)
def test_an_export_holds_what_trained_and_nothing_quantised(runs: Path, family: str) -> None:
    tuned = ExportTensors(runs / f"{family}-whole" / "llm_tune" / "export")
    assert tuned and not any(name.startswith("llm.") for name in tuned)
    assert all(each.dtype == torch.float32 for each in tuned.values())
    found = summary(runs / f"{family}-whole", "llm_tune")
    assert found["validation"]["end"]["loss"] < found["validation"]["start"]["loss"]


@pytest.mark.parametrize("family", FAMILIES)
def test_half_precision_learns_what_full_precision_does(runs: Path, family: str) -> None:
    full, half = (
        scalars(runs / f"{family}-{name}", "llm_tune", "train/loss") for name in ("whole", "half")
    )
    assert len(half) == 3
    assert all(abs(full[step] - loss) <= 0.03 * abs(loss) for step, loss in half.items())


@pytest.mark.parametrize("family", FAMILIES)
def test_it_is_scored_on_the_same_weights_and_near_the_full_ones(runs: Path, family: str) -> None:
    folders = [
        runs / f"{family}-{name}" / "evaluate" / "test" for name in ("whole", "scored", "full")
    ]
    two, one, _ = (read_results(folder / "results.json") for folder in folders)
    losses = [json.loads((each / "metrics.json").read_text())["loss"] for each in folders]
    assert two == one and len(one) == 10
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)
    assert losses[0] == pytest.approx(losses[2], rel=0.05) and losses[0] != losses[2]
