"""Questions answered by the likelihood of their options: as one by one, whatever the batch."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from pipeline.answering import compared
from pipeline.assemble import CaptionModel, build_caption_model
from pipeline.config import Config
from pipeline.data.collate import LanguageCollator, Sample
from pipeline.data.prepare import prepare
from pipeline.data.prompts import IGNORE, Row, row_of
from pipeline.data.scienceqa_prompts import Problem
from pipeline.dist import World
from pipeline.errors import ConfigError
from pipeline.evaluation.finishing import output_folder
from pipeline.evaluation.questions import answer_questions
from pipeline.evaluation.scienceqa import UNPARSED, read_results
from pipeline.export_files import ExportTensors, save_export
from pipeline.models.counting import counting
from pipeline.models.multimodal import MultimodalOutput
from pipeline.models.placement import Placement
from pipeline.models.scratch import create_clip, create_llm, train_tokenizer
from pipeline.progress import Progress
from pipeline.recipe import load_recipe
from pipeline.splits import open_split
from pipeline.tasks import all_texts, question_rows
from tests.tiny import write_questions

ALONE = World(0, 1, 0, 1, torch.device("cpu"))


@pytest.fixture(scope="module", params=["lavin", "llama_adapter", "split letters"])
def config(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Config:
    """A recipe of either family with random weights, and an export of other random weights.

    The tokenizer has a token for each letter, or, in the last one, splits some of them.
    """
    folder = tmp_path_factory.mktemp("questions")
    family = "lavin" if request.param == "split letters" else request.param
    letters = [] if request.param == "split letters" else [" A B C"] * 500
    made = load_recipe([f"recipe={write_questions(folder, family)}"])
    for entry in made.prepare.values():
        prepare(entry, report=lambda line: None)
    split, scratch, out = open_split(made, "train"), made.pretrain.scratch, Path(made.pretrain.out)
    raws = [
        split.reader.read(s, r) for s, n in enumerate(split.manifests[0].sizes) for r in range(n)
    ]
    texts = [text for raw in raws for text in all_texts(made, raw)]
    tokenizer = train_tokenizer([*texts, *letters], 300)
    assert (len(tokenizer.encode(" A")) == len(tokenizer.encode(" C")) == 1) == bool(letters)
    create_clip(out / "clip", scratch, tokenizer, seed=0)
    create_llm(out / "llm", scratch, tokenizer, seed=0)
    model = build(made, {}).model
    torch.manual_seed(0)
    tensors = {
        name: 0.3 * torch.randn(each.shape)
        for name, each in model.named_parameters()
        if not name.startswith("encoder.visual.") and each.dim() > 1
    }
    details = {"fingerprint": "x", "phase": "llm_tune", "lora": None}
    save_export(folder / "export", tensors, Progress(), details, made)
    made.evaluate.export = str(folder / "export")
    return made


def build(config: Config, tensors) -> CaptionModel:
    plain = replace(config, data=replace(config.data, cache_features=False))
    build_ = {"dtype": torch.float32, "placement": Placement(), "world": ALONE}
    built = build_caption_model(plain, tensors, {}, **build_)
    built.model.eval()
    return built


def whole(config: Config) -> CaptionModel:
    return build(config, ExportTensors(Path(config.evaluate.export or "")))


def questions(config: Config, built: CaptionModel, name: str):
    """Each record of a split with its image as a batch of one, or None."""
    split = open_split(config, name)
    for shard, size in enumerate(split.manifests[0].sizes):
        for record in range(size):
            raw = split.reader.read(shard, record)
            seen = raw.image is not None
            image = built.decoded.source(split.reader, raw, shard, record)[None] if seen else None
            yield raw, image


@torch.no_grad()
def logits_behind(model, prompt: list[int], target: list[int], image):
    """(logits, labels) of the targets behind a prompt, in a forward pass of its own."""
    ids = torch.tensor([[*prompt, *target]])
    labels = torch.full_like(ids, IGNORE)
    labels[0, -len(target) :] = torch.tensor(target)
    out = model(
        images=image,
        image_rows=torch.tensor([-1 if image is None else 0]),
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        labels=labels,
        weights=torch.ones(ids.shape),
    )
    return out.logits, out.labels


def one_by_one(config: Config) -> dict[str, int]:
    """pid -> the likeliest option, each option in a forward pass of its own."""
    built = whole(config)
    rows, answers = question_rows(config, built.tokenizer), {}
    for raw, image in questions(config, built, "test"):
        scored = rows.options(Problem.of(raw.data), image=image is not None)
        likelihoods = []
        for option in scored.options:
            logits, labels = logits_behind(built.model, scored.row.ids, list(option), image)
            likelihoods.append(float(logits.log_softmax(-1).gather(1, labels[:, None]).sum()))
        answers[str(raw.data["pid"])] = likelihoods.index(max(likelihoods))
    return answers


def generated_one_by_one(config: Config) -> tuple[dict[str, str], int]:
    """pid -> text, greedily and without a cache, and the positions that took."""
    built = whole(config)
    rows, texts = question_rows(config, built.tokenizer), {}
    most, eos = config.evaluate.max_new_tokens, built.tokenizer.eos_token_id
    with counting(built.model.llm) as counter:
        for raw, image in questions(config, built, "test"):
            said: list[int] = []
            prompt = rows.prompt(Problem.of(raw.data), image=image is not None).ids
            while len(said) < most and eos not in said:
                logits, _ = logits_behind(built.model, [*prompt, *said], [0], image)
                said.append(int(logits.argmax()))
            texts[str(raw.data["pid"])] = built.tokenizer.decode(said, skip_special_tokens=True)
        return texts, counter.take()[1]


@pytest.mark.parametrize(("batch", "cached"), [(1, True), (4, False), (16, True)])
def test_answers_are_those_of_one_by_one_and_are_scored(
    config: Config, batch: int, cached: bool
) -> None:
    evaluated = replace(
        config,
        evaluate=replace(config.evaluate, batch=batch),
        data=replace(config.data, cache_features=cached),
    )
    result = answer_questions(evaluated, ALONE)
    expected = one_by_one(config)
    assert read_results(output_folder(config) / "results.json") == expected
    assert len(expected) == 10
    problems = json.loads(Path(config.prepare["questions"].problems[0]).read_text())
    right = sum(problems[pid]["answer"] == index for pid, index in expected.items())
    assert result["scores"]["Avg"] == pytest.approx(10.0 * right)
    assert result["records"] == 10 and result["llm_passes"] == 1
    whole_letters = len(whole(config).tokenizer.encode(" C")) == 1
    counted = result["counted"]
    opening = config.family == "lavin"  # its modality token goes through too
    once = counted["prompts"] + 10 * (1 + opening)
    assert (counted["positions"] == once) == whole_letters  # else a row for each option
    assert "Avg" in result["table"] and result["answers"].startswith("the likeliest option; QCM-")


@pytest.mark.parametrize("form", ["QCM-ALE", "QCM-LEA"])
def test_generated_answers_are_those_of_one_by_one_without_a_cache(
    config: Config, form: str
) -> None:
    """Random weights say nothing that can be read: every answer counts as wrong, none is lost."""
    evaluated = replace(
        config,
        evaluate=replace(config.evaluate, answers="generate", beams=1, batch=4),
        scienceqa=replace(config.scienceqa, format=form),
    )
    result = answer_questions(evaluated, ALONE)
    texts, positions = generated_one_by_one(evaluated)
    written = json.loads((output_folder(config) / "results.json").read_text())
    assert written["outputs"] == texts and len(texts) == 10
    assert set(written["results"].values()) == {UNPARSED} and written["acc"] == 0
    assert result["benchmark"]["unparsed"] == 10 and result["benchmark"]["unanswered"] == 0
    assert "10 answers that are no choice, counted as wrong" in result["table"]
    assert result["unparsed_cut"] == result["texts_cut"] > 0
    assert f"{result['texts_cut']} of them were cut at " in result["table"]
    assert result["token_forwards"] < positions  # that is what the cache is for
    assert result["llm_passes"] > 1


def test_a_format_that_explains_first_is_refused_where_options_are_compared(
    config: Config,
) -> None:
    other = replace(config, scienceqa=replace(config.scienceqa, format="QCM-LEA"))
    message = r"scienceqa\.format=QCM-LEA explains .* set evaluate\.answers=generate"
    with pytest.raises(ConfigError, match=message):
        answer_questions(other, ALONE)


def test_options_in_one_place_and_in_rows_of_their_own_are_told_apart() -> None:
    """Three records: letters 5, 6, 7 in one place; rows of one and two tokens; 5, 6 again."""
    together = Row([1, 2, 5], [IGNORE, IGNORE, 5], options=(5, 6, 7))
    alone = (row_of([1, 2], [5]), row_of([1, 2], [8, 9]))
    pair = Row([1, 5], [IGNORE, 5], options=(5, 6))
    rows = [(together,), alone, (pair,)]
    samples = [Sample(str(i), i, (), None, each) for i, each in enumerate(rows)]
    batch = LanguageCollator((), pad_id=0, dummy=pair)(samples)
    assert batch.owner.tolist() == [0, 1, 1, 2]
    logits = torch.zeros(5, 10)  # a line for each target: 5 | 5 | 8, 9 | 5
    logits[0, 7] = logits[2, 8] = logits[3, 9] = 4.0  # both tokens of the split option are likely
    logits[1, 5] = 5.0
    labels = torch.tensor([5, 5, 8, 9, 5])
    nothing = torch.zeros(4, 1)
    out = MultimodalOutput(logits, labels, torch.ones(5), nothing, nothing, torch.ones(4))
    found = {owner: (index, tied) for owner, index, tied in compared(out, batch)}
    assert found == {0: (2, False), 1: (0, False), 2: (0, True)}
    logits[1, 5] = 1.0
    found = {owner: index for owner, index, _ in compared(out, batch)}
    assert found == {0: 2, 1: 1, 2: 0}
