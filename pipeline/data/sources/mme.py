"""MME: images of 14 subtasks, each with questions that are answered by yes or no.

Reads the benchmark's own folders, `{subtask}/images/` with `{subtask}/questions_answers_YN/`, or
both flat in `{subtask}/`; and, for parts of it, `{subtask}.txt` tables of (image, question, answer)
beside one `images/`. A record is an image with all its questions, so that pairs stay together
wherever records go (the benchmark's accuracy+ needs both). An image whose questions are not all
usable is skipped and counted, never asked by half. Does not assume that the benchmark is whole.
Hidden files are none of it: macOS puts a "._1.txt" beside each "1.txt".
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.config import PrepareConfig
from pipeline.data.faults import ContentFault
from pipeline.data.images import EXTENSIONS
from pipeline.data.sources.paths import need_folder, need_some
from pipeline.data.sources.record import (
    LONGEST_KEY,
    FileImage,
    SourceRecord,
    hashed_key,
    make_key,
)
from pipeline.errors import ConfigError, DataError

SPLIT = "test"  # the benchmark has no other
ANSWERS = {"yes": "Yes", "no": "No"}

_IMAGES, _QUESTIONS = "images", "questions_answers_YN"
_TEXTS = "[!.]*.txt"
_WHAT = "MME's folder, which holds existence/, count/ and so on (or existence.txt and images/)"


@dataclass
class _Asked:
    """An image's questions as its file has them; `bad` says what is wrong with one of them."""

    subtask: str
    image: Path  # may not be there
    questions: list[tuple[str, str]] = field(default_factory=list)  # with "Yes" or "No"
    bad: ContentFault | None = None

    @property
    def fault(self) -> ContentFault | None:
        """Why they cannot be asked."""
        if self.bad is not None:
            return self.bad
        if not self.questions:
            return ContentFault("no questions", detail=self.image.name)
        if len(self.questions) % 2:
            detail = f"{self.image.name}: {len(self.questions)}"
            return ContentFault("odd number of questions", detail=detail)
        return None

    def add(self, cells: Sequence[str], where: str) -> None:
        """Adds a line's question and answer."""
        question, answer = cells if len(cells) == 2 else ("", "")
        if not question.strip() or answer.strip().lower() not in ANSWERS:
            self.bad = self.bad or ContentFault("unreadable question", detail=where)
            return
        self.questions.append((question.strip(), ANSWERS[answer.strip().lower()]))


def load_mme(cfg: PrepareConfig) -> dict[str, Sequence[SourceRecord]]:
    """Load MME.

    Args:
        cfg: `images`, the benchmark's folder.

    Returns:
        {"test": records}, by subtask and image name. The JSON of a record holds its `subtask`, the
        image's file name and its `questions`, each with its answer, Yes or No.

    Raises:
        ConfigError: the folder is missing, or holds nothing of MME, or none of the images.
        DataError: a file with questions cannot be read.
    """
    root = need_folder("images", cfg.images, _WHAT)
    asked = [each for subtask in _subtasks(root) for each in _asked(root, subtask)]
    if not asked:
        raise ConfigError(
            f"images={cfg.images!r}: holds no questions of MME; set images to {_WHAT}"
        )
    need_some("images", cfg.images, (each.image for each in asked))
    return {SPLIT: [_record(each, key) for each, key in zip(asked, _keys(asked), strict=True)]}


def question_files(root: Path) -> list[Path]:
    """All files with questions, in order."""
    return [file for subtask in _subtasks(root) for file in _files(root, subtask)]


def _subtasks(root: Path) -> list[str]:
    """Folders with questions in either layout, and tables beside `images/`."""
    folders = [each.name for each in root.iterdir() if each.is_dir() and _files(root, each.name)]
    tables = root.glob(_TEXTS) if (root / _IMAGES).is_dir() else ()
    return sorted({*folders, *(each.stem for each in tables)} - {_IMAGES})


def _files(root: Path, subtask: str) -> list[Path]:
    """The files with a subtask's questions: one, or one for each image."""
    table = root / f"{subtask}.txt"
    if table.is_file():
        return [table]
    folder = root / subtask
    inner = folder / _QUESTIONS
    return sorted((inner if inner.is_dir() else folder).glob(_TEXTS))


def _asked(root: Path, subtask: str) -> Iterator[_Asked]:
    files = _files(root, subtask)
    if files == [root / f"{subtask}.txt"]:
        yield from _table(files[0], root / _IMAGES)
        return
    folder = root / subtask
    images = _images(folder / _IMAGES if (folder / _IMAGES).is_dir() else folder)
    named = {each.stem: each for each in images}  # of 1.JPG and 1.png the latter
    for file in files:
        found = _Asked(subtask, named.get(file.stem, folder / f"{file.stem}.jpg"))
        for number, line in _lines(file):
            found.add(line.split("\t"), f"{file.name}, line {number}")
        yield found
    stems = {file.stem for file in files}
    for image in images:
        if image.stem not in stems or image != named[image.stem]:
            yield _Asked(subtask, image)


def _table(file: Path, images: Path) -> Iterator[_Asked]:
    """The images that a table names, in its order."""
    found: dict[str, _Asked] = {}
    for number, line in _lines(file):
        name, *cells = line.split("\t")
        if not name or Path(name).name != name:
            raise DataError(
                f"{file}: line {number} does not start with an image's name; a line is image, "
                "question, and Yes or No, parted by tabs"
            )
        asked = found.setdefault(name, _Asked(file.stem, images / name))
        asked.add(cells, f"{file.name}, line {number}")
    yield from found.values()


def _images(folder: Path) -> list[Path]:
    """Image files in order, without hidden ones."""
    endings = tuple(f".{extension}" for extension in EXTENSIONS)
    shown = (each for each in sorted(folder.iterdir()) if not each.name.startswith("."))
    return [each for each in shown if each.name.lower().endswith(endings)]


def _lines(file: Path) -> Iterator[tuple[int, str]]:
    """The numbered lines of a file that are not blank."""
    try:
        text = file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{file}: cannot be read as UTF-8 text ({error}); get it again") from error
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            yield number, line.removesuffix("\r")


def _keys(asked: Sequence[_Asked]) -> list[str]:
    """Subtask and image's name, with its extension and a hash where two would be called alike.

    One that is skipped does not rename one that is not.
    """
    short = [make_key(f"{each.subtask}-{each.image.stem}") for each in asked]
    uses = Counter(short)
    usable = Counter(key for key, each in zip(short, asked, strict=True) if each.fault is None)
    keys = []
    for key, each in zip(short, asked, strict=True):
        alone = uses[key] == 1 or (usable[key] == 1 and each.fault is None)
        name = f"{each.subtask}-{each.image.name}"
        keys.append(key if alone and len(key) <= LONGEST_KEY else hashed_key(name))
    return keys


def _record(asked: _Asked, key: str) -> SourceRecord:
    fault = asked.fault
    return SourceRecord(
        key=key,
        image=FileImage(asked.image),
        captions=tuple(question for question, _ in asked.questions),
        image_id=asked.image.name,
        extra={
            "subtask": asked.subtask,
            "questions": [{"question": q, "answer": a} for q, a in asked.questions],
        },
        fault=None if fault is None else ContentFault(fault.reason, key=key, detail=fault.detail),
    )
