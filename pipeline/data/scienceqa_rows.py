"""ScienceQA problems become rows of token ids: for training, for generation, for scoring options.

What is longer than allowed is shortened in the hint, then the lecture, then the solution; question,
choices, answer and EOS never are. Where the image goes is the family's business: its `layout` comes
in from outside. Assumes nothing about padding or batches (`collate.py`).
"""

import re
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from transformers import PreTrainedTokenizerBase

from pipeline.data.faults import ContentFault
from pipeline.data.prompts import IGNORE, Layout, Row, option_rows
from pipeline.data.reader import RawRecord
from pipeline.data.scienceqa_prompts import Example, Problem, PromptFormat
from pipeline.data.tokens import common, continuation, encode, split_options

_SHORTENED = ("hint", "lecture", "solution")  # in this order


@dataclass(frozen=True)
class Tokens:
    """An example in tokens: the prompt, and the target piece by piece."""

    prompt: list[int]
    target: list[list[int]]  # one list for each piece of the example's target

    @property
    def target_ids(self) -> list[int]:
        """The target in one."""
        return [each for piece in self.target for each in piece]


@dataclass(frozen=True)
class OptionRow:
    """One row for a question's options, which differ only in what follows it.

    Attributes: row: the prompt and what all answers begin with ("The answer is"); options: for each
    choice the ids that go on from there, one or more: the letter, without what follows in all of
    them.
    """

    row: Row
    options: tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class QuestionRows:
    """Rows of one format. Lengths count all positions of a row, image slots and EOS included.

    A row in training and one for generation begin with the same tokens, unless the hint had to make
    room for an explanation. Pieces of a row are never tokenised one by one: a row's ids are those
    of the prompt, and what the tokenizer puts behind them for the text as a whole.
    """

    tokenizer: PreTrainedTokenizerBase
    form: PromptFormat
    layout: Layout
    max_tokens: int = 640
    answer_weight: float = 1.0  # of the tokens of "The answer is A."; all other targets count 1

    def training(self, problem: Problem, *, image: bool) -> Row:
        """The row to learn from; answer, explanation and EOS are its targets.

        Args:
            problem: what is asked, with its answer.
            image: whether the record has an image.

        Raises:
            ContentFault: question, choices and answer alone are longer than `max_tokens`.
        """
        problem, cut = self._fit(problem, self.form, image)
        example = self.form.example(problem)
        tokens = tokenize(self.tokenizer, example)
        before = self.layout(tokens.prompt, image)
        target = [*tokens.target_ids, self._eos]
        weights = [0.0] * len(before)
        for piece, ids in zip(example.target, tokens.target, strict=True):
            weights += [self.answer_weight if piece.part == "answer" else 1.0] * len(ids)
        return Row(
            ids=[*before, *target],
            labels=[IGNORE] * len(before) + target,
            cut=cut,
            weights=[*weights, 1.0],
        )

    def prompt(self, problem: Problem, *, image: bool) -> Row:
        """What generation starts from; no position is a target. Raises what `training` does."""
        problem, cut = self._fit_unanswered(problem, image)
        return _untrained(self._asked(problem, image), cut)

    def options(self, problem: Problem, *, image: bool) -> OptionRow:
        """The row whose next token decides between the options; the right one is not looked at.

        Raises:
            ValueError: in this format the answer follows an explanation, which a score would need.
            ContentFault: as in `training`.
        """
        if not self.form.answers_first:
            raise ValueError(f"{self.form.outputs}: options can be scored only before explanations")
        problem, cut = self._fit_unanswered(problem, image)
        answers = []
        for number in range(len(problem.choices)):
            example = self._answer_alone.example(replace(problem, answer=number))
            answers.append(continuation(self.tokenizer, example.prompt_text, example.target_text))
        stem, options = split_options(answers)
        return OptionRow(_untrained([*self._asked(problem, image), *stem], cut), options)

    @property
    def _eos(self) -> int:
        return int(self.tokenizer.eos_token_id)

    @property
    def _answer_alone(self) -> PromptFormat:
        return replace(self.form, outputs="A")

    def _asked(self, problem: Problem, image: bool) -> list[int]:
        """All that comes before the target."""
        return self.layout(encode(self.tokenizer, self.form.example(problem).prompt_text), image)

    def _fit_unanswered(self, problem: Problem, image: bool) -> tuple[Problem, bool]:
        """The problem as at test time: with room for an answer and EOS, whichever is right."""
        return self._fit(replace(problem, answer=0), self._answer_alone, image)

    def _fit(self, problem: Problem, form: PromptFormat, image: bool) -> tuple[Problem, bool]:
        """The problem, shortened by whole words where it is too long, and whether it was."""

        def too_long(candidate: Problem) -> bool:
            tokens = tokenize(self.tokenizer, form.example(candidate))
            length = len(self.layout(tokens.prompt, image)) + len(tokens.target_ids) + 1
            return length > self.max_tokens

        if not too_long(problem):
            return problem, False
        for part in _SHORTENED:
            text = getattr(problem, part)
            ends = [0, *(word.end() for word in re.finditer(r"\S+", text))]
            tried = [replace(problem, **{part: text[:end]}) for end in ends]
            first_too_long = bisect_left(tried, True, key=too_long)
            if first_too_long:
                return tried[first_too_long - 1], True
            problem = tried[0]
        raise ContentFault(
            "question too long",
            detail=f"without hint and explanation more than max_tokens={self.max_tokens}",
        )


@dataclass(frozen=True)
class TrainingRows:
    """Of a record, the one row to learn from (a `MakeRows`); its captions are not looked at."""

    questions: QuestionRows

    def __call__(self, raw: RawRecord, captions: Sequence[str]) -> tuple[Row, ...]:
        """Raises what `QuestionRows.training` and `Problem.of` do."""
        problem = Problem.of(raw.data)
        return (self.questions.training(problem, image=raw.image is not None),)


@dataclass(frozen=True)
class AskingRows:
    """Of a record, the one row that generation starts from (a `MakeRows`)."""

    questions: QuestionRows

    def __call__(self, raw: RawRecord, captions: Sequence[str]) -> tuple[Row, ...]:
        """Raises what `QuestionRows.prompt` and `Problem.of` do."""
        return (self.questions.prompt(Problem.of(raw.data), image=raw.image is not None),)


@dataclass(frozen=True)
class ScoringRows:
    """Of a record, the row in whose last place its options are compared (a `MakeRows`).

    Where the tokenizer splits the letter of one of them, a row for each option instead, whose
    targets are the option's tokens.
    """

    questions: QuestionRows

    def __call__(self, raw: RawRecord, captions: Sequence[str]) -> tuple[Row, ...]:
        """Raises what `QuestionRows.options` and `Problem.of` do."""
        scored = self.questions.options(Problem.of(raw.data), image=raw.image is not None)
        return option_rows(scored.row.ids, scored.options, cut=scored.row.cut)


def tokenize(tokenizer: PreTrainedTokenizerBase, example: Example) -> Tokens:
    """An example in tokens; a token that spans two pieces of the target counts to the later one."""
    prompt = example.prompt_text
    whole = continuation(tokenizer, prompt, example.target_text)
    bounds, text = [0], ""
    for piece in example.target[:-1]:
        text += piece.text
        end = common(continuation(tokenizer, prompt, text), whole)
        bounds.append(max(end, bounds[-1]))
    target = [whole[start:end] for start, end in pairwise([*bounds, len(whole)])]
    return Tokens(encode(tokenizer, prompt), target)


def _untrained(ids: list[int], cut: bool) -> Row:
    return Row(ids, [IGNORE] * len(ids), cut)
