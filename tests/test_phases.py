"""Phases as data: segments, schedules, freezing, and what the baseline is."""

import math

import open_clip
import pytest
import torch
from torch import nn

from pipeline.config import (
    Config,
    EncoderAdaptConfig,
    LlamaAdapterConfig,
    LLMTuneConfig,
    LoRAConfig,
    PhaseConfig,
    SegmentConfig,
)
from pipeline.errors import ConfigError
from pipeline.models.lora import add_adapters, is_adapter
from pipeline.models.placement import Placement
from pipeline.phases import (
    Group,
    Segment,
    as_baseline,
    as_segment_sees,
    encoder_groups,
    learning_rate,
    part_groups,
    predecessor,
    segments,
    split_by_decay,
)
from tests.models import tiny


def test_segments_follow_one_another_without_a_gap() -> None:
    parts = [SegmentConfig(["st"], 1.0), SegmentConfig(["st", "llm"], 2.5)]
    found = segments(Config(llm_tune=LLMTuneConfig(segments=parts)), "llm_tune", 10)
    assert [(each.start, each.stop) for each in found] == [(0, 10), (10, 35)]
    assert found[1].train == ("st", "llm")


def test_max_steps_cuts_the_phase_and_its_segments() -> None:
    phase = LLMTuneConfig(segments=[SegmentConfig(epochs=1), SegmentConfig(epochs=1)], max_steps=12)
    assert [each.stop for each in segments(Config(llm_tune=phase), "llm_tune", 10)] == [10, 12]
    phase.max_steps = 10
    assert [each.stop for each in segments(Config(llm_tune=phase), "llm_tune", 10)] == [10]


def test_the_predecessor_is_the_nearest_enabled_phase() -> None:
    config = Config()
    assert predecessor(config, "encoder_adapt") is None
    assert predecessor(config, "llm_tune") == "st_align"
    config.st_align.enabled = False
    assert predecessor(config, "llm_tune") == "encoder_adapt"


@pytest.mark.parametrize("schedule", ["cosine", "linear", "constant"])
def test_schedules_warm_up_and_end_where_they_should(schedule: str) -> None:
    phase = PhaseConfig(lr=2.0, warmup_steps=4, schedule=schedule)
    segment = Segment(0, ("st",), 100, 120, 0.5)
    rates = [learning_rate(phase, segment, step) for step in range(20)]
    assert rates[:4] == [0.25, 0.5, 0.75, 1.0]
    assert max(rates) == 1.0
    if schedule == "constant":
        assert set(rates[4:]) == {1.0}
    else:
        assert rates[4:] == sorted(rates[4:], reverse=True) and 0 < rates[-1] < 0.1
    if schedule == "cosine":
        assert math.isclose(rates[12], 0.5)


@pytest.mark.parametrize("records", [1000, 1003])
def test_the_baseline_sees_as_many_records_with_the_measures_off(records: int) -> None:
    config = Config(name="run", baseline=True)
    config.encoder_adapt.epochs = 2
    config.st_align.epochs = 1
    config.llm_tune.segments = [SegmentConfig(epochs=1), SegmentConfig(epochs=2)]
    config.llm_tune.label_smoothing, config.llm_tune.st_lr = 0.1, 1.0
    config.llm_tune.encoder_lr = 1.0
    config.llm_tune.init_from = "the/EIM/run/export"
    base = as_baseline(config, records)
    assert not base.encoder_adapt.enabled and not base.st_align.enabled
    assert (base.llm_tune.label_smoothing, base.llm_tune.st_lr) == (0.0, None)
    assert base.llm_tune.encoder_lr is None
    assert base.llm_tune.init_from is None
    per_epoch = math.ceil(records / base.llm_tune.global_batch)
    (only,) = segments(base, "llm_tune", per_epoch)
    assert only.train == ("st", "llm")
    assert abs(only.steps - 6 * per_epoch) <= 1
    assert (base.name, base.baseline) == ("run-baseline", False)


def test_the_baseline_of_a_frozen_llm_leaves_it_frozen() -> None:
    config = Config(name="run", baseline=True)
    config.llm_tune.segments = [SegmentConfig(["st"], 1), SegmentConfig(["st"], 2)]
    base = as_baseline(config, 640)
    (only,) = segments(base, "llm_tune", 10)
    assert only.train == ("st",)
    assert only.steps == 50  # one epoch of each of the first two phases, three of this one


def test_the_baseline_counts_what_max_steps_leaves() -> None:
    config = Config(name="run", baseline=True)
    config.st_align.enabled = False
    config.encoder_adapt.max_steps, config.encoder_adapt.global_batch = 3, 10
    config.llm_tune.max_steps, config.llm_tune.global_batch = 5, 10
    base = as_baseline(config, 1000)
    (only,) = segments(base, "llm_tune", 100)
    assert only.steps == 8


def test_the_baseline_keeps_the_model_and_drops_the_averages() -> None:
    config = Config(name="run", baseline=True)
    config.llm.lora = LoRAConfig(rank=8)
    config.llm_tune.ema = 0.99
    base = as_baseline(config, 1000)
    assert base.llm.lora == config.llm.lora
    assert base.llm_tune.ema == 0.0


@pytest.fixture
def clip() -> nn.Module:
    model: nn.Module = open_clip.model.CLIP(
        embed_dim=8,
        vision_cfg={"image_size": 16, "patch_size": 8, "width": 16, "layers": 3, "head_width": 8},
        text_cfg={"context_length": 8, "vocab_size": 20, "width": 16, "heads": 2, "layers": 1},
    )
    return model


def test_last_n_blocks_train_and_earlier_ones_do_not(clip: nn.Module) -> None:
    groups = encoder_groups(clip, EncoderAdaptConfig(train="last:1"))
    trained = {n for n, p in clip.visual.named_parameters() if p.requires_grad}
    assert any("resblocks.2." in name for name in trained)
    assert not any("resblocks.1." in name or "conv1" in name for name in trained)
    assert sum(len(each.parameters) for each in groups if each.name != "text") == len(trained)
    with pytest.raises(ConfigError, match="the tower has 3 blocks"):
        encoder_groups(clip, EncoderAdaptConfig(train="last:9"))


def test_layer_decay_falls_towards_the_image(clip: nn.Module) -> None:
    groups = encoder_groups(clip, EncoderAdaptConfig(layer_decay=0.5))
    tower = [each.lr_scale for each in groups if each.name != "text"]
    assert tower == [0.5**4, 0.5**3, 0.5**2, 0.5, 1.0]
    everything = sum(p.numel() for g in groups for p in g.parameters)
    assert everything == sum(p.numel() for p in clip.parameters())


def test_frozen_means_frozen_and_rates_are_the_parts_own() -> None:
    parts = {"encoder": nn.Linear(2, 2), "st": nn.Linear(2, 2), "llm": nn.Linear(2, 2)}
    phase = LLMTuneConfig(lr=1e-5, st_lr=1e-3)
    groups = part_groups(parts, Segment(0, ("st", "llm"), 0, 1, 1.0), phase)
    assert {each.name: round(each.lr_scale) for each in groups} == {"st": 100, "llm": 1}
    assert not any(p.requires_grad for p in parts["encoder"].parameters())
    part_groups(parts, Segment(0, ("st",), 0, 1, 1.0), phase)
    assert not any(p.requires_grad for p in parts["llm"].parameters())
    assert torch.all(torch.tensor([p.requires_grad for p in parts["st"].parameters()]))


@pytest.mark.parametrize("own", [None, 4e-5])
def test_adapters_in_the_tower_have_a_rate_of_their_own(own: float | None) -> None:
    parts = {part: nn.Linear(2, 2) for part in ("encoder_adapters", "st", "adapters")}
    phase = LLMTuneConfig(lr=1e-5, st_lr=1e-3, encoder_lr=own)
    groups = part_groups(parts, Segment(0, tuple(parts), 0, 1, 1.0), phase)
    scales = {each.name: each.lr_scale for each in groups}
    expected = {"encoder_adapters": 1.0 if own is None else 4.0, "st": 100.0, "adapters": 1.0}
    assert scales == pytest.approx(expected)


def test_of_a_part_with_adapters_only_these_train() -> None:
    llm = tiny.gpt2()
    add_adapters(llm, LoRAConfig(rank=2), placement=Placement(), seed=0)
    parts = {"st": nn.Linear(2, 2), "llm": llm}
    groups = part_groups(parts, Segment(0, ("st", "llm"), 0, 1, 1.0), LLMTuneConfig())
    trained = {name for name, each in llm.named_parameters() if each.requires_grad}
    assert trained and all(map(is_adapter, trained))
    assert [len(each.parameters) for each in groups] == [2, len(trained)]
    part_groups(parts, Segment(0, ("st",), 0, 1, 1.0), LLMTuneConfig())
    assert not any(each.requires_grad for each in llm.parameters())


def test_a_locked_text_tower_leaves_the_temperature(clip: nn.Module) -> None:
    groups = encoder_groups(clip, EncoderAdaptConfig(text="locked", layer_decay=0.5))
    assert groups[-1].name == "temperature"
    assert groups[-1].parameters == [clip.logit_scale]
    tower = {f"visual.{name}" for name, _ in clip.visual.named_parameters()}
    trained = {name for name, each in clip.named_parameters() if each.requires_grad}
    assert trained == tower | {"logit_scale"}


def test_matrices_decay_and_vectors_do_not(clip: nn.Module) -> None:
    groups = encoder_groups(clip, EncoderAdaptConfig(layer_decay=0.5))
    split = split_by_decay(groups)
    assert [each.name for each in groups] == list(dict.fromkeys(each.name for each in split))
    decays = {id(each): group.decays for group in split for each in group.parameters}
    assert (
        sum(len(each.parameters) for each in split) == len(decays) == len(list(clip.parameters()))
    )
    for name, each in clip.named_parameters():
        exempt = "ln_" in name or name.endswith(("bias", "class_embedding", "logit_scale"))
        assert decays[id(each)] != exempt, name
    rates = {each.name: each.lr_scale for each in groups}
    assert all(each.lr_scale == rates[each.name] and each.parameters for each in split)


def test_the_full_shape_decides_where_a_partition_is_flat() -> None:
    matrix, vector = nn.Parameter(torch.zeros(0)), nn.Parameter(torch.zeros(0))
    matrix.ds_shape, vector.ds_shape = torch.Size([4, 4]), torch.Size([4])
    split = split_by_decay([Group("st", [matrix, vector], 1.0)])
    assert [(each.decays, each.parameters[0] is matrix) for each in split] == [
        (True, True),
        (False, False),
    ]


def test_a_part_that_is_not_there_and_one_within_another_are_refused() -> None:
    whole = nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2))
    parts = {"st": nn.Linear(2, 2), "llm": whole, "norms": nn.ModuleList([whole[1]])}
    with pytest.raises(ConfigError, match=r"segments\[1\].*no early; name some of st, llm, norms"):
        part_groups(parts, Segment(1, ("st", "early"), 0, 1, 1.0), LLMTuneConfig())
    with pytest.raises(ConfigError, match="of llm, norms one is a part of another"):
        part_groups(parts, Segment(0, ("llm", "norms"), 0, 1, 1.0), LLMTuneConfig())
    part_groups(parts, Segment(0, ("norms",), 0, 1, 1.0), LLMTuneConfig())
    assert [each.requires_grad for each in whole.parameters()] == [False, False, True, True]


@pytest.mark.parametrize(
    ("family", "aligned", "tuned"),
    [
        ("clipcap", ("st",), ("st", "llm")),
        ("lavin", ("st",), ("encoder_adapters", "st", "adapters")),
        ("llama_adapter", ("st", "gates"), ("st", "prompts")),
    ],
)
def test_what_trains_by_default_is_the_family_s(
    family: str, aligned: tuple[str, ...], tuned: tuple[str, ...]
) -> None:
    config = Config(family=family)
    assert segments(config, "st_align", 5)[0].train == aligned
    assert segments(config, "llm_tune", 5)[0].train == tuned
    config.llm_tune.segments = [SegmentConfig(["st"]), SegmentConfig()]
    assert [each.train for each in segments(config, "llm_tune", 5)] == [("st",), tuned]
    (base,) = segments(as_baseline(config, 64), "llm_tune", 5)
    assert sorted(base.train) == sorted(tuned)


def test_disjoint_parts_train_in_their_own_phase_and_in_the_baseline_together() -> None:
    chosen = LlamaAdapterConfig(early_layers=1, bias_scale=True, disjoint=True)
    config = Config(family="llama_adapter", llama_adapter=chosen)
    captions, instructions = ("st", "early"), ("prompts", "affine", "norms")
    assert segments(config, "st_align", 5)[0].train == captions
    assert segments(config, "llm_tune", 5)[0].train == instructions
    base = as_baseline(config, 64)
    assert segments(base, "llm_tune", 5)[0].train == (*captions, *instructions)
    assert not base.llama_adapter.disjoint  # or its check would refuse that


def test_features_are_cached_where_the_encoder_is_frozen() -> None:
    config = Config(family="lavin")
    joint, late = (Segment(0, parts, 0, 1, 1.0) for parts in (("encoder_adapters",), ("st",)))
    assert not as_segment_sees(config, joint).data.cache_features
    assert as_segment_sees(config, late).data.cache_features


def test_adapters_in_the_tower_train_instead_of_it(clip: nn.Module) -> None:
    clip.adapters = nn.Linear(4, 4)
    groups = encoder_groups(clip, EncoderAdaptConfig(train="adapters", text="locked"))
    assert [each.name for each in groups] == ["encoder_adapters", "temperature"]
    trained = {name for name, each in clip.named_parameters() if each.requires_grad}
    assert trained == {"adapters.weight", "adapters.bias", "logit_scale"}
    groups = encoder_groups(clip, EncoderAdaptConfig())
    trained = {name for name, each in clip.named_parameters() if each.requires_grad}
    assert not any(name.startswith("adapters.") for name in trained)
    assert sum(len(each.parameters) for each in groups) == len(trained)
