"""MME's result files: one a subtask, a line an answer, in the columns that its eval_tool reads.

Image, question, truth and the model's text, parted by tabs. Reads anybody's files, and refuses what
the benchmark's own calculation could not read; scores nothing.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

from pipeline.errors import DataError
from pipeline.evaluation.mme import NO, YES, Answer

GENERATED, LIKELIHOOD = "answers", "answers_likelihood"  # folders of ours, one a way of answering
_FILES = "[!.]*.txt"  # macOS puts a "._count.txt" beside a "count.txt"


def write_results(folder: Path, answers: Mapping[str, Sequence[Answer]]) -> None:
    """Write the benchmark's result files, one a subtask, each in one go.

    White space in texts becomes single spaces: a line is an answer, and tabs part its columns.
    Files of other subtasks, which an older evaluation left, are removed: they are another model's.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for subtask, each in answers.items():
        rows = [(one.image, one.question, one.truth, one.text) for one in each]
        lines = ["\t".join(" ".join(cell.split()) for cell in row) + "\n" for row in rows]
        writing = folder / f".{subtask}.tmp"
        writing.write_text("".join(lines), encoding="utf-8")
        writing.replace(folder / f"{subtask}.txt")
    for file in folder.glob(_FILES):
        if file.stem not in answers:
            file.unlink()


def read_results(folder: Path) -> dict[str, list[Answer]]:
    """Read a folder of result files, ours or anybody's: subtask -> answers.

    Raises:
        DataError: there is none, or a line is no answer.
    """
    files = sorted(folder.glob(_FILES))
    if not files:
        raise DataError(f"{folder}: holds no result files of MME (existence.txt and the like)")
    return {file.stem: _read(file) for file in files}


def _read(file: Path) -> list[Answer]:
    try:
        lines = file.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{file}: cannot be read as UTF-8 text ({error})") from error
    answers = []
    for number, line in enumerate(lines, start=1):
        cells = line.removesuffix("\r").split("\t")
        if cells == [""]:
            continue
        if len(cells) != 4 or cells[2].lower() not in (YES, NO):
            raise DataError(
                f"{file}: line {number} is no answer of MME: image, question, Yes or No, and the "
                "model's text, parted by tabs"
            )
        answers.append(Answer(*cells))
    return answers
