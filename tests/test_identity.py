"""Identities: equal where nothing that matters differs, and else able to say what does."""

import json
from pathlib import Path

import pytest

from pipeline.config import Config
from pipeline.explain.standing import ALONE
from pipeline.identity import Identity, differences, told
from pipeline.provenance import identity_of_phase
from pipeline.recipe import load_recipe
from tests.small import build


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("identity"))


def of(recipe: Path, *changes: str) -> Identity:
    config: Config = load_recipe([f"recipe={recipe}", *changes])
    return identity_of_phase(config, "llm_tune", ALONE, remember=False)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("llm_tune.lr=2e-3", "llm_tune.lr: 0.001 then, 0.002 now"),
        ("st.prefix_length=5", "st.prefix_length: 4 then, 5 now"),
        ("llm.dropout=0.5", "llm.dropout: null then, 0.5 now"),
        ("llm.lora.rank=2", "llm.lora.rank: 0 then, 2 now"),
        ("seed=3", "seed: 0 then, 3 now"),
        ("data.window=7", "data.window: 1024 then, 7 now"),
        ("data.max_pixels=9", "data.max_pixels: 89478485 then, 9 now"),
        ("data.max_image_bytes=9", "data.max_image_bytes: 67108864 then, 9 now"),
        ("encoder_adapt.lr=0.5", "encoder_adapt.lr: 0.001 then, 0.5 now"),  # of a predecessor
        ("family=llama_adapter", "family: clipcap then, llama_adapter now"),
    ],
)
def test_what_differs_is_said_once_by_its_key(recipe: Path, change: str, said: str) -> None:
    found = differences(of(recipe), of(recipe, change))
    assert said in found and len(found) == len(set(found))
    assert found == [said] or change.startswith("family")


@pytest.mark.parametrize(
    ("template", "change", "said"),
    [
        ("lavin", "instruct.template=tokenizer", "instruct.template: lavin then, tokenizer now"),
        ("lavin", "instruct.caption_question=What?", "then, What? now"),
        ("tokenizer", "evaluate.stop=x", "evaluate.stop: null then, x now"),
        ("lavin", "evaluate.stop=x", None),  # whose answers end with EOS
    ],
)
def test_how_conversations_are_put_is_learnt(
    recipe: Path, template: str, change: str, said: str | None
) -> None:
    talks = ("data.task=instruct", f"instruct.template={template}")
    found = differences(of(recipe, *talks), of(recipe, *talks, change))
    assert (said is None) == (not found) and (said or "") in "".join(found)


@pytest.mark.parametrize(
    "change",
    [
        "instruct.caption_question=What?",  # of a task that has no conversations
        "evaluate.stop=x",
        "name=other",
        "runs=elsewhere",
        "llm_tune.log_every=3",
        "llm_tune.checkpoint_every=3",
        "llm_tune.micro_batch=5",
        "llm_tune.ds_config=zero1",
        "llm_tune.activation_checkpointing=true",
        "data.workers=1",
        "deterministic=true",
        "evaluate.beams=1",
    ],
)
def test_harmless_differences_pass(recipe: Path, change: str) -> None:
    assert differences(of(recipe), of(recipe, change)) == []


def test_weights_in_few_bits_are_others(recipe: Path) -> None:
    whole = ("st_align.ds_config=zero2", "llm_tune.ds_config=zero2")  # which ZeRO-3 cannot be
    few = of(recipe, *whole, "llm.quantize=4bit")
    assert differences(of(recipe, *whole), few) == ["llm.quantize: none then, 4bit now"]


def test_other_bytes_in_data_weights_or_tokenizer_are_said_by_their_file(
    tmp_path: Path,
) -> None:
    recipe = build(tmp_path)
    before = of(recipe)
    tokenizer = tmp_path / "weights" / "llm" / "tokenizer.json"
    tokenizer.write_text(tokenizer.read_text() + " ")
    (change,) = differences(before, of(recipe))
    assert change.startswith("llm.path/tokenizer.json: content ") and " now" in change
    assert "llm.path/model.safetensors" in (before.values or {})
    (tmp_path / "other").mkdir()
    build(tmp_path / "other", prepare__scenes__counts={"train": 50, "val": 10, "test": 10})
    data = [f"data.shards={tmp_path / 'other' / 'data'}"]
    found = differences(of(recipe), of(recipe, *data))
    assert (
        len(found) == 1
        and found[0].startswith("data: manifest ")
        and "of 40 records then" in found[0]
    )
    assert "of 50 records now" in found[0]


def test_moved_files_are_the_same_files(recipe: Path, tmp_path: Path) -> None:
    moved = tmp_path / "llm"
    moved.mkdir()
    for each in (recipe.parent / "weights" / "llm").iterdir():
        (moved / each.name).write_bytes(each.read_bytes())
    assert of(recipe) == of(recipe, f"llm.path={moved}")


def test_a_model_of_the_hub_is_the_commit_that_is_in_the_cache(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    named, folder, found = "llm.path=someone/tiny", tmp_path / "models--someone--tiny", []
    for commit in ("a" * 40, "b" * 40):
        for file in (folder / "refs" / "main", folder / "snapshots" / commit / "config.json"):
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(commit)
        found.append(of(recipe, named))
    expected = f"llm.path/commit: {'a' * 40} then, {'b' * 40} now"
    assert differences(*found) == [expected]
    assert differences(found[1], of(recipe, named)) == []


def test_an_identity_is_read_back_as_it_was_written(recipe: Path) -> None:
    written = of(recipe)
    read = Identity.of_json(json.loads(json.dumps(written.as_json())))
    assert read.fingerprint == written.fingerprint and differences(read, written) == []
    assert read.before is not None and read.before.before is not None


def test_an_unknown_origin_is_told_by_its_fingerprint() -> None:
    known, foreign = Identity({"a": 1}), Identity.of_json({"fingerprint": "abc"})
    tuned = [Identity({"b": 2}, before) for before in (known, foreign, None)]
    assert differences(foreign, Identity.of_json({"fingerprint": "abc"})) == []
    assert "abc now" in told(differences(tuned[0], tuned[1]))
    assert "the base weights now" in told(differences(tuned[0], tuned[2]))


def test_long_lists_are_cut_with_their_number() -> None:
    many = [Identity({f"k{i}": side for i in range(9)}) for side in (1, 2)]
    line = told(differences(*many))
    assert line.endswith("; and 3 more") and "\n" not in line
