"""ScienceQA's scores: accuracy over all questions and over the benchmark's eight groups.

Pure functions of problems and predictions, and the benchmark's results file. A prediction is an
index of the choices, or UNPARSED. What a problem does not say about itself (subject, grade) is
counted as missing, never guessed; a question without a usable answer is wrong, never left out.

SOURCE: ScienceQA tools/evaluate_acc.py (groups), models/run_gpt3.py (reading of an answer).
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.errors import DataError

UNPARSED = -1
GROUPS = ("NAT", "SOC", "LAN", "TXT", "IMG", "NO", "G1-6", "G7-12")
_SUBJECTS = {"natural science": "NAT", "social science": "SOC", "language science": "LAN"}
_GRADES = {f"grade{i}": "G1-6" if i <= 6 else "G7-12" for i in range(1, 13)}
_ANSWER = re.compile(r"The answer is ([A-Z]).")


@dataclass(frozen=True)
class Accuracy:
    """Right answers among questions."""

    correct: int
    count: int

    @property
    def percent(self) -> float | None:
        """0 to 100; None where there is no question."""
        return 100 * self.correct / self.count if self.count else None


@dataclass(frozen=True)
class Scores:
    """What a set of predictions is worth; questions of unknown subject or grade miss in groups."""

    average: Accuracy  # over all questions
    groups: Mapping[str, Accuracy]  # by GROUPS; TXT and IMG overlap
    unparsed: int  # predictions that are none of the question's choices
    unanswered: int  # questions without a prediction
    missing: Mapping[str, int]  # questions that lack subject or grade

    def as_dict(self) -> dict[str, Any]:
        """For metrics.json: every accuracy in percent with its number of questions."""
        groups = {**self.groups, "Avg": self.average}
        return {
            "accuracy": {name: each.percent for name, each in groups.items()},
            "questions": {name: each.count for name, each in groups.items()},
            "correct": self.average.correct,
            "unparsed": self.unparsed,
            "unanswered": self.unanswered,
            "missing": dict(self.missing),
        }

    def table(self) -> str:
        """The benchmark's table: names, accuracies, and questions where not all groups are whole.

        Further lines name what could not be read or is not known.
        """
        groups = {**self.groups, "Avg": self.average}
        shown = {
            name: "-" if each.percent is None else f"{each.percent:.2f}"
            for name, each in groups.items()
        }
        lines = [
            "".join(f"{name:>8}" for name in groups),
            "".join(f"{value:>8}" for value in shown.values()),
            "".join(f"{each.count:>8}" for each in groups.values()) + "  questions",
        ]
        notes = {
            "answers that are no choice, counted as wrong": self.unparsed,
            "questions without an answer, counted as wrong": self.unanswered,
            **{f"questions of unknown {key}": count for key, count in self.missing.items()},
        }
        return "\n".join([*lines, *(f"{count} {what}" for what, count in notes.items() if count)])


def score(problems: Mapping[str, Mapping[str, Any]], predictions: Mapping[str, int]) -> Scores:
    """Score predictions as the benchmark does.

    Args:
        problems: pid -> a problem with "choices", "answer", and where it has them "hint", "image",
            "subject" and "grade"; all questions of the split.
        predictions: pid -> index of the choices, or UNPARSED.

    Raises:
        DataError: a prediction is for a pid that is not among the problems.
    """
    strangers = [pid for pid in predictions if pid not in problems]
    if strangers:
        raise DataError(
            f"results: pid {strangers[0]} and {len(strangers) - 1} more are not among the "
            f"{len(problems)} problems of the split; score results of this split"
        )
    hits: dict[str, list[bool]] = {name: [] for name in GROUPS}
    right = []
    for pid, problem in problems.items():
        right.append(predictions.get(pid) == problem["answer"])
        for name in groups_of(problem):
            hits[name].append(right[-1])
    return Scores(
        average=_accuracy(right),
        groups={name: _accuracy(each) for name, each in hits.items()},
        unparsed=sum(
            not 0 <= index < len(problems[pid]["choices"]) for pid, index in predictions.items()
        ),
        unanswered=len(problems) - len(predictions),
        missing={
            "subject": sum(_known(_SUBJECTS, p, "subject") is None for p in problems.values()),
            "grade": sum(_known(_GRADES, p, "grade") is None for p in problems.values()),
        },
    )


def groups_of(problem: Mapping[str, Any]) -> list[str]:
    """The groups that a problem belongs to; none for a subject or grade that it does not say."""
    hint, image = problem.get("hint"), problem.get("image")
    groups = [
        _known(_SUBJECTS, problem, "subject"),
        "TXT" if hint else None,
        "IMG" if image else None,
        "NO" if not hint and not image else None,
        _known(_GRADES, problem, "grade"),
    ]
    return [name for name in groups if name is not None]


def _known(names: Mapping[str, str], problem: Mapping[str, Any], key: str) -> str | None:
    said = problem.get(key)
    return names.get(said) if isinstance(said, str) else None


def parse_answer(text: str, choices: int) -> int:
    """The choice that a generated text names, by the benchmark's rule.

    "The answer is X." must be there exactly once, with the letter of a choice; any character will
    do for the full stop. (LaVIN and the benchmark draw lots for the rest.)

    Args:
        text: what was generated, without the prompt.
        choices: how many the question has.

    Returns:
        The index of the choice, or UNPARSED.
    """
    found = _ANSWER.findall(text)
    index = ord(found[0]) - ord("A") if len(found) == 1 else choices
    return index if index < choices else UNPARSED


def write_results(
    path: Path,
    scores: Scores,
    predictions: Mapping[str, int],
    outputs: Mapping[str, str] | None = None,
) -> None:
    """Write the benchmark's results file, in one go: its evaluate_acc.py reads "results".

    Args:
        path: of the file.
        scores: of the predictions.
        predictions: pid -> index of the choices, or UNPARSED.
        outputs: pid -> generated text, where answers were generated.
    """
    content: dict[str, Any] = {
        "acc": scores.average.percent,
        "correct": scores.average.correct,
        "count": scores.average.count,
        "results": dict(predictions),
    }
    if outputs is not None:
        content["outputs"] = dict(outputs)
    writing = path.with_name(f".{path.name}.tmp")
    writing.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    writing.replace(path)


def read_results(path: Path) -> dict[str, int]:
    """Read the predictions of a results file, ours or anybody's: pid -> index.

    Raises:
        DataError: it is no results file, or a prediction is no number.
    """
    try:
        results = json.loads(path.read_bytes())["results"]
        return {str(pid): int(index) for pid, index in results.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        cause = " ".join(f"{type(error).__name__}: {error}".split())
        raise DataError(
            f"{path}: not a results file of ScienceQA ({cause}); it holds an object 'results' of "
            "pids and indices"
        ) from error


def _accuracy(right: list[bool]) -> Accuracy:
    return Accuracy(sum(right), len(right))
