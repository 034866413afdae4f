"""How an evaluation would answer its questions, and about what that takes of the LLM.

From the lengths of some questions of the split, as they would be put, where split and tokenizer are
there; loads no model.
"""

from pipeline.config import Config
from pipeline.data.faults import ContentFault
from pipeline.data.plan import items_in_order
from pipeline.errors import UserError
from pipeline.evaluation.cost import GENERATED, Cost
from pipeline.evaluation.finishing import COMMON_FILES, output_folder
from pipeline.explain.text import UNKNOWN, count
from pipeline.models.llm import load_tokenizer
from pipeline.splits import open_split
from pipeline.tasks import prompt_rows, way_of_answering

_SAMPLED = 50  # questions whose length stands for all


def describe_answers(config: Config, records: int | None, shared: str) -> list[tuple[str, str]]:
    """Rows of a plan.

    Args:
        config: the recipe.
        records: questions that are asked, None where nobody knows yet.
        shared: how the ranks share them.
    """
    return [
        ("questions", f"{shared}: {way_of_answering(config)}"),
        ("of the LLM", _cost(config, records)),
        ("also", "loss and perplexity of the true answers"),
        ("scores", "accuracy by subject, context and grade, as the benchmark counts"),
        ("writes", f"results.json, {COMMON_FILES} in {output_folder(config)}"),
    ]


def _cost(config: Config, records: int | None) -> str:
    settings, prompts = config.evaluate, _prompts(config)
    compares = settings.answers == "likelihood"
    passes = "1 pass" if compares else f"up to {settings.max_new_tokens} passes"
    if prompts is None or not prompts.questions:
        return f"{passes} a batch; positions {UNKNOWN} (split and tokenizer are needed to count)"
    each = prompts.prompts / prompts.questions
    generated = prompts.generating()[0] / prompts.questions
    if compares:
        beside = f"; generating {GENERATED} tokens: {GENERATED} passes, about {count(generated)}"
        return f"{passes} a batch, {_positions(each, records)}{beside}"
    longest = prompts.generating(settings.max_new_tokens)[0] / prompts.questions
    return f"{passes} a batch, {_positions(settings.beams * longest, records)} at most (KV cache)"


def _positions(each: float, records: int | None) -> str:
    total = None if records is None else each * records
    return f"about {count(each)} positions a question, {count(total)} in all"


def _prompts(config: Config) -> Cost | None:
    """Questions spread over the split, and how long they are together; None if nobody can tell."""
    try:
        split = open_split(config, config.evaluate.split)
        make = prompt_rows(config, load_tokenizer(config.llm))
        reader, items = split.reader, items_in_order(split.in_order(1))
    except UserError:
        return None
    found = Cost()
    for shard, record in items[:: max(len(items) // _SAMPLED, 1)]:
        try:
            (row,) = make(reader.read(shard, record), ())
        except ContentFault:
            continue
        found += Cost(questions=1, prompts=len(row.ids))
    return found
