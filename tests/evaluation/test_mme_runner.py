"""MME answered by a model that learnt another task: as one by one, in the benchmark's files."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from pipeline.config import Config
from pipeline.data.conversation_rows import OPTIONS, MMERows, questions_of
from pipeline.data.prepare import prepare
from pipeline.data.prompts import IGNORE
from pipeline.errors import DataError
from pipeline.evaluation.finishing import output_folder
from pipeline.evaluation.mme import Answer, score
from pipeline.evaluation.mme_files import read_results
from pipeline.evaluation.mme_runner import answer_mme
from pipeline.evaluation.samples import read_samples, strata
from pipeline.export_files import save_export
from pipeline.models.scratch import create_clip, create_llm, train_tokenizer
from pipeline.preflight import problems
from pipeline.presence import Presence
from pipeline.progress import Progress
from pipeline.recipe import load_recipe
from pipeline.splits import open_split
from pipeline.stopping import Stopped
from pipeline.tasks import prompt_rows, scored, scoring_rows
from tests.data.samples import jpeg
from tests.evaluation.test_questions import ALONE, build, logits_behind, questions, whole
from tests.tiny import write_questions

SUBTASKS = {"existence": 4, "OCR": 3}  # images of each


def put_mme(folder: Path) -> None:
    for subtask, images in SUBTASKS.items():
        (folder / subtask).mkdir(parents=True)
        for number in range(images):
            colour = (60 * number, 200 - 50 * number, 90 * (subtask == "OCR"))
            (folder / subtask / f"{number}.jpg").write_bytes(jpeg(colour))
            lines = f"Is there a {number}?\tYes\nIs there no {number} at all?\tNo\n"
            (folder / subtask / f"{number}.txt").write_text(lines)


@pytest.fixture(scope="module", params=["lavin", "llama_adapter", "split words"])
def config(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Config:
    """A recipe of questions with random weights, and an export of others; MME is prepared.

    The tokenizer has a token for Yes and for No or, in the last one, splits them.
    """
    folder = tmp_path_factory.mktemp("mme")
    family = "lavin" if request.param == "split words" else request.param
    put_mme(folder / "mme")
    made = load_recipe(
        [
            f"recipe={write_questions(folder, family)}",
            "evaluate.task=mme",
            "evaluate.max_new_tokens=4",
            "evaluate.beams=1",
            f"prepare.mme={{source: mme, images: {folder}/mme, out: {folder}/asked, workers: 0}}",
        ]
    )
    for entry in made.prepare.values():
        prepare(entry, report=lambda line: None)
    words = [] if request.param == "split words" else [" Yes No"] * 500
    tokenizer = train_tokenizer(["Instruction: Is there?\nResponse:", *words], 300)
    assert (len(tokenizer.encode(" Yes")) == len(tokenizer.encode(" No")) == 1) == bool(words)
    return with_random_export(made, folder, tokenizer)


def with_random_export(made: Config, folder: Path, tokenizer: PreTrainedTokenizerFast) -> Config:
    """Random weights where the recipe looks for them, and others in an export to be scored."""
    out = Path(made.pretrain.out)
    create_clip(out / "clip", made.pretrain.scratch, tokenizer, seed=0)
    create_llm(out / "llm", made.pretrain.scratch, tokenizer, seed=0)
    torch.manual_seed(0)
    tensors = {
        name: 0.3 * torch.randn(each.shape)
        for name, each in build(made, {}).model.named_parameters()
        if not name.startswith("encoder.visual.") and each.dim() > 1
    }
    details = {"fingerprint": "x", "phase": "llm_tune", "lora": None}
    save_export(folder / "export", tensors, Progress(), details, made)
    made.evaluate.export = str(folder / "export")
    return made


def one_by_one(config: Config) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
    """Record key -> generated answers, and the likelier ones, each in a pass of its own."""
    built, asked = whole(config), scored(config)
    generated: dict[str, list[str]] = {}
    likelier: dict[str, list[str]] = {}
    asking, scoring = (make(asked, built.tokenizer) for make in (prompt_rows, scoring_rows))
    assert isinstance(scoring, MMERows)
    for raw, image in questions(asked, built, "test"):
        ends = {"eos_token_id": built.tokenizer.eos_token_id, "pad_token_id": 0}
        for row in asking(raw, ()):
            ids = torch.tensor([row.ids])
            tokens = built.model.generate(
                images=image,
                image_rows=torch.tensor([0]),
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=config.evaluate.max_new_tokens,
                num_beams=1,
                **ends,
            )
            (text,) = built.tokenizer.batch_decode(tokens, skip_special_tokens=True)
            generated.setdefault(raw.key, []).append(" ".join(text.split()))
        for each in questions_of(raw.data):
            likelihoods = []
            rows = scoring.rows.options(each.question, OPTIONS, image=True)
            for number in range(2):
                row = rows[0] if rows[0].options else rows[number]
                first = next(i for i, label in enumerate(row.labels) if label != IGNORE)
                target = [row.options[number]] if row.options else row.ids[first:]
                logits, labels = logits_behind(built.model, row.ids[:first], target, image)
                chosen = logits.log_softmax(-1).gather(1, labels[:, None])
                likelihoods.append(float(chosen.sum()))
            best = OPTIONS[likelihoods.index(max(likelihoods))]
            likelier.setdefault(raw.key, []).append(best)
    return generated, likelier


def texts(answers: dict[str, list[Answer]]) -> dict[str, list[str]]:
    """Record key -> what was said, from result files."""
    found: dict[str, list[str]] = {}
    for subtask, each in answers.items():
        for one in each:
            found.setdefault(f"{subtask}-{Path(one.image).stem}", []).append(one.text)
    return found


@pytest.mark.parametrize(("batch", "cached"), [(1, True), (3, False), (16, True)])
def test_answers_are_those_of_one_by_one_and_lie_in_official_files(
    config: Config, batch: int, cached: bool
) -> None:
    evaluated = replace(
        config,
        evaluate=replace(config.evaluate, batch=batch),
        data=replace(config.data, cache_features=cached),
    )
    result = answer_mme(evaluated, ALONE)
    folder = output_folder(config)
    assert folder.name == "mme-test"
    generated, likelier = (read_results(folder / n) for n in ("answers", "answers_likelihood"))
    expected = one_by_one(config)
    assert len(expected[0]) == sum(SUBTASKS.values())
    assert (texts(generated), texts(likelier)) == expected
    for answers in (generated, likelier):
        for subtask, images in SUBTASKS.items():
            assert [one.truth for one in answers[subtask]] == ["Yes", "No"] * images
            names = [one.image for one in answers[subtask]]
            assert names == [f"{i // 2}.jpg" for i in range(2 * images)]
    assert {one.text for each in likelier.values() for one in each} <= {"Yes", "No"}
    assert result["scores"] == score(generated).numbers()
    assert result["likelihood"] == score(likelier).as_dict()
    assert json.loads((folder / "metrics.json").read_text()) == result
    assert "existence 8 of 60" in result["table"] and (folder / "samples.png").is_file()
    samples = read_samples(folder)
    for name, value in result["scores"].items():
        means = (sum(each.values()) / len(each) for each in strata(samples, name))
        assert sum(means) == pytest.approx(value), name
    assert "worst first" in (folder / "report.html").read_text()
    assert result["records"] == 7 and result["loss"] > 0 and result["skipped"] == {}


class Impatient(Presence):
    """Wants to stop after so many units of work."""

    def __init__(self, beats: float) -> None:
        super().__init__()
        self.most = beats

    def stop_asked(self) -> str | None:
        return "SIGTERM" if self.beats >= self.most else None


def test_a_stop_is_heeded_between_any_two_batches(config: Config, tmp_path: Path) -> None:
    """Of the loss, of what is generated, and of yes against no; nothing is left half-made."""
    decoded = replace(config.data, cache_features=False)  # encoding once has beats of its own
    elsewhere = replace(config, runs=str(tmp_path), data=decoded)
    whole = replace(ALONE, presence=Impatient(float("inf")))
    answer_mme(replace(elsewhere, name="whole"), whole)
    batches = -(-sum(SUBTASKS.values()) // config.evaluate.batch)
    assert whole.presence.beats == 3 * batches
    for beats in range(3 * batches):
        with pytest.raises(Stopped, match="SIGTERM"):
            answer_mme(elsewhere, replace(ALONE, presence=Impatient(beats)))
    assert not output_folder(elsewhere).exists()


def test_an_image_that_cannot_be_decoded_is_wrong_and_counted(
    config: Config, tmp_path: Path
) -> None:
    put_mme(tmp_path / "mme")
    (tmp_path / "mme" / "OCR" / "1.jpg").write_bytes(jpeg()[:200])
    entry = replace(
        config.prepare["mme"], images=str(tmp_path / "mme"), out=str(tmp_path / "asked")
    )
    prepare(entry, report=lambda line: None)
    settings = replace(config.evaluate, shards=str(tmp_path / "asked"))
    result = answer_mme(replace(config, runs=str(tmp_path), evaluate=settings), ALONE)
    assert sum(result["skipped"].values()) == 1 and "1 images skipped" in result["table"]
    folder = tmp_path / config.name / "evaluate" / "mme-test"
    answers = texts(read_results(folder / "answers_likelihood"))
    assert answers["OCR-1"] == ["", ""] and len(answers) == 7
    ocr = result["likelihood"]["subtasks"]["OCR"]
    assert ocr["questions"] == 6 and ocr["said_other"] == pytest.approx(100 / 3)


def test_shards_of_another_task_are_refused(config: Config) -> None:
    settings = replace(config.evaluate, shards=config.data.shards)
    with pytest.raises(DataError, match="holds questions of MME"):
        answer_mme(replace(config, evaluate=settings), ALONE)


def test_what_evaluates_is_checked_and_planned_by_its_own_shards(config: Config) -> None:
    assert scored(config).data.shards == config.prepare["mme"].out
    assert open_split(scored(config), "test").records == 7
    found = [str(each) for each in problems(config, ALONE, until="evaluate")]
    assert found == []
    elsewhere = replace(config, evaluate=replace(config.evaluate, split="val"))
    (fault,) = problems(elsewhere, ALONE, until="evaluate")
    assert "evaluate.split=val" in str(fault) and "there are test" in str(fault)
