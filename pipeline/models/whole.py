"""A language model as transformers itself loads it: whole, with what it does to weights meanwhile.

For what `llm.py` cannot do tensor by tensor: checkpoints that are converted as they load, and
quantisation.
"""

from collections.abc import Mapping
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel

from pipeline.config import LLMConfig
from pipeline.errors import CheckpointError


def load_whole(
    cfg: LLMConfig,
    like: PreTrainedModel,
    *,
    tensors: Mapping[str, Tensor] | None = None,
    **options: Any,
) -> PreTrainedModel:
    """The language model at `cfg.path`, by `from_pretrained`.

    Args:
        cfg: the recipe's `llm`.
        like: a model without values, whose class, configuration and dtype it has.
        tensors: by transformers' names, in place of the files; None reads these.
        options: further arguments of `from_pretrained`.

    Raises:
        CheckpointError: a tensor is missing.
    """
    kind: Any = type(like)  # transformers leaves its method untyped
    model, info = kind.from_pretrained(
        cfg.path if tensors is None else None,
        config=like.config,
        state_dict=None if tensors is None else dict(tensors),
        dtype=like.dtype,
        trust_remote_code=False,
        weights_only=True,
        output_loading_info=True,
        **options,
    )
    if info["missing_keys"]:
        missing = sorted(info["missing_keys"])
        raise CheckpointError(
            f"llm.path: {cfg.path} has no tensor for {missing[0]} and {len(missing) - 1} others; "
            "its weights are of another model or incomplete: fetch them again"
        )
    found: PreTrainedModel = model
    return found
