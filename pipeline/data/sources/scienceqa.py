"""ScienceQA: questions with choices, half of them with an image, in the benchmark's own files.

Reads `problems.json`, `pid_splits.json`, `captions.json` and `images/{split}/{pid}/image.png`. A
problem without an image becomes a record of text alone. What a problem says goes into the record
untouched; nothing is asked of how it will be shown to a model (`scienceqa_prompts.py`). Image files
need not all be there: a missing one is skipped and counted when the shards are written.
"""

import hashlib
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.config import PrepareConfig
from pipeline.data.sources.paths import need_file, need_folder, need_some, read_json
from pipeline.data.sources.record import FileImage, SourceRecord
from pipeline.errors import ConfigError, DataError

SPLITS = ("train", "val", "test")

Problems = dict[str, dict[str, Any]]  # by pid

_IMAGES = "the folder that holds train/, val/ and test/ with <pid>/image.png"
_PROBLEMS = "problems.json (or several such files)"
_TEXTS = ("question", "hint", "lecture", "solution")
_ABOUT = ("subject", "grade", "topic", "skill", "caption")  # may be unknown
_MOST_CHOICES = 26  # A to Z
_FILE_NAME = re.compile(r"(?!\.{1,2}$)[^/\\\0]+")


def load_scienceqa(cfg: PrepareConfig) -> dict[str, Sequence[SourceRecord]]:
    """Load ScienceQA.

    Args:
        cfg: `problems` (of several files the first that holds a pid counts), `images`, `captions`
            (optional), and where a problem belongs: `resplit` (see `split_of`), else the lists
            `splits` of `pid_splits`, else the problem's own split.

    Returns:
        Split -> records. The JSON of a record is the problem as it is, with pid, caption and the
        bytes of its text. Its one caption is the question with its choices: what an image tower is
        adapted with.

    Raises:
        ConfigError: a path is missing, keys contradict each other, or a split has no image at all.
        DataError: a problem lacks a field or holds a wrong value, or a list names unknown pids.
    """
    folder = need_folder("images", cfg.images, _IMAGES)
    problems = _read_problems(cfg.problems)
    captions = _read_captions(cfg.captions)
    splits = {}
    for split, pids in _assign(cfg, problems).items():
        splits[split] = [_record(pid, problems[pid], captions, folder) for pid in pids]
        files = (r.image.path for r in splits[split] if isinstance(r.image, FileImage))
        need_some("images", cfg.images, files)
    return dict(splits)


def split_of(pid: str) -> str:
    """Return the split of a pid in the re-split of the data: train, val or test, about 80:10:10.

    The last digit of the SHA-256 of the pid, as a number: 0 to 7 train, 8 val, 9 test. It depends
    on nothing else, so a pid stays where it is whatever else is loaded. For trials on a part of the
    data only: its scores are not the benchmark's, and questions of one template meet in two splits.
    """
    digit = int.from_bytes(hashlib.sha256(pid.encode()).digest(), "big") % 10
    return {8: "val", 9: "test"}.get(digit, "train")


def _assign(cfg: PrepareConfig, problems: Problems) -> dict[str, list[str]]:
    """Split -> pids, in the order of the files."""
    if cfg.resplit and cfg.pid_splits:
        raise ConfigError(
            f"resplit=true and pid_splits={cfg.pid_splits!r}: these are two ways to split; "
            "leave one out"
        )
    if cfg.pid_splits:
        return _listed(cfg, problems)
    splits: dict[str, list[str]] = {split: [] for split in SPLITS}
    for pid, problem in problems.items():
        splits[split_of(pid) if cfg.resplit else problem["split"]].append(pid)
    unknown = [split for split in cfg.splits if split not in SPLITS]
    if unknown:
        raise ConfigError(
            f"splits={unknown}: no such split without pid_splits; use some of {', '.join(SPLITS)}"
        )
    return {split: splits[split] for split in cfg.splits or SPLITS if splits[split]}


def _listed(cfg: PrepareConfig, problems: Problems) -> dict[str, list[str]]:
    """Splits by the lists of pid_splits.json, whose minitrain and the like are subsets."""
    path = need_file("pid_splits", cfg.pid_splits, "pid_splits.json")
    lists = read_json("pid_splits", path)
    found = {}
    for split in cfg.splits or SPLITS:
        pids = lists.get(split)
        if pids is None or not _FILE_NAME.fullmatch(split):
            raise ConfigError(
                f"splits: {split!r} is no list of {path}; use some of {', '.join(sorted(lists))}"
            )
        if not isinstance(pids, list) or not all(isinstance(pid, str) for pid in pids):
            raise DataError(f"pid_splits={path}: {split!r} is no list of pids; get it again")
        if len(set(pids)) < len(pids):
            twice = next(pid for pid, count in Counter(pids).items() if count > 1)
            raise DataError(f"pid_splits={path}: {split!r} names pid {twice} twice; get it again")
        missing = [pid for pid in pids if pid not in problems]
        if missing:
            raise DataError(
                f"pid_splits={path}: {split!r} names pid {missing[0]} and {len(missing) - 1} more "
                "that problems does not hold; name the whole problems.json, choose other splits, "
                "or leave pid_splits out"
            )
        _check_own_split(path, split, pids, problems)
        found[split] = pids
    return found


def _check_own_split(path: Path, split: str, pids: list[str], problems: Problems) -> None:
    """Refuse lists of another edition: images are found by the problem's own split."""
    for pid in pids:
        own = problems[pid]["split"]
        if split in SPLITS and own != split:
            raise DataError(
                f"pid_splits={path}: pid {pid} is in {split!r}, but its problem says {own!r}; "
                "use files of one edition"
            )


def _read_problems(names: Sequence[str]) -> Problems:
    """All problems, checked; of those that are in several files the first."""
    problems: Problems = {}
    for name in names or [""]:
        path = need_file("problems", name, _PROBLEMS)
        found = read_json("problems", path, unique=True)
        if not found:
            raise DataError(f"problems={path}: holds no problem; name {_PROBLEMS}")
        for pid, problem in found.items():
            fault = _fault(pid, problem)
            if fault:
                raise DataError(f"problems={path}: pid {pid}: {fault}; get the file again")
            known = problems.setdefault(pid, problem)
            for key in ("question", "choices", "answer", "split"):
                if known[key] != problem[key]:
                    raise DataError(
                        f"problems={path}: pid {pid}: another {key} than in a file before; "
                        "use files of one edition"
                    )
    return problems


def _fault(pid: str, problem: Any) -> str | None:
    """What is wrong with a problem, None if nothing is."""
    if not re.fullmatch(r"[0-9A-Za-z_-]+", pid):
        return "not a pid (letters and digits)"
    if not isinstance(problem, dict):
        return "no JSON object"
    needed = (*_TEXTS, "choices", "answer", "image", "split")
    missing = [key for key in needed if key not in problem]
    if missing:
        return f"field {', '.join(missing)} is missing"
    for key in (*_TEXTS, *(key for key in _ABOUT if problem.get(key) is not None)):
        if not isinstance(problem[key], str):
            return f"{key} is {problem[key]!r}, no text"
    if not problem["question"].strip():
        return "question is empty"
    if problem["split"] not in SPLITS:
        return f"unknown split {problem['split']!r}, none of {', '.join(SPLITS)}"
    image = problem["image"]
    if image is not None and not (isinstance(image, str) and _FILE_NAME.fullmatch(image)):
        return f"image is {image!r}, neither a file name nor null"
    return _choice_fault(problem["choices"], problem["answer"])


def _choice_fault(choices: Any, answer: Any) -> str | None:
    if not isinstance(choices, list) or not all(isinstance(each, str) for each in choices):
        return f"choices is {choices!r}, no list of texts"
    if not 2 <= len(choices) <= _MOST_CHOICES:
        return f"{len(choices)} choices, not 2 to {_MOST_CHOICES}"
    if type(answer) is not int or not 0 <= answer < len(choices):
        return f"answer {answer!r} is no index of its {len(choices)} choices"
    return None


def _read_captions(name: str) -> dict[str, str]:
    """pid -> what a captioning model saw; empty where no file is named."""
    if not name:
        return {}
    path = need_file("captions", name, "captions.json")
    captions = read_json("captions", path).get("captions")
    if not isinstance(captions, dict):
        raise DataError(f"captions={path}: holds no object 'captions'; name captions.json")
    for pid, caption in captions.items():
        if not isinstance(caption, str):
            raise DataError(f"captions={path}: pid {pid}: {caption!r} is no text; get it again")
    return captions


def _record(
    pid: str, problem: dict[str, Any], captions: Mapping[str, str], folder: Path
) -> SourceRecord:
    name = problem["image"]
    image = None if name is None else FileImage(folder / problem["split"] / pid / name)
    caption = captions.get(pid, problem.get("caption") or "")
    texts = [problem[key] for key in _TEXTS] + problem["choices"] + [caption]
    return SourceRecord(
        key=pid,
        image=image,
        captions=(f"{problem['question']} {', '.join(problem['choices'])}",),
        image_id=pid,
        extra={
            **problem,
            "pid": pid,
            "caption": caption,
            "text_bytes": sum(len(text.encode(errors="replace")) for text in texts),
        },
    )
