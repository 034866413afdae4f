"""Talking in a terminal: lines in, answers out as they grow.

Reads and writes plain text streams, so that it can be used through a pipe too.
"""

import queue
import threading
from collections.abc import Callable, Sequence
from io import TextIOWrapper
from pathlib import Path
from typing import TextIO

from pipeline.chat.desk import LENGTH, STOPPED, TIME, Answer, follow
from pipeline.chat.limits import Refused, Sampling
from pipeline.chat.model import ChatModel
from pipeline.chat.side_by_side import SideBySide
from pipeline.presence import Presence

HELP = (
    "/image FILE shows an image and starts anew, /clear starts anew, /retry asks again,\n"
    "/set temperature=0.7 top_p=0.9 tokens=100 seed=1, /quit ends; Enter stops an answer."
)

_CUT = {LENGTH: "[cut: as long as it may be]", TIME: "[cut: out of time]", STOPPED: "[stopped]"}
_LOOK_EVERY = 0.5  # seconds, for a wish to stop
_SETTINGS: dict[str, tuple[str, Callable[[str], float]]] = {
    "temperature": ("temperature", float),
    "top_p": ("top_p", float),
    "tokens": ("max_new_tokens", int),
    "seed": ("seed", int),
}


class Terminal:
    """One person at a keyboard, and one or two models that answer the same questions."""

    def __init__(
        self, models: Sequence[ChatModel], out: TextIO, lines: TextIO, presence: Presence
    ) -> None:
        for each in (lines, out):
            if isinstance(each, TextIOWrapper):  # a byte that is no text must not end the talk
                each.reconfigure(errors="replace")
        self._models, self._out, self._presence = models, out, presence
        self._talks = SideBySide(models)
        self._sampling = Sampling.of(models[0].limits.config)
        self._lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._enter = threading.Event()  # an empty line came
        # In a thread of its own, so that an answer can be stopped, and a wish to stop be heard.
        threading.Thread(target=self._read, args=(lines,), daemon=True).start()

    def run(self) -> None:
        """Until the lines end, /quit, or a wish to stop."""
        self._write(f"{HELP}\n")
        while True:
            self._write("> ")
            line = self._next_line()
            if line is None or line == "/quit":
                return
            try:
                self._obey(line)
            except Refused as refusal:
                self._write(f"{refusal}\n")

    def _obey(self, line: str) -> None:
        command, _, rest = line.partition(" ")
        if command == "/image":
            image = self._models[0].limits.open_file(_path(rest.strip()))
            self._talks.show(image)
        elif command == "/clear":
            self._talks.clear()
        elif command == "/set":
            self._sampling = self._changed(rest)
            self._write(f"{self._sampling}\n")
        elif command == "/retry":
            self._tell(self._talks.retry(self._sampling))
        elif command.startswith("/"):
            self._write(f"{HELP}\n")
        else:
            self._tell(self._talks.ask(line, self._sampling))

    def _tell(self, answers: Sequence[Answer]) -> None:
        """Writes one answer after the other, each as it grows, or why there is none."""
        self._enter.clear()
        for model, answer in zip(self._models, answers, strict=True):
            if len(answers) > 1:
                self._write(f"[{model.name}] ")
            written = 0
            for _ in follow([answer]):
                self._write(answer.text[written:])
                written = len(answer.text)
                if self._interrupted():
                    self._talks.stop()
            try:
                answer.check()
                remarks = [_CUT.get(answer.over or "", ""), answer.note]
            except Refused as refusal:
                remarks = [str(refusal)]
            said = [""] if written else []
            self._write(" ".join([*said, *filter(None, remarks)]) + "\n")

    def _changed(self, settings: str) -> Sampling:
        values = vars(self._sampling).copy()
        for each in settings.split():
            key, _, value = each.partition("=")
            try:
                name, kind = _SETTINGS[key]
                values[name] = kind(value)
            except (KeyError, ValueError) as error:
                raise Refused(f"{each}: set {', '.join(_SETTINGS)} to numbers") from error
        changed = Sampling(**values)
        self._models[0].limits.check_sampling(changed)
        return changed

    def _interrupted(self) -> bool:
        """Whether Enter was pressed, or a stop is asked for."""
        self._presence.beat()
        return self._enter.is_set() or self._presence.stop_asked() is not None

    def _next_line(self) -> str | None:
        while self._presence.stop_asked() is None:
            self._presence.beat()
            try:
                return self._lines.get(timeout=_LOOK_EVERY)
            except queue.Empty:
                continue
        return None

    def _read(self, lines: TextIO) -> None:
        while line := lines.readline():
            if text := line.strip():
                self._lines.put(text)
            else:
                self._enter.set()
        self._lines.put(None)

    def _write(self, text: str) -> None:
        self._out.write(text)
        self._out.flush()


def _path(text: str) -> Path:
    """A path as a shell reads it; raises Refused for the home of nobody."""
    try:
        return Path(text).expanduser()
    except RuntimeError as error:
        raise Refused(f"{text}: there is no such home folder; name an image file.") from error
