"""What TensorBoard finds in a run's event files: phases apart, one layout, hparams with results."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from google.protobuf.message import Message
from PIL import Image
from tensorboard.backend.event_processing.data_provider import MultiplexerDataProvider
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer
from tensorboard.plugins.base_plugin import TBContext
from tensorboard.plugins.custom_scalar.layout_pb2 import Layout
from tensorboard.plugins.hparams.hparams_plugin import HParamsPlugin
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData
from werkzeug.test import Client

from pipeline.callbacks.board import Board, show_results
from pipeline.config import PHASES
from pipeline.dist import World

WORLD = World(0, 1, 0, 1, torch.device("cpu"))


def opened(folder: Path) -> EventAccumulator:
    board = EventAccumulator(str(folder))
    board.Reload()
    return board


def parsed(kind: type[Message], data: bytes) -> Message:
    message = kind()
    message.ParseFromString(data)
    return message


def layout_in(board: EventAccumulator) -> Layout:
    (event,) = board.Tensors("custom_scalars__config__")[-1:]
    return parsed(Layout, event.tensor_proto.string_val[0])


def test_the_layout_groups_the_phases_in_their_order_and_charts_only_their_own_curves(
    tmp_path: Path,
) -> None:
    tags = set()
    for phase in PHASES:
        board = Board(tmp_path / phase, WORLD, prefix=phase, done=0)
        names = ("train/loss", "val/loss", "val/cider", "lr/st", "train/grad_norm")
        board.scalars(dict.fromkeys(names, 1.0), 1)
        board.close()
        tags |= set(opened(tmp_path / phase).Tags()["scalars"])
    layout = layout_in(opened(tmp_path / PHASES[0]))
    assert [each.title for each in layout.category] == [*PHASES, "results"]
    for category in layout.category[:-1]:
        charts = {chart.title: list(chart.multiline.tag) for chart in category.chart}
        found = {
            title: {tag for tag in tags if any(re.search(each, tag) for each in patterns)}
            for title, patterns in charts.items()
        }
        phase = category.title
        assert found["loss"] == {f"{phase}/train/loss", f"{phase}/val/loss"}
        assert found["validation scores"] == {f"{phase}/val/cider"}
        assert found["learning rates"] == {f"{phase}/lr/st"}


def test_a_run_has_its_recipe_as_hparams_beside_the_results_of_phases_and_evaluations(
    tmp_path: Path,
) -> None:
    recipe = {"llm_tune.lr": 1e-3, "family": "lavin"}
    show_results(tmp_path, "llm_tune", recipe, {"loss": 2.0})
    show_results(tmp_path, "test", recipe, {"CIDEr": 0.5}, Image.new("RGB", (9, 9), "red"))
    board = opened(tmp_path / "tensorboard")
    assert {tag: board.Scalars(tag)[-1].value for tag in board.Tags()["scalars"]} == {
        "final/llm_tune/loss": 2.0,
        "final/test/CIDEr": 0.5,
    }
    assert board.Tags()["images"] == ["final/test/samples"]
    told = {
        tag: parsed(HParamsPluginData, data)
        for tag, data in board.PluginTagToContent("hparams").items()
    }
    # A list of columns would hide what other calls and runs have.
    assert "_hparams_/experiment" not in told
    values = told["_hparams_/session_start_info"].session_start_info.hparams
    assert values["llm_tune.lr"].number_value == 1e-3
    assert values["family"].string_value == "lavin"
    assert layout_in(board).category[-1].chart[0].title == "final metrics"


def hparams_of(runs: Path) -> tuple[dict[str, Any], dict[str, float]]:
    """Values and metrics of the only row on TensorBoard's page of hparams, as it asks for them."""
    events = EventMultiplexer()
    events.AddRunsFromDirectory(str(runs))
    events.Reload()
    context = TBContext(data_provider=MultiplexerDataProvider(events, str(runs)), logdir=str(runs))
    apps = HParamsPlugin(context).get_plugin_apps()

    def asked(path: str, **request: Any) -> Any:
        return Client(apps[path]).post("/", json=request).get_json()

    experiment = asked("/experiment")
    columns = [{"hparam": each["name"]} for each in experiment["hparamInfos"]]
    columns += [{"metric": each["name"]} for each in experiment["metricInfos"]]
    statuses = ["STATUS_UNKNOWN", "STATUS_SUCCESS", "STATUS_FAILURE", "STATUS_RUNNING"]
    rows = asked(
        "/session_groups",
        colParams=columns,
        allowedStatuses=statuses,
        startIndex=0,
        sliceSize=9,
    )
    (row,) = rows["sessionGroups"]
    return row["hparams"], {each["name"]["tag"]: each["value"] for each in row["metricValues"]}


def test_hparams_show_the_recipe_of_what_came_last_beside_all_results(tmp_path: Path) -> None:
    """TensorBoard keeps the first recipe that it reads of a run."""
    run = tmp_path / "quick"
    picture = Image.new("RGB", (9, 9), "red")
    show_results(run, "encoder_adapt", {"llm_tune.lr": 1e-3}, {"loss": 3.0}, picture)
    show_results(run, "llm_tune", {"llm_tune.lr": 2e-3}, {"loss": 2.0})
    later = {"llm_tune.lr": 5e-3, "evaluate.beams": 5}
    show_results(run, "llm_tune", later, {"loss": 1.0})
    metrics = {"final/encoder_adapt/loss": 3.0, "final/llm_tune/loss": 1.0}
    assert hparams_of(tmp_path) == (later, metrics)
    assert opened(run / "tensorboard").Tags()["images"] == ["final/encoder_adapt/samples"]
    assert len([*(run / "tensorboard").iterdir()]) == 1


def test_results_are_not_lost_when_they_cannot_be_written_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    show_results(tmp_path, "st_align", {"family": "clipcap"}, {"loss": 3.0})
    monkeypatch.setattr("pipeline.callbacks.board.RecordWriter.write", full)
    with pytest.raises(OSError, match="No space"):
        show_results(tmp_path, "llm_tune", {"family": "lavin"}, {"loss": 2.0})
    assert opened(tmp_path / "tensorboard").Tags()["scalars"] == ["final/st_align/loss"]
