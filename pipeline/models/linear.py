"""The linear maps of a language model, as torch writes them, transformers' GPT-2, or bitsandbytes.

Which modules they are, for whoever wraps them, hangs something on them or counts them.
"""

from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

LINEAR = (nn.Linear, Conv1D)  # quantised ones are a kind of nn.Linear


def linear_maps(module: nn.Module) -> dict[str, nn.Module]:
    """All below `module` by name; of a causal language model all but its output head."""
    head = None
    if isinstance(module, PreTrainedModel):
        head = module.get_output_embeddings()  # type: ignore[no-untyped-call]
    return {
        name: each
        for name, each in module.named_modules()
        if isinstance(each, LINEAR) and each is not head
    }
