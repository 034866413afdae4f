"""What OpenAI's clients send, read into our words.

What a client asks for and cannot have is refused in words, never left out in silence; nothing that
a request names is fetched. Assumes nothing about the body.
"""

import base64
from collections.abc import Mapping
from types import MappingProxyType
from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, FailFast, Field
from pydantic_core import PydanticCustomError

from pipeline.chat.limits import Limits, Refused, Sampling
from pipeline.chat.model import Asked, ChatModel
from pipeline.data.conversations import MESSAGES, Conversation
from pipeline.data.faults import ContentFault

_MOST_MESSAGES = 200
_MOST_STOPS, _LONGEST_STOP = 4, 200  # as many as OpenAI takes; characters
_LONGEST_NAME = 60  # characters of a name that are sent back
# Keys that would change the answer, with the values that mean what is done here anyway.
_AS_HERE: Mapping[str, tuple[object, ...]] = MappingProxyType(
    {
        "n": (1,),
        "tools": ([],),
        "tool_choice": ("none", "auto"),
        "functions": ([],),
        "function_call": ("none", "auto"),
        "logprobs": (False,),
        "top_logprobs": (0,),
        "logit_bias": ({},),
        "response_format": ({"type": "text"},),
        "modalities": (["text"],),
        "presence_penalty": (0,),
        "frequency_penalty": (0,),
    }
)
# Keys that change no answer: notes for OpenAI's books, its prices and its speed.
_HARMLESS = frozenset(
    {
        "metadata",
        "parallel_tool_calls",
        "prediction",
        "prompt_cache_key",
        "prompt_cache_options",
        "prompt_cache_retention",
        "safety_identifier",
        "service_tier",
        "store",
        "user",
    }
)


def _as_parts(content: object) -> object:
    """A text alone is the one part of it."""
    if isinstance(content, str):
        return [{"type": "text", "text": content}]
    if not isinstance(content, list):
        raise PydanticCustomError("no_content", "it must be a text or a list of parts")
    return content


def _as_stops(stop: object) -> object:
    """A text alone is the one that ends the answer; none and an empty one are nothing."""
    if isinstance(stop, str):
        return [stop] if stop else []
    return [] if stop is None else stop


Stop = Annotated[str, Field(min_length=1, max_length=_LONGEST_STOP)]
Whole = Annotated[int, Field(ge=-(2**63), lt=2**63)]


class ImageURL(BaseModel):
    """A data URL."""

    url: str


class Part(BaseModel):
    """A piece of a message."""

    type: Literal["text", "image_url"]
    text: str = ""
    image_url: ImageURL | None = None


class ChatMessage(BaseModel):
    """A turn; a content that is a text alone is one part."""

    role: Literal["system", "developer", "user", "assistant"]
    # The first error is enough: of a million parts that are none, a million would be kept.
    content: Annotated[list[Part], FailFast(), BeforeValidator(_as_parts)]

    @property
    def text(self) -> str:
        """All that is text in it."""
        return "\n".join(each.text for each in self.content if each.type == "text")


class StreamOptions(BaseModel):
    """include_usage: a last chunk counts the tokens."""

    include_usage: bool = False


class Completion(BaseModel, extra="allow"):
    """The request. Of what is left out the server's own settings hold."""

    model: str = ""
    messages: list[ChatMessage] = Field(min_length=1, max_length=_MOST_MESSAGES)
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    temperature: float | None = None
    top_p: float | None = None
    max_tokens: Whole | None = None
    max_completion_tokens: Whole | None = None
    seed: Whole | None = None
    stop: Annotated[list[Stop], FailFast(), BeforeValidator(_as_stops)] = Field(
        default_factory=list, max_length=_MOST_STOPS
    )

    def asked(self, model: ChatModel) -> Asked:
        """The question to a model.

        Raises:
            Refused: something is wanted that there is not, roles that are no conversation, more
                than one image, or one that cannot be used.
        """
        self._check_options()
        conversation = self._conversation()
        images = [part.image_url for each in self.messages for part in each.content if _shows(part)]
        if len(images) > 1:
            raise Refused(f"{len(images)} images were sent; a conversation is about one.")
        picture = None
        if images:
            picture = model.picture(model.limits.open_image(_bytes_of(images[0])))
        return Asked(conversation, self._sampling(model.limits), image=picture)

    def _check_options(self) -> None:
        for key, value in (self.model_extra or {}).items():
            if value is None or key in _HARMLESS or value in _AS_HERE.get(key, ()):
                continue
            raise Refused(f"{shown(key)} is not supported here; leave it out.")

    def _conversation(self) -> Conversation:
        turns = [
            {"role": "system" if each.role == "developer" else each.role, "content": each.text}
            for each in self.messages
        ]
        if turns[-1]["role"] != "user":
            raise Refused("The last message must be the user's: it is what is answered.")
        answered = [*turns, {"role": "assistant", "content": ""}]
        try:
            return Conversation.of({MESSAGES: answered}).open
        except ContentFault as fault:
            raise Refused(
                f"The messages are no conversation ({fault.detail}); user and assistant take "
                "turns, a system message may come first."
            ) from fault

    def _sampling(self, limits: Limits) -> Sampling:
        """As asked; wanting a longer answer than there may be is no fault of the client's."""
        own = Sampling.of(limits.config)
        lengths = (self.max_completion_tokens, self.max_tokens, own.max_new_tokens)
        length = next(each for each in lengths if each is not None)
        return Sampling(
            own.temperature if self.temperature is None else self.temperature,
            own.top_p if self.top_p is None else self.top_p,
            min(length, own.max_new_tokens),
            own.seed if self.seed is None else self.seed,
        )


def shown(name: str) -> str:
    """A name that a client sent, as it may be sent back: short, and text that can be encoded."""
    return ascii(name[:_LONGEST_NAME])[1:-1]


def _shows(part: Part) -> bool:
    return part.type == "image_url"


def _bytes_of(image: ImageURL | None) -> bytes:
    """What a data URL holds."""
    head, comma, encoded = ("" if image is None else image.url).partition(",")
    if not head.startswith("data:") or not head.endswith(";base64") or not comma:
        raise Refused("An image must be a data URL: data:image/png;base64,...")
    try:
        return base64.b64decode(encoded, validate=True)
    except ValueError as error:
        raise Refused(f"The image's data URL is no base64 ({error}).") from error
