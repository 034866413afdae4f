"""The tasks of conversations: to follow instructions (`instruct`) and MME's questions (`mme`).

Both put their texts in the recipe's chat template, so that a model that learnt to talk is asked in
the words it knows. Puts the data's row makers together with the family's layout; `tasks.py` sends
everything here that concerns these two.
"""

from collections.abc import Iterator
from dataclasses import asdict
from typing import Literal

from transformers import PreTrainedTokenizerBase

from pipeline.config import Config
from pipeline.data.chat_templates import ChatTemplate, LavinTemplate, chat_template
from pipeline.data.conversation_rows import (
    ConversationRows,
    InstructRows,
    MMERows,
    conversations_of,
    questions_of,
)
from pipeline.data.conversations import Conversation
from pipeline.data.prompts import MakeRows, Row
from pipeline.data.reader import RawRecord
from pipeline.models.families import family

INSTRUCT, MME = "instruct", "mme"
TALKS = frozenset({INSTRUCT, MME})

Kind = Literal["training", "asking", "scoring"]


def talk_rows(config: Config, tokenizer: PreTrainedTokenizerBase, kind: Kind) -> MakeRows:
    """The rows of a record: to learn from, to go on from, or to compare yes and no in.

    Raises what `template_of` does.
    """
    rows = conversation_rows(config, tokenizer)
    if config.data.task == MME:
        return MMERows(rows, kind)
    return InstructRows(rows, config.instruct.caption_question, asks=kind == "asking")


def conversation_rows(config: Config, tokenizer: PreTrainedTokenizerBase) -> ConversationRows:
    """Rows of any conversation, in the recipe's template and the family's layout.

    Raises what `template_of` does.
    """
    return ConversationRows(
        template_of(config, tokenizer),
        family(config.family).layout(config, tokenizer),
        max_tokens=config.data.max_tokens,
    )


def caption_request(config: Config, tokenizer: PreTrainedTokenizerBase) -> Row:
    """The question for a caption of an image that belongs to no record."""
    asked = Conversation.asking(config.instruct.caption_question)
    return conversation_rows(config, tokenizer).prompt(asked, image=True)


def template_of(config: Config, tokenizer: PreTrainedTokenizerBase) -> ChatTemplate:
    """The recipe's chat template.

    Raises:
        ConfigError: the tokenizer has none of its own, or one that does not do.
    """
    ends = [int(tokenizer.eos_token_id)]
    if config.evaluate.stop is not None:
        ends += tokenizer.encode(config.evaluate.stop, add_special_tokens=False)
    return chat_template(config.instruct.template, tokenizer, ends)


def talk_settings(config: Config) -> list[object]:
    """What decides, beside the data, which texts a model learns from."""
    own = config.instruct.template == "tokenizer"
    return [config.data.task, asdict(config.instruct), config.evaluate.stop if own else None]


def talk_texts(config: Config, raw: RawRecord) -> list[str]:
    """What the model should say of a record: its last answer, or yes or no to each question.

    Raises:
        ContentFault: it holds neither a conversation nor questions.
    """
    return [each.exchanges[-1].answer or "" for each in _talks(config, raw)]


def asked_text(config: Config, raw: RawRecord) -> str:
    """The question that the first of `talk_texts` answers; raises what that does."""
    return _talks(config, raw)[0].exchanges[-1].question


def all_talk_texts(config: Config, raw: RawRecord) -> Iterator[str]:
    """All that a tokenizer should know of a record, the words of LaVIN's template included.

    Raises what `talk_texts` does.
    """
    for talk in _talks(config, raw):
        yield "".join(map("".join, LavinTemplate.words(talk)))


def _talks(config: Config, raw: RawRecord) -> list[Conversation]:
    if config.data.task == MME:
        return [Conversation((each,)) for each in questions_of(raw.data)]
    return conversations_of(raw, raw.data["captions"], config.instruct.caption_question)
