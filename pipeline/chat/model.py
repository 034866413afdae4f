"""A model in memory that answers: from a conversation to text, token by token.

Keeps the keys and values of the last conversations, so that a next turn costs its own tokens. Has
no lock: everything here but `picture` runs at the model's desk.
"""

import time
from collections import OrderedDict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from transformers import PreTrainedTokenizerBase, TemperatureLogitsWarper, TopPLogitsWarper

from pipeline.chat.desk import END, LENGTH, STOPPED, TIME, Answer, Desk
from pipeline.chat.limits import Limits, Refused, Sampling
from pipeline.data.conversation_rows import TOO_LONG, ConversationRows
from pipeline.data.conversations import Conversation
from pipeline.data.faults import ContentFault
from pipeline.models.cached_row import CachedRow
from pipeline.models.encoder import Transform
from pipeline.models.multimodal import MultimodalLM

_UNFINISHED = "\N{REPLACEMENT CHARACTER}"  # a character of which not all bytes are there yet

# transformers leaves their constructors untyped.
_Temperature: Any = TemperatureLogitsWarper
_TopP: Any = TopPLogitsWarper


@dataclass(frozen=True)
class Asked:
    """A question with all that came before it.

    Attributes: said: as `ConversationRows.prompt` takes it; image: (3, H, W), from
    `ChatModel.picture`; kept_as: whose keys and values these are; None keeps none (a conversation
    and its image have one such name).
    """

    conversation: Conversation
    sampling: Sampling
    said: Sequence[Sequence[int]] = ()
    image: Tensor | None = None
    kept_as: Hashable | None = None


@dataclass(frozen=True)
class ChatModel:
    """One checkpoint.

    Attributes: models: for conversations without an image, and about one; rows: as the model
    learnt them, `max_tokens` of them at most; transform: of images, None where the model sees none;
    ends: tokens that end an answer.
    """

    name: str
    models: tuple[MultimodalLM, MultimodalLM]
    tokenizer: PreTrainedTokenizerBase
    rows: ConversationRows
    transform: Transform | None
    ends: Sequence[int]
    limits: Limits
    desk: Desk
    _kept: OrderedDict[Hashable, CachedRow] = field(default_factory=OrderedDict)

    def picture(self, image: Image.Image) -> Tensor:
        """(3, H, W) of an image that the limits let in; raises Refused where it sees none."""
        if self.transform is None:
            raise Refused(f"{self.name} sees no images; ask it without one.")
        with self.limits.decoding:
            return self.transform(image)

    def put(self, asked: Asked) -> Answer:
        """Has a question answered in its turn.

        Raises:
            Refused: it does not keep to the limits, or too many wait; later, from
                `Answer.check`, where the question leaves no room for an answer.
        """
        self.limits.check(asked.conversation)
        self.limits.check_sampling(asked.sampling)
        return self.desk.put(lambda answer: self.answer(asked, answer))

    def answer(self, asked: Asked, answer: Answer) -> None:
        """Answers a question; raises Refused where it leaves no room for an answer."""
        ids = self._prompt(asked, answer)
        row = self._row(asked)
        room = min(asked.sampling.max_new_tokens, self.rows.max_tokens - len(ids))
        generator = torch.Generator().manual_seed(asked.sampling.seed)
        until = time.monotonic() + self.limits.config.max_seconds
        new: list[int] = []
        over = LENGTH
        while len(new) < room:
            if answer.stopped or time.monotonic() > until:
                over = STOPPED if answer.stopped else TIME
                break
            new.append(choose(row.next_logits([*ids, *new]), asked.sampling, generator))
            answer.tokens = (len(ids), len(new))
            self._say(answer, new)
            if new[-1] in self.ends:
                over = END
                break
        if asked.kept_as is not None:
            self._kept[asked.kept_as] = row
        self._say(answer, new, whole=True)
        answer.said = tuple(new) if over == END else ()
        answer.over = over

    def _prompt(self, asked: Asked, answer: Answer) -> list[int]:
        """The tokens of what was said; of a row's, half at most are kept free for the answer."""
        longest = self.rows.max_tokens
        free = min(asked.sampling.max_new_tokens, longest // 2)
        rows = replace(self.rows, max_tokens=longest - free + 1)
        seen = asked.image is not None
        try:
            row = rows.prompt(asked.conversation, image=seen, said=asked.said)
        except ContentFault as fault:
            raise Refused(self._cannot(fault)) from fault
        if row.cut:
            answer.note = "The beginning of the conversation no longer fits and was left out."
        return list(row.ids)

    def _cannot(self, fault: ContentFault) -> str:
        if fault.reason == TOO_LONG:
            return f"The message is too long for {self.name}: {fault.detail}. Shorten it."
        return f"{self.name} cannot be asked this: {fault}. Ask otherwise, or start anew."

    @torch.no_grad()
    def _row(self, asked: Asked) -> CachedRow:
        """Taken out of what is kept: a pass that fails leaves a row that cannot be gone on from."""
        row = None if asked.kept_as is None else self._kept.pop(asked.kept_as, None)
        if row is not None:
            return row
        if asked.kept_as is not None and len(self._kept) >= self.limits.config.cached:
            self._kept.popitem(last=False)
        model = self.models[asked.image is not None]
        if asked.image is None:
            return CachedRow(model, None)
        weight = next(model.st.parameters())
        image = asked.image[None].to(weight.device, weight.dtype)
        return CachedRow(model, model.image_embeddings(image))

    def _say(self, answer: Answer, new: Sequence[int], *, whole: bool = False) -> None:
        text = str(self.tokenizer.decode(list(new), skip_special_tokens=True)).lstrip()
        if whole or not text.endswith(_UNFINISHED):
            answer.text = text


def choose(logits: Tensor, sampling: Sampling, generator: torch.Generator) -> int:
    """The next token.

    Args:
        logits: (V,).
        sampling: temperature 0 takes the likeliest.
        generator: on the CPU, so that a seed means the same on every device.
    """
    if sampling.temperature == 0:
        return int(logits.argmax())
    scores = _Temperature(sampling.temperature)(None, logits[None].cpu())
    scores = _TopP(sampling.top_p)(None, scores)
    return int(torch.multinomial(scores.softmax(-1), 1, generator=generator))
