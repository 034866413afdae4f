"""Where questions to one model wait: one is answered at a time, in order, a bounded number waits.

Answers grow in a thread of the desk's own, whoever reads them and however slowly; so nobody who
goes away, or stops reading, keeps a model from the others. Knows nothing of models.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from http import HTTPStatus

from pipeline.chat.limits import Refused

log = logging.getLogger("pipeline")

TICK = 0.04  # seconds between two looks at what has grown: as smooth as eyes need

END, LENGTH, TIME, STOPPED = "end", "length", "time", "stopped"  # why an answer is over


class Answer:
    """An answer under way: its text so far, whether it is over and why.

    Attributes: text: grows at its end alone; tokens: (of the prompt, of the answer); over: END,
    LENGTH, TIME or STOPPED; None while it may grow; note: what the reader should know beside it;
    said: the tokens of `text`, none where it did not come to its end.
    """

    def __init__(self) -> None:
        self.text = ""
        self.note = ""
        self.tokens = (0, 0)
        self.said: tuple[int, ...] = ()
        self.over: str | None = None
        self._refusal: Refused | None = None
        self._stopped = threading.Event()
        self._begun = False
        self._beginning = threading.Lock()

    @property
    def stopped(self) -> bool:
        """Whether somebody wants it to end."""
        return self._stopped.is_set()

    @property
    def given(self) -> bool:
        """Whether it is over and there is one: not refused, nor stopped before it began."""
        return self.over is not None and self._refusal is None and self.tokens[1] > 0

    def begin(self) -> bool:
        """Whether it may begin: nobody has stopped it."""
        with self._beginning:
            self._begun = not self.stopped
            return self._begun

    def stop(self) -> None:
        """It ends after the token under way, or at once where it has not begun."""
        with self._beginning:
            self._stopped.set()
            if not self._begun:
                self.over = STOPPED

    def refuse(self, refusal: Refused) -> None:
        """Ends it: whoever reads it next gets `refusal`."""
        self._refusal = refusal
        self.over = STOPPED

    def check(self) -> None:
        """Raises Refused where it cannot be given."""
        if self._refusal is not None:
            raise self._refusal


def follow(answers: Sequence[Answer]) -> Iterator[None]:
    """Comes back whenever one of some answers has grown, and a last time when all are over.

    They are stopped where the reader goes away before that.
    """
    seen: list[tuple[str, str | None]] = []
    try:
        while True:
            now = [(each.text, each.over) for each in answers]
            if now != seen:
                yield
            if all(over is not None for _, over in now):
                return
            seen = now
            time.sleep(TICK)
    finally:
        for each in answers:
            if each.over is None:
                each.stop()


Work = Callable[[Answer], None]


class Desk:
    """The one place that runs a model.

    waiting: questions that may wait beside the one that is answered.
    """

    def __init__(self, waiting: int) -> None:
        self._most = waiting
        self._waiting: deque[tuple[Answer, Work]] = deque()
        self._closed = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="desk", daemon=True)
        self._thread.start()

    def put(self, work: Work) -> Answer:
        """Has `work` done in its turn, in the desk's thread; it fills the answer that is returned.

        Raises:
            Refused: too many wait already.
        """
        answer = Answer()
        with self._changed:
            # Those that were stopped while they waited keep nobody out.
            self._waiting = deque(each for each in self._waiting if not each[0].stopped)
            if len(self._waiting) >= self._most:
                raise Refused(
                    f"The model is busy: {self._most} questions wait already. "
                    "Ask again in a moment.",
                    HTTPStatus.SERVICE_UNAVAILABLE,
                )
            self._waiting.append((answer, work))
            self._changed.notify()
        return answer

    def close(self) -> None:
        """Answers what waits, and ends."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()

    def _next(self) -> tuple[Answer, Work] | None:
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._closed)
            return self._waiting.popleft() if self._waiting else None

    def _run(self) -> None:
        while (job := self._next()) is not None:
            answer, work = job
            try:
                if answer.begin():
                    work(answer)
            except Refused as refusal:
                answer.refuse(refusal)
            except Exception:  # one question that fails must not end the server
                log.exception("chat          a question failed")
                answer.refuse(
                    Refused(
                        "The model failed on this question; the server's log says why. "
                        "Ask otherwise, or start a new conversation.",
                        HTTPStatus.INTERNAL_SERVER_ERROR,
                    )
                )
            answer.over = answer.over or STOPPED
