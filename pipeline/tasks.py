"""The task of a recipe (`data.task`): what an LM reads and learns of a record.

Captions, ScienceQA's questions, or what `talks.py` does: puts the data's row makers together with
the family's layout. Shared by training and evaluation. The contrastive phase knows no task: an
image tower is adapted to a record's captions, which for a question are the question with its
choices, and for a conversation its answers.
"""

from collections.abc import Iterable, Iterator
from dataclasses import asdict, replace

from transformers import PreTrainedTokenizerBase

from pipeline.config import Config
from pipeline.data.faults import ContentFault
from pipeline.data.prompts import CaptionRows, MakeRows, PromptRows, Row, row_of
from pipeline.data.reader import RawRecord, ShardReader
from pipeline.data.scienceqa_prompts import LETTERS, Problem, PromptFormat
from pipeline.data.scienceqa_rows import AskingRows, QuestionRows, ScoringRows, TrainingRows
from pipeline.errors import ConfigError
from pipeline.models.families import family
from pipeline.talks import (
    TALKS,
    all_talk_texts,
    asked_text,
    caption_request,
    talk_rows,
    talk_settings,
    talk_texts,
)

CAPTIONS, QUESTIONS = "captions", "scienceqa"


def scored(config: Config) -> Config:
    """The recipe as evaluation reads it: with the task and the shards of `evaluate`, where given.

    What was trained, and its fingerprint, is the business of the recipe as it is. Shards that are
    not named are those that the recipe prepares from the source called like the task.
    """
    task, shards = config.evaluate.task, config.evaluate.shards
    prepared = (each.out for each in config.prepare.values() if each.source == task)
    shards = shards or next(prepared, None) or config.data.shards
    return replace(config, data=replace(config.data, task=task or config.data.task, shards=shards))


def training_rows(config: Config, tokenizer: PreTrainedTokenizerBase) -> MakeRows:
    """The rows that a record is learnt from."""
    if config.data.task == QUESTIONS:
        return TrainingRows(question_rows(config, tokenizer))
    if config.data.task in TALKS:
        return talk_rows(config, tokenizer, "training")
    layout = family(config.family).layout(config, tokenizer)
    return CaptionRows(tokenizer, layout, config.data.max_tokens)


def prompt_rows(config: Config, tokenizer: PreTrainedTokenizerBase) -> MakeRows:
    """The row that generation starts from."""
    if config.data.task == QUESTIONS:
        return AskingRows(question_rows(config, tokenizer))
    if config.data.task in TALKS:
        return talk_rows(config, tokenizer, "asking")
    return PromptRows(family(config.family).layout(config, tokenizer))


def scoring_rows(config: Config, tokenizer: PreTrainedTokenizerBase) -> MakeRows:
    """The rows in which a question's options are compared."""
    if config.data.task in TALKS:
        return talk_rows(config, tokenizer, "scoring")
    return ScoringRows(question_rows(config, tokenizer))


def caption_prompt(config: Config, tokenizer: PreTrainedTokenizerBase) -> Row:
    """What the caption of an image starts from that belongs to no record."""
    if config.data.task in TALKS:
        return caption_request(config, tokenizer)
    return row_of(family(config.family).layout(config, tokenizer)([], True), [])


def dummy_row(config: Config, tokenizer: PreTrainedTokenizerBase) -> Row:
    """A row of no record and no image, with a target, for a rank that has nothing left."""
    eos = int(tokenizer.eos_token_id)
    return row_of([*family(config.family).layout(config, tokenizer)([], False), eos], [eos])


def question_rows(config: Config, tokenizer: PreTrainedTokenizerBase) -> QuestionRows:
    """Rows of ScienceQA's questions in the recipe's format."""
    return QuestionRows(
        tokenizer,
        question_format(config),
        family(config.family).layout(config, tokenizer),
        max_tokens=config.data.max_tokens,
        answer_weight=config.scienceqa.answer_weight,
    )


def question_format(config: Config) -> PromptFormat:
    """How the recipe puts a question; ConfigError where there is no such format."""
    asked = config.scienceqa
    try:
        return PromptFormat.parse(
            asked.format, wording=asked.wording, with_caption=asked.use_caption
        )
    except ConfigError as error:
        raise ConfigError(f"scienceqa.format: {error}") from error


def check_answering(config: Config) -> None:
    """Raises ConfigError where questions cannot be answered in the way of `evaluate.answers`."""
    if config.data.task != QUESTIONS:
        return
    if config.evaluate.answers == "likelihood" and not question_format(config).answers_first:
        raise ConfigError(
            f"scienceqa.format={config.scienceqa.format} explains before it answers, so options "
            "cannot be compared in the answer's place; set evaluate.answers=generate, or a format "
            "that ends in -A, -AL, -AE or the like"
        )


def way_of_answering(config: Config) -> str:
    """How questions are put and answered, in words: equal only where scores can be compared."""
    asked, settings = config.scienceqa, config.evaluate
    captions = ", with the image's caption" if asked.use_caption else ""
    put = f"{asked.format} in {asked.wording}'s words{captions}"
    if settings.answers == "likelihood":
        return f"the likeliest option; {put}"
    search = "greedy" if settings.beams == 1 else f"{settings.beams} beams"
    stop = "" if settings.stop is None else f", up to {settings.stop!r}"
    return f"generated, {search}, at most {settings.max_new_tokens} tokens{stop}; {put}"


def question_text(config: Config, raw: RawRecord) -> str:
    """What is asked of a record, with the choices; nothing where the task is captions.

    Raises ContentFault where the record holds nothing of the task.
    """
    if config.data.task in TALKS:
        return asked_text(config, raw)
    if config.data.task != QUESTIONS:
        return ""
    problem = Problem.of(raw.data)
    return " ".join(
        [problem.question, *(choice_text(problem, i) for i in range(len(problem.choices)))]
    )


def right_choices(reader: ShardReader, items: Iterable[tuple[int, int]]) -> dict[str, int]:
    """Record key -> index of the right choice, of all that hold a problem. items: as in a plan."""
    found = {}
    for shard, record in items:
        try:
            raw = reader.read(shard, record)
            found[raw.key] = Problem.of(raw.data).answer
        except ContentFault:
            continue
    return found


def choice_text(problem: Problem, index: int) -> str:
    """A choice with its letter, as prompts show it: "(B) Louisiana"."""
    return f"({LETTERS[index]}) {problem.choices[index]}"


def task_settings(config: Config) -> list[object]:
    """What decides, beside the data, which texts a model learns from."""
    if config.data.task in TALKS:
        return talk_settings(config)
    asks = config.data.task == QUESTIONS
    return [config.data.task, asdict(config.scienceqa) if asks else None]


def true_texts(config: Config, raw: RawRecord) -> list[str]:
    """What the model should say of a record; ContentFault where it holds nothing of the task."""
    if config.data.task == QUESTIONS:
        return [question_format(config).example(Problem.of(raw.data)).target_text.strip()]
    if config.data.task in TALKS:
        return talk_texts(config, raw)
    return list(raw.data["captions"])


def all_texts(config: Config, raw: RawRecord) -> Iterator[str]:
    """All that a tokenizer should know of a record; raises what `true_texts` does."""
    if config.data.task in TALKS:
        yield from all_talk_texts(config, raw)
        return
    yield from raw.data["captions"]
    if config.data.task == QUESTIONS:
        example = question_format(config).example(Problem.of(raw.data))
        yield example.prompt_text + example.target_text
