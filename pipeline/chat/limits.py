"""What comes from outside, questions, settings and image files: checked, or refused in words.

A refusal is meant for the person or program that asks, never for the log. Assumes nothing about
what comes in. The guards for images are the data reader's.
"""

import threading
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path

from PIL import Image

from pipeline.config import ChatConfig
from pipeline.data.conversations import Conversation
from pipeline.data.faults import ContentFault
from pipeline.data.images import check_bytes, decode_image

_SHORT_SIDE = 512  # pixels at least that are kept of a larger image: no tower sees more
_HISTORY = 10  # characters of a conversation, in `max_characters`
_LEAST_TEMPERATURE = 0.01  # logits are divided by it; much less and they are no numbers any more
_LARGEST_SEED = 2**63 - 1


class Refused(Exception):  # noqa: N818 - an answer to who asks, not an error of ours
    """This cannot be answered; the message says why and what to do. `status` is HTTP's for it."""

    def __init__(self, message: str, status: HTTPStatus = HTTPStatus.BAD_REQUEST) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True)
class Sampling:
    """How the tokens of an answer are chosen. temperature 0: the likeliest, whatever the rest."""

    temperature: float
    top_p: float
    max_new_tokens: int
    seed: int

    @classmethod
    def of(cls, config: ChatConfig) -> "Sampling":
        """What the recipe starts from."""
        return cls(config.temperature, config.top_p, config.max_new_tokens, config.seed)


@dataclass(frozen=True)
class Limits:
    """Of one server, as the recipe sets them.

    Attributes: decoding: held by who decodes or scales an image, which takes many times the memory
    of its file: one image at a time.
    """

    config: ChatConfig
    decoding: threading.Lock

    @classmethod
    def of(cls, config: ChatConfig) -> "Limits":
        """The limits of a recipe."""
        return cls(config, threading.Lock())

    def check_sampling(self, sampling: Sampling) -> None:
        """Raises Refused for settings that nothing can be chosen by, or for too long an answer."""
        longest, heat = self.config.max_new_tokens, sampling.temperature
        for name, value, fits, wanted in (
            (
                "temperature",
                heat,
                heat == 0 or _LEAST_TEMPERATURE <= heat <= 10,
                f"0, or {_LEAST_TEMPERATURE} to 10",
            ),
            ("top_p", sampling.top_p, 0 < sampling.top_p <= 1, "above 0 and up to 1"),
            ("seed", sampling.seed, 0 <= sampling.seed <= _LARGEST_SEED, "0 or more"),
            (
                "the length of an answer",
                sampling.max_new_tokens,
                1 <= sampling.max_new_tokens <= longest,
                f"1 to {longest} tokens",
            ),
        ):
            if not fits:
                raise Refused(f"{name} is {value:g}; it can be {wanted}")

    def check(self, conversation: Conversation) -> None:
        """Raises Refused for a last question that is empty or too long, or a talk that is no text
        or too long.
        """
        question, most = conversation.exchanges[-1].question, self.config.max_characters
        if not question.strip():
            raise Refused("The message is empty; write a question.")
        if len(question) > most:
            raise Refused(
                f"The message has {len(question):,} characters; up to {most:,} are read. "
                "Shorten it.",
                HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
            )
        texts = [each["content"] for each in conversation.messages()]
        if not all(map(_is_text, texts)):
            raise Refused(
                "The message holds half of a character (a lone surrogate); remove or repair it."
            )
        whole = sum(map(len, texts))
        if whole > _HISTORY * most:
            raise Refused(
                f"The conversation has {whole:,} characters; up to {_HISTORY * most:,} are read. "
                "Start a new one.",
                HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
            )

    def open_file(self, path: Path) -> Image.Image:
        """`open_image` of a file's bytes; raises what that does."""
        try:
            if not path.is_file():  # a pipe would never end
                raise Refused(f"{path} is no file; name an image file.")
            self._check_bytes(path.stat().st_size)
            data = path.read_bytes()
        except OSError as error:
            raise Refused(f"{path} cannot be read ({error.strerror}).") from error
        return self.open_image(data)

    def open_image(self, data: bytes) -> Image.Image:
        """An image file's bytes as an RGB image; of a large one, a smaller copy.

        Raises:
            Refused: it is too large in bytes or pixels, too thin, damaged, or no image.
        """
        self._check_bytes(len(data))
        try:
            with self.decoding:
                return _shrunk(
                    decode_image(data, max_pixels=self.config.max_pixels, draft_size=_SHORT_SIDE)
                )
        except ContentFault as fault:
            raise Refused(f"The image cannot be used: {fault}. Choose another file.") from fault

    def _check_bytes(self, size: int) -> None:
        try:
            check_bytes(size, self.config.max_image_bytes)
        except ContentFault as fault:
            message = f"The image cannot be used: {fault}. Choose a smaller file."
            raise Refused(message, HTTPStatus.REQUEST_ENTITY_TOO_LARGE) from fault


def _is_text(text: str) -> bool:
    """Whether it has a UTF-8 form, which tokenizers and files need."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _shrunk(image: Image.Image) -> Image.Image:
    shrink = _SHORT_SIDE / min(image.size)
    if shrink >= 1:
        return image
    width, height = (max(round(side * shrink), 1) for side in image.size)
    return image.resize((width, height), Image.Resampling.BICUBIC)
