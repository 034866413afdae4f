"""Captions for batches of images: generation on every rank, texts by record key.

Works on a model under ZeRO-3 (`synced`: every rank generates equally often, dummies included) and
on a plain one. Knows nothing about scores or files.
"""

from collections.abc import Iterable

import torch
from transformers import PreTrainedTokenizerBase

from pipeline.config import EvaluateConfig
from pipeline.data.collate import Batch, LanguageBatch, to_device
from pipeline.models.multimodal import MultimodalLM


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
    """Record key -> generated caption, for this rank's prompt batches (one row a record)."""
    captions: dict[str, str] = {}
    eos = tokenizer.eos_token_id
    for batch in batches:
        moved = to_device(batch, device, dtype)
        assert isinstance(moved, LanguageBatch)
        tokens = model.generate(
            images=moved.images,
            features=moved.features,
            image_rows=moved.image_rows,
            input_ids=moved.input_ids,
            attention_mask=moved.attention_mask,
            max_new_tokens=settings.max_new_tokens,
            num_beams=settings.beams,
            length_penalty=settings.length_penalty,
            eos_token_id=eos,
            pad_token_id=tokenizer.pad_token_id if tokenizer.pad_token_id is not None else eos,
            synced_gpus=synced,
        )
        texts = tokenizer.batch_decode(tokens, skip_special_tokens=True)
        for key, text in zip(moved.keys, texts, strict=False):
            captions[key] = " ".join(text.split())
    return captions
