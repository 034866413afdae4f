"""Recipes: precedence, and every mistake answered by one line with a remedy."""

import json
from pathlib import Path

import pytest

from pipeline.config import PrepareConfig
from pipeline.errors import ConfigError
from pipeline.overrides import without_plan
from pipeline.recipe import RECIPES, load_recipe, load_section
from tests.tiny import write_recipe


@pytest.fixture
def tiny(tmp_path: Path) -> str:
    return f"recipe={write_recipe(tmp_path)}"


def refused(*arguments: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load_recipe(arguments)
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_recipe_loads(path: Path) -> None:
    config = load_recipe([f"recipe={path.stem}"])
    assert config.name == path.stem


def test_without_arguments_the_quickstart_is_taken() -> None:
    assert load_recipe([]).name == "quickstart"


def test_command_line_wins_over_recipe_and_recipe_over_defaults(tiny: str) -> None:
    config = load_recipe([tiny, "st_align.lr=0.5", "st.prefix_length=7"])
    assert config.st_align.lr == 0.5
    assert config.st.prefix_length == 7
    assert config.st.hidden == 24  # the recipe's
    assert config.data.window == 1024  # the default


def test_the_launchers_own_argument_is_ignored(tiny: str) -> None:
    assert load_recipe(["--local_rank=1", tiny]).name == "tiny"


def test_segments_and_interpolations_become_objects() -> None:
    config = load_recipe(["recipe=quickstart"])
    assert [each.train for each in config.llm_tune.segments] == [["st"], ["st", "llm"]]
    assert config.llm.path == "weights/quickstart/llm"


@pytest.mark.parametrize(
    ("argument", "expected"),
    [
        ("st_align.lrr=1", "unknown key 'st_align.lrr' (command line); did you mean 'lr'?"),
        ("encodr.arch=x", "did you mean 'encoder'?"),
        ("prepare.scenes.styl=x", "unknown key 'prepare.scenes.styl'"),
        ("st_align.lr=fast", "st_align.lr"),
        ("st_align.global_batch=-1", "st_align.global_batch=-1 must be above zero"),
        ("st.kind=mpl", "st.kind='mpl' is unknown; did you mean 'mlp'?"),
        ("precision=bf61", "did you mean 'bf16'?"),
        ("encoder_adapt.train=last", "use 'all', 'last:N' or 'adapters'"),
        ("encoder_adapt.text=frozen", "encoder_adapt.text='frozen' is unknown"),
        ("encoder_adapt.loss=sigclip", "did you mean 'siglip'?"),
        ("encoder_adapt.merge_alpha=1.5", "encoder_adapt.merge_alpha=1.5 must be in [0, 1]"),
        ("encoder_adapt.merge_alpha=-1", "must not be negative"),
        ("llm_tune.ema=1", "llm_tune.ema=1.0 must be in [0, 1)"),
        ("llm.lora.rank=-1", "llm.lora.rank=-1 must not be negative"),
        ("llm.lora.dropout=1", "llm.lora.dropout=1.0 must be in [0, 1)"),
        ("llm.lora.targets=c_attn", "llm.lora.targets must be a list"),
        ("llm.lora.targts=[c_attn]", "unknown key 'llm.lora.targts' (command line); did you mean"),
        ("llm_tune.label_smoothing=1.5", "must be in [0, 1)"),
        ("llm_tune.segments=[{train:[stt]}]", "put a space after each"),
        ("llm_tune.segments=[{train: [stt]}]", "name at least one of st, llm"),
        ("st_align.ds_config=zero4", "one of zero1, zero2, zero3, zero3_offload"),
        ("st_align.betas=[0.9]", "two numbers"),
        ("seed=-1", "seed=-1 must not be negative"),
        ("encoder_adapt.layer_decay=-1", "must be above zero"),
        ("st_align.align_weight=-0.1", "must not be negative"),
        ("st_align.epochs=inf", "must be a finite number"),
        ("llm_tune.segments=[{train: [st], epochs: -1}]", "llm_tune.segments[0].epochs=-1"),
        ("llm_tune.segments=[{train: [st, st]}]", "each once"),
        ("llm_tune.segments={train: [st]}", "llm_tune.segments must be a list"),
        ("llm_tune.segments=[{trian: [st]}]", "'llm_tune.segments[0].trian' (command line); did"),
        ("encoder_adapt.train=adapters", "only the tower of family=lavin has adapters"),
        ("llm_tune.encoder_lr=1e-4", "family=clipcap trains nothing of the tower in llm_tune"),
        ("llm_tune.segments=[{train: [adapters]}]", "name at least one of st, llm, each once"),
        ("data.task=question", "data.task='question' is unknown"),
        ("pretrain.clip.train=bogus", "pretrain.clip.train='bogus' is unknown"),
        ("name=../x", "one folder name"),
        ("st_align.stop_after=0", "leave it null for no limit"),
        ("recipe=quikstart", "did you mean 'quickstart'?"),
        ("recipe=/nowhere/x.yaml", "no such file"),
        ("lr", "not of the form key=value"),
        ("data=5", "data"),
    ],
)
def test_mistakes_are_answered_with_the_remedy(tiny: str, argument: str, expected: str) -> None:
    arguments = [argument] if argument.startswith("recipe=") else [tiny, argument]
    assert expected in refused(*arguments)


def test_unknown_key_in_the_file_is_named_with_the_file(tmp_path: Path) -> None:
    path = write_recipe(tmp_path)
    path.write_text(path.read_text() + "\nst_algin:\n  lr: 1\n")
    assert "did you mean 'st_align'?" in refused(f"recipe={path}")


def test_broken_yaml_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "broken.yaml"
    path.write_text("a: [1\nb: {")
    assert "broken.yaml" in refused(f"recipe={path}")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("zero_optimisation", {"stage": 3}),
        ("zero_optimization", True),
        ("zero_optimization", {"stage": 5}),
    ],
)
def test_a_ds_config_that_deepspeed_would_misread(
    tmp_path: Path, tiny: str, key: str, value: object
) -> None:
    path = tmp_path / "ds.json"
    path.write_text(json.dumps({key: value}))
    assert "zero_optimization" in refused(tiny, f"st_align.ds_config={path}")


@pytest.mark.parametrize(
    ("key", "value"),
    [("gradient_clipping", 7.0), ("bf16", {"enabled": True}), ("train_batch_size", 3)],
)
def test_a_value_that_recipe_and_ds_config_both_decide(
    tmp_path: Path, tiny: str, key: str, value: object
) -> None:
    path = tmp_path / "ds.json"
    path.write_text(json.dumps({key: value, "zero_optimization": {"stage": 1}}))
    message = refused(tiny, f"st_align.ds_config={path}")
    assert f"sets {key}=" in message and "remove it there" in message


def test_the_same_value_in_both_places_is_no_contradiction(tmp_path: Path, tiny: str) -> None:
    path = tmp_path / "ds.json"
    path.write_text(json.dumps({"gradient_clipping": 0.5}))
    arguments = [tiny, f"st_align.ds_config={path}", "st_align.clip_norm=0.5"]
    assert load_recipe(arguments).st_align.clip_norm == 0.5


def test_a_section_loads_straight_from_arguments() -> None:
    section = load_section(PrepareConfig, ["source=coco", "annotations=[a.json,b.json]"])
    assert section.annotations == ["a.json", "b.json"]
    with pytest.raises(ConfigError, match="did you mean 'images'"):
        load_section(PrepareConfig, ["source=coco", "image=x"])


def test_a_plan_that_is_misspelt_does_not_do_the_work(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"plan=yes: is neither true nor false"):
        without_plan(["source=scenes", f"out={tmp_path}", "plan=yes"])
    assert without_plan(["a=b", "plan=True"]) == (True, ["a=b"])
    assert without_plan(["a=b", "plan=false"]) == (False, ["a=b"])


def test_a_task_brings_its_own_defaults(tiny: str) -> None:
    bare = [tiny.replace("tiny.yaml", "bare.yaml")]
    Path(bare[0].removeprefix("recipe=")).write_text("family: lavin\n", encoding="utf-8")
    assert load_recipe(bare).data.max_tokens == 64
    assert load_recipe([*bare, "data.task=scienceqa"]).data.max_tokens == 640
    assert load_recipe([*bare, "data.task=scienceqa", "data.max_tokens=512"]).data.max_tokens == 512


def test_questions_are_answered_greedily_and_with_room_for_what_comes_before_the_answer(
    tmp_path: Path,
) -> None:
    (tmp_path / "bare.yaml").write_text("seed: 0\n")

    def generation(*arguments: str) -> tuple[int, int]:
        chosen = load_recipe([f"recipe={tmp_path / 'bare.yaml'}", *arguments]).evaluate
        return chosen.beams, chosen.max_new_tokens

    assert generation("data.task=captions") == (5, 40)
    assert generation("data.task=scienceqa") == (1, 64)
    explained = ("data.task=scienceqa", "scienceqa.format=QCM-LEA")
    assert generation(*explained) == (1, 512)
    assert generation(*explained, "evaluate.max_new_tokens=100", "evaluate.beams=3") == (3, 100)


@pytest.mark.parametrize(
    ("words", "split"),
    [
        ([], "val"),
        (["task=mme", "shards=mme"], "test"),
        (["task=mme", "shards=mme", "split=val"], "val"),
    ],
)
def test_another_task_is_scored_on_its_own_split(words: list[str], split: str) -> None:
    """The recipe's split is one of its own shards; MME has test alone."""
    config = load_recipe(["recipe=lavin_chat_13b", "llm.path=/w", *words], "evaluate")
    assert config.evaluate.split == split
