"""What OpenAI's clients send, read into our words.

What a client asks for and cannot have is refused in words, never left out in silence; nothing that
a request names is fetched. Assumes nothing about the body.
"""

import base64
import binascii
from collections.abc import Mapping
from types import MappingProxyType
from typing import Literal

from pydantic import BaseModel, Field

from pipeline.chat.limits import Limits, Refused, Sampling
from pipeline.chat.model import Asked, ChatModel
from pipeline.data.conversations import MESSAGES, Conversation
from pipeline.data.faults import ContentFault

_MOST_MESSAGES = 200
# Keys that would change the answer, with the values that mean what is done here anyway.
_NOT_HERE: Mapping[str, tuple[object, ...]] = MappingProxyType(
    {
        "n": (None, 1),
        "stop": (None, [], ""),
        "tools": (None, []),
        "logprobs": (None, False),
        "response_format": (None, {"type": "text"}),
        "presence_penalty": (None, 0),
        "frequency_penalty": (None, 0),
    }
)


class ImageURL(BaseModel):
    """A data URL."""

    url: str


class Part(BaseModel):
    """A piece of a message."""

    type: Literal["text", "image_url"]
    text: str = ""
    image_url: ImageURL | None = None


class ChatMessage(BaseModel):
    """A turn."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[Part]

    @property
    def parts(self) -> list[Part]:
        """Its pieces, whichever way it came."""
        whole = self.content
        return [Part(type="text", text=whole)] if isinstance(whole, str) else whole

    @property
    def text(self) -> str:
        """All that is text in it."""
        return "\n".join(each.text for each in self.parts if each.type == "text")


class StreamOptions(BaseModel):
    """include_usage: a last chunk counts the tokens."""

    include_usage: bool = False


class Completion(BaseModel, extra="allow"):
    """The request. Of what is left out the server's own settings hold."""

    model: str = ""
    messages: list[ChatMessage] = Field(min_length=1, max_length=_MOST_MESSAGES)
    stream: bool = False
    stream_options: StreamOptions | None = None
    temperature: float | None = None
    top_p: float | None = None
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    seed: int | None = None

    def asked(self, model: ChatModel) -> Asked:
        """The question to a model.

        Raises:
            Refused: something is wanted that there is not, roles that are no conversation, more
                than one image, or one that cannot be used.
        """
        for key, fits in _NOT_HERE.items():
            if (self.model_extra or {}).get(key) not in fits:
                raise Refused(f"{key} is not supported here; leave it out.")
        conversation = self._conversation()
        images = [part.image_url for each in self.messages for part in each.parts if _shows(part)]
        if len(images) > 1:
            raise Refused(f"{len(images)} images were sent; a conversation is about one.")
        picture = None
        if images:
            picture = model.picture(model.limits.open_image(_bytes_of(images[0])))
        return Asked(conversation, self._sampling(model.limits), image=picture)

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


def _shows(part: Part) -> bool:
    return part.type == "image_url"


def _bytes_of(image: ImageURL | None) -> bytes:
    """What a data URL holds."""
    head, comma, encoded = ("" if image is None else image.url).partition(",")
    if not head.startswith("data:") or not head.endswith(";base64") or not comma:
        raise Refused("An image must be a data URL: data:image/png;base64,...")
    try:
        return base64.b64decode(encoded, validate=True)
    except binascii.Error as error:
        raise Refused(f"The image's data URL is no base64 ({error}).") from error
