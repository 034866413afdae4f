"""Generation on every rank: what a model goes on with behind batches of prompts.

Works on a model under ZeRO-3 (`synced`: every rank generates equally often, dummies included) and
on a plain one. Knows nothing about scores or files.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from transformers import PreTrainedTokenizerBase

from pipeline.config import EvaluateConfig
from pipeline.data.collate import Batch, LanguageBatch, to_device
from pipeline.errors import ConfigError
from pipeline.models.llm import context_length
from pipeline.models.multimodal import MultimodalLM


@dataclass(frozen=True)
class Continued:
    """A batch of prompts, on the model's device, and what was generated behind each.

    Attributes: texts: as they were decoded, one a row, none for a dummy; ended: whether a text came
    to its end, or was cut at the most tokens that were allowed.
    """

    batch: LanguageBatch
    texts: list[str]
    ended: list[bool]

    def by_record(self) -> dict[str, list[str]]:
        """Record key -> the texts of its rows in order."""
        found: dict[str, list[str]] = {key: [] for key in self.batch.keys}
        owners = self.batch.owner.tolist() if self.batch.keys else []
        for owner, text in zip(owners, self.texts, strict=True):
            found[self.batch.keys[owner]].append(text)
        return found


def continuations(
    model: MultimodalLM,
    batches: Iterable[Batch],
    tokenizer: PreTrainedTokenizerBase,
    settings: EvaluateConfig,
    *,
    device: torch.device,
    dtype: torch.dtype,
    synced: bool = False,
) -> Iterator[Continued]:
    """Greedy or beam search behind this rank's prompt batches, one by one."""
    ends = end_ids(tokenizer, settings.stop)
    context = context_length(model.llm.config)
    for batch in batches:
        moved = to_device(batch, device, dtype)
        assert isinstance(moved, LanguageBatch)
        tokens = model.generate(
            images=moved.images,
            features=moved.features,
            image_rows=moved.image_rows,
            input_ids=moved.input_ids,
            attention_mask=moved.attention_mask,
            max_new_tokens=_room(settings.max_new_tokens, context, moved.input_ids.shape[1]),
            num_beams=settings.beams,
            length_penalty=settings.length_penalty,
            eos_token_id=ends,
            pad_token_id=ends[0] if tokenizer.pad_token_id is None else tokenizer.pad_token_id,
            synced_gpus=synced,
        )[: len(moved.owner) if moved.keys else 0]
        ended = torch.isin(tokens, torch.tensor(ends, device=tokens.device)).any(1)
        # One by one: of no rows batch_decode makes one text.
        texts = [str(tokenizer.decode(row, skip_special_tokens=True)) for row in tokens]
        yield Continued(moved, texts, ended.tolist())


def caption_batches(
    model: MultimodalLM,
    batches: Iterable[Batch],
    tokenizer: PreTrainedTokenizerBase,
    settings: EvaluateConfig,
    *,
    device: torch.device,
    dtype: torch.dtype,
    synced: bool = False,
) -> dict[str, str]:
    """Record key -> what was generated behind its first prompt, in one line."""
    captions: dict[str, str] = {}
    for each in continuations(
        model, batches, tokenizer, settings, device=device, dtype=dtype, synced=synced
    ):
        for key, texts in each.by_record().items():
            captions[key] = " ".join(texts[0].split())
    return captions


def _room(wanted: int, context: int | None, prompt: int) -> int:
    """New tokens that a context leaves to prompts of that length."""
    return wanted if context is None else max(min(wanted, context - prompt), 1)


def end_ids(tokenizer: PreTrainedTokenizerBase, stop: str | None) -> list[int]:
    """The tokens that end a caption: EOS, and the one of `evaluate.stop`.

    Raises:
        ConfigError: `stop` is not exactly one token of this tokenizer.
    """
    eos = int(tokenizer.eos_token_id)
    if stop is None:
        return [eos]
    found = tokenizer.encode(stop, add_special_tokens=False)
    if len(found) != 1:
        raise ConfigError(
            f"evaluate.stop={stop!r} is {len(found)} tokens of this LLM; give a text of one token, "
            "such as '.', or null for EOS alone"
        )
    return [eos, int(found[0])]
