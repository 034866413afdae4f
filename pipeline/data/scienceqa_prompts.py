"""How a ScienceQA problem is put into words: the benchmark's formats, in named pieces.

A format "QCM-ALE" says what is shown and what is to be said, in order: Question, Context, Multiple
choices, Lecture, Explanation (called solution in the data), Answer. The wording is ScienceQA's own
or LaVIN's. Knows neither tokens nor images (`scienceqa_rows.py`).

SOURCE: ScienceQA models/base_prompt.py:41-93 and LaVIN util/base_prompt.py:96-152. Two faults of
both are not repeated: AL gives the lecture and AE the explanation (there it is the other way
round), and where there is nothing to explain there is no "BECAUSE:".
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from pipeline.data.faults import ContentFault
from pipeline.errors import ConfigError

INPUTS = ("QCM", "CQM", "QCML", "QCME", "QCMLE", "QCLM", "QCEM", "QCLEM")
OUTPUTS = ("A", "AL", "AE", "ALE", "AEL", "LA", "EA", "LEA", "ELA")
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"

Part = Literal["question", "context", "choices", "lecture", "solution", "cue", "answer"]


@dataclass(frozen=True)
class Problem:
    """What a prompt is made of; `answer` is an index of `choices`."""

    question: str
    choices: tuple[str, ...]
    answer: int
    hint: str = ""
    lecture: str = ""
    solution: str = ""
    caption: str = ""  # of the image

    @classmethod
    def of(cls, data: Mapping[str, Any]) -> "Problem":
        """The problem in a record's JSON; raises ContentFault where it holds none."""
        texts = {key: data.get(key, "") for key in ("question", "hint", "lecture", "solution")}
        texts["caption"] = data.get("caption", "")
        choices, answer = data.get("choices"), data.get("answer")
        if not isinstance(choices, list) or type(answer) is not int:
            raise ContentFault("no ScienceQA problem", detail="choices or answer is missing")
        if not all(isinstance(text, str) for text in (*texts.values(), *choices)):
            raise ContentFault("no ScienceQA problem", detail="what should be text is none")
        if len(choices) < 2 or not 0 <= answer < len(choices) <= len(LETTERS):
            raise ContentFault("no ScienceQA problem", detail=f"answer {answer} is no choice")
        return cls(choices=tuple(choices), answer=answer, **texts)


@dataclass(frozen=True)
class Wording:
    """What the answer is asked for with, and what stands between that and the answer."""

    cue: str
    gap: str


WORDINGS = {"scienceqa": Wording("Answer:", " "), "lavin": Wording("Response:", "")}


@dataclass(frozen=True)
class Piece:
    """A stretch of text and what it holds, the words and the space before it included."""

    part: Part
    text: str


@dataclass(frozen=True)
class Example:
    """A problem in words; the pieces put together are the text, as it is."""

    prompt: tuple[Piece, ...]  # ends with the cue
    target: tuple[Piece, ...]  # what the model is to say

    @property
    def prompt_text(self) -> str:
        """All that is shown."""
        return "".join(piece.text for piece in self.prompt)

    @property
    def target_text(self) -> str:
        """All that is to be said."""
        return "".join(piece.text for piece in self.target)


@dataclass(frozen=True)
class PromptFormat:
    """One of the benchmark's formats, in one of the wordings."""

    inputs: str = "QCM"
    outputs: str = "ALE"
    wording: Wording = WORDINGS["scienceqa"]
    with_caption: bool = False  # the image's caption is part of the context

    @classmethod
    def parse(
        cls, name: str, *, wording: str = "scienceqa", with_caption: bool = False
    ) -> "PromptFormat":
        """The format of a name such as "QCM-ALE".

        Raises:
            ConfigError: there is no such format or wording.
        """
        inputs, _, outputs = name.partition("-")
        if inputs not in INPUTS or outputs not in OUTPUTS:
            raise ConfigError(
                f"{name!r} is no format of ScienceQA; write one of {', '.join(INPUTS)}, a dash, "
                f"and one of {', '.join(OUTPUTS)}"
            )
        if wording not in WORDINGS:
            raise ConfigError(f"{wording!r} is no wording; use one of {', '.join(WORDINGS)}")
        return cls(inputs, outputs, WORDINGS[wording], with_caption)

    @property
    def answers_first(self) -> bool:
        """Whether the answer follows the prompt at once, so that options can be scored."""
        return self.outputs.startswith("A")

    def example(self, problem: Problem) -> Example:
        """The problem in words."""
        return Example(self._prompt(problem), self._target(problem))

    def _prompt(self, problem: Problem) -> tuple[Piece, ...]:
        options = " ".join(f"({LETTERS[i]}) {text}" for i, text in enumerate(problem.choices))
        caption = problem.caption if self.with_caption else ""
        context = f"{problem.hint} {caption}".strip() or "N/A"
        lines: dict[str, tuple[Part, str]] = {
            "Q": ("question", f"Question: {problem.question}\n"),
            "C": ("context", f"Context: {context}\n"),
            "M": ("choices", f"Options: {options}\n"),
        }
        pieces: list[Piece] = []
        for letters in re.findall("[LE]+|.", self.inputs):
            if letters in lines:
                part, text = lines[letters]
                pieces.append(Piece(part, _single_spaced(text)))
            elif explanation := _explanation(problem, letters):
                explanation[-1] = Piece(explanation[-1].part, f"{explanation[-1].text}\n")
                pieces += [_prefixed("BECAUSE: ", explanation[0]), *explanation[1:]]
        return (*pieces, Piece("cue", self.wording.cue))

    def _target(self, problem: Problem) -> tuple[Piece, ...]:
        answer = Piece("answer", f"The answer is {LETTERS[problem.answer]}.")
        explanation = _explanation(problem, self.outputs)
        if not explanation:
            pieces = [answer]
        elif self.answers_first:
            first, *rest = explanation
            pieces = [answer, _prefixed(" BECAUSE: ", first), *rest]
        else:
            pieces = [*explanation, _prefixed(" ", answer)]
        return (_prefixed(self.wording.gap, pieces[0]), *pieces[1:])


def _explanation(problem: Problem, letters: str) -> list[Piece]:
    """Lecture and solution in the order of `letters`, those that there are, a space in between.

    Line ends become the two characters backslash and n, as in the benchmark.
    """
    texts: dict[str, tuple[Part, str]] = {
        "L": ("lecture", problem.lecture),
        "E": ("solution", problem.solution),
    }
    pieces: list[Piece] = []
    for part, text in (texts[letter] for letter in letters if letter in texts):
        if text.strip():
            shown = _single_spaced(text.replace("\n", "\\n").strip())
            pieces.append(Piece(part, f" {shown}" if pieces else shown))
    return pieces


def _prefixed(prefix: str, piece: Piece) -> Piece:
    return Piece(piece.part, prefix + piece.text)


def _single_spaced(text: str) -> str:
    """Two spaces become one, as in the benchmark (once: four become two)."""
    return text.replace("  ", " ")
