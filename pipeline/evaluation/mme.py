"""MME's scores: accuracy and accuracy+ of each subtask, their sums, and how often a model says yes.

Pure functions of answers; `mme_files.py` reads and writes them. An answer that is neither yes nor
no is wrong, never left out. Knows the whole benchmark's sizes, so that a part of it is seen to be
one; does not assume that it is whole.

SOURCE: MME's eval_tool/calculation.py (reading of an answer :23-37, scores :98-113).
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

PERCEPTION = (
    *("existence", "count", "position", "color", "posters"),
    *("celebrity", "scene", "landmark", "artwork", "OCR"),
)
COGNITION = (
    "commonsense_reasoning",
    "numerical_calculation",
    "text_translation",
    "code_reasoning",
)
SUBTASKS = (*PERCEPTION, *COGNITION)

# Of the whole benchmark; two for each image.
QUESTIONS: Mapping[str, int] = MappingProxyType(
    {
        **dict.fromkeys(("existence", "count", "position", "color"), 60),
        **{"posters": 294, "celebrity": 340, "scene": 400, "landmark": 400, "artwork": 400},
        **{"OCR": 40, "commonsense_reasoning": 140},
        **dict.fromkeys(("numerical_calculation", "text_translation", "code_reasoning"), 40),
    }
)

YES, NO, OTHER = "yes", "no", "other"
_SEEN = 4  # characters of an answer that count
# The benchmark's two scores: of which subtasks each is the sum.
SUMS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {"Perception": PERCEPTION, "Cognition": COGNITION}
)


@dataclass(frozen=True)
class Answer:
    """One question of an image with what is right (Yes or No) and what a model said."""

    image: str  # the file's name
    question: str
    truth: str
    text: str


@dataclass(frozen=True)
class Subtask:
    """Counts of one subtask; `images` counts pairs of questions."""

    questions: int
    correct: int
    images: int
    both: int  # images of which both answers are right
    said: Mapping[str, int]  # YES, NO, OTHER -> answers
    true_yes: int  # questions whose right answer is yes
    false_yes: int  # questions answered yes whose right answer is no
    unpaired: int  # questions that are left over in an image

    @property
    def accuracy(self) -> float:
        """Right answers in percent."""
        return 100 * self.correct / self.questions

    @property
    def accuracy_plus(self) -> float:
        """Images with both answers right, in percent."""
        return 100 * self.both / self.images

    @property
    def score(self) -> float:
        """0 to 200."""
        return self.accuracy + self.accuracy_plus

    @property
    def yes_bias(self) -> float:
        """How much more often yes is said than is right, in percent of the questions."""
        return 100 * (self.said[YES] - self.true_yes) / self.questions

    def share(self, label: str) -> float:
        """How many of the answers are YES, NO or OTHER, in percent."""
        return 100 * self.said[label] / self.questions

    @property
    def false_yes_share(self) -> float | None:
        """How many of the wrong answers say yes, in percent; None where none is wrong."""
        wrong = self.questions - self.correct
        return 100 * self.false_yes / wrong if wrong else None

    def as_dict(self) -> dict[str, Any]:
        """Everything, by name."""
        return {
            "questions": self.questions,
            "images": self.images,
            "accuracy": self.accuracy,
            "accuracy_plus": self.accuracy_plus,
            "score": self.score,
            **{f"said_{label}": self.share(label) for label in (YES, NO, OTHER)},
            "yes_bias": self.yes_bias,
            "false_yes_share": self.false_yes_share,
            "unpaired": self.unpaired,
        }


@dataclass(frozen=True)
class Scores:
    """What a set of answers is worth, subtask by subtask in the benchmark's order."""

    subtasks: Mapping[str, Subtask]

    @property
    def perception(self) -> float:
        """The sum over its subtasks that there are, 0 to 2000."""
        return self._sum(PERCEPTION)

    @property
    def cognition(self) -> float:
        """The sum over its subtasks that there are, 0 to 800."""
        return self._sum(COGNITION)

    @property
    def total(self) -> Subtask | None:
        """All questions as one subtask; None where there are none."""
        return _together(self.subtasks.values()) if self.subtasks else None

    @property
    def partial(self) -> dict[str, tuple[int, int]]:
        """Subtask -> (questions there, in the whole benchmark), where these differ."""
        found = {name: each.questions for name, each in self.subtasks.items()}
        counts = {name: (found.get(name, 0), whole) for name, whole in QUESTIONS.items()}
        return {name: both for name, both in counts.items() if both[0] != both[1]}

    def numbers(self) -> dict[str, float]:
        """Both sums and every subtask's score."""
        sums = {"Perception": self.perception, "Cognition": self.cognition}
        return {**sums, **{name: each.score for name, each in self.subtasks.items()}}

    def as_dict(self) -> dict[str, Any]:
        """For metrics.json."""
        total = self.total
        return {
            "perception": self.perception,
            "cognition": self.cognition,
            "subtasks": {name: each.as_dict() for name, each in self.subtasks.items()},
            "all": None if total is None else total.as_dict(),
            "partial": {name: list(counts) for name, counts in self.partial.items()},
        }

    def table(self) -> str:
        """One line a subtask, both sums, and a line for what is missing."""
        heads = (
            "questions",
            "accuracy",
            "accuracy+",
            "score",
            "yes %",
            "no %",
            "other %",
            "yes bias",
        )
        lines = [f"{'':<22}" + "".join(f"{head:>10}" for head in heads)]
        lines += [_line(name, each) for name, each in self.subtasks.items()]
        if self.total is not None:
            lines.append(_line("all questions", self.total))
        lines += [
            f"{name:<22}{self._sum(parts):>10.2f} of {200 * len(parts)}"
            for name, parts in SUMS.items()
        ]
        return "\n".join([*lines, *self._notes()])

    def _notes(self) -> list[str]:
        notes = []
        if self.partial:
            there = ", ".join(f"{name} {n} of {whole}" for name, (n, whole) in self.partial.items())
            notes.append(f"not the whole benchmark, so the sums are not comparable: {there}")
        if self.total is not None and self.total.unpaired:
            notes.append(
                f"{self.total.unpaired} questions are left over in images with an odd number of "
                "them; such an image never counts as right in accuracy+"
            )
        share = None if self.total is None else self.total.false_yes_share
        if share is not None:
            notes.append(f"{share:.1f} % of the wrong answers say yes where no is right")
        return notes

    def _sum(self, names: Sequence[str]) -> float:
        return sum(self.subtasks[name].score for name in names if name in self.subtasks)


def parse_answer(text: str) -> str:
    """YES, NO or OTHER by the benchmark's rule.

    In lower case, the first four characters hold "yes", else "no" (so "not" and "know" are no).
    Spaces are not stripped: they take their part of the four.
    """
    seen = text.lower()[:_SEEN]
    return YES if YES in seen else NO if NO in seen else OTHER


def worth(answers: Sequence[tuple[str, str]]) -> float:
    """What one image adds to its subtask's score, 0 to 200; answers: (truth, text) in order.

    The subtask's score is the mean over its images where all have equally many questions.
    """
    questions = [Answer("", "", truth, text) for truth, text in answers]
    return _subtask(questions).score


def score(answers: Mapping[str, Sequence[Answer]]) -> Scores:
    """Score answers as the benchmark does; a subtask that it does not have is in neither sum.

    Args:
        answers: subtask -> its answers, those of an image in their order. Of an image two and two
            are a pair; one that is left over makes a pair that is not right.
    """
    order = [*SUBTASKS, *sorted(set(answers) - set(SUBTASKS))]
    return Scores({name: _subtask(answers[name]) for name in order if answers.get(name)})


def _subtask(answers: Sequence[Answer]) -> Subtask:
    images: dict[str, list[bool]] = {}
    said = dict.fromkeys((YES, NO, OTHER), 0)
    false_yes = 0
    for each in answers:
        label = parse_answer(each.text)
        said[label] += 1
        images.setdefault(each.image, []).append(label == each.truth.lower())
        false_yes += label == YES and each.truth.lower() == NO
    pairs = [right[i : i + 2] for right in images.values() for i in range(0, len(right), 2)]
    return Subtask(
        questions=len(answers),
        correct=sum(map(sum, pairs)),
        images=len(pairs),
        both=sum(sum(pair) == 2 for pair in pairs),
        said=said,
        true_yes=sum(each.truth.lower() == YES for each in answers),
        false_yes=false_yes,
        unpaired=sum(len(pair) == 1 for pair in pairs),
    )


def _together(parts: Iterable[Subtask]) -> Subtask:
    """Several subtasks counted as one."""
    every = list(parts)
    counted = ("questions", "correct", "images", "both", "true_yes", "false_yes", "unpaired")
    sums = {name: sum(getattr(each, name) for each in every) for name in counted}
    said = {label: sum(each.said[label] for each in every) for label in (YES, NO, OTHER)}
    return Subtask(said=said, **sums)


def _line(name: str, each: Subtask) -> str:
    shares = "".join(f"{each.share(label):>10.1f}" for label in (YES, NO, OTHER))
    return (
        f"{name:<22}{each.questions:>10}{each.accuracy:>10.2f}{each.accuracy_plus:>10.2f}"
        f"{each.score:>10.2f}{shares}{each.yes_bias:>+10.1f}"
    )
