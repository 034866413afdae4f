"""LaVIN's language model with its adapters folded in, for rows of one modality at a time.

Of one modality, because the adapters' routing differs between them. As a plain model of
transformers it has no hooks, no modality token and no attention of ours, so any library that loads
transformers' folders runs it; as a pair it takes rows of both kinds.
"""

import copy
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.initialization import no_init_weights

from pipeline.models.decoder import decoder
from pipeline.models.lavin_model import Lavin
from pipeline.models.lora import merge
from pipeline.models.plain import make_plain

_AutoModel: Any = AutoModelForCausalLM  # transformers leaves it untyped


def folded_llm(model: Lavin, *, has_image: bool) -> PreTrainedModel | None:
    """The language model that says of rows of one modality what `model` says.

    Args:
        model: whole; used up: its weights are changed.
        has_image: for rows with an image; their embeddings go in as `inputs_embeds`.

    Returns:
        None where transformers' model has no place for a bias that an adapter becomes (mistral).
    """
    merge(model.llm)
    model.fold(has_image)
    if not make_plain(model.llm):
        return None
    plain = _without_hooks(model.llm)
    positions = getattr(plain.base_model, "wpe", None)
    if isinstance(positions, nn.Embedding):
        # The modality token had place 0. Rotary positions are relative, learnt ones are not.
        with torch.no_grad():
            positions.weight[:-1] = positions.weight[1:].clone()
    return plain


def folded_pair(model: Lavin) -> tuple[Lavin, Lavin]:
    """(for rows without an image, for rows with one), to run without adapters in the LLM.

    Args:
        model: whole; used up: it is the first of the two.

    Returns:
        Two models that share all tensors but those of the attention's projections, into which the
        adapters are folded: of LLaMA-7B the second takes 3.2 GB in 16 bits (3 * 4096^2 * 32).

    Raises:
        ConfigError: the projections are quantised, so nothing can be folded into them.
    """
    merge(model.llm)
    own = {
        id(each)
        for layer in decoder(model.llm).layers
        for projection in layer.projections
        for each in projection.parameters()
    }
    tensors = [*model.parameters(), *model.buffers()]
    other = copy.deepcopy(model, {id(each): each for each in tensors if id(each) not in own})
    model.fold(has_image=False)
    other.fold(has_image=True)
    return model, other


def _without_hooks(llm: PreTrainedModel) -> PreTrainedModel:
    """The same weights in a model that nothing was attached to."""
    with torch.device("meta"), no_init_weights():
        plain: PreTrainedModel = _AutoModel.from_config(
            llm.config, dtype=llm.dtype, trust_remote_code=False, attn_implementation="sdpa"
        )
    plain.load_state_dict(llm.state_dict(), assign=True)
    plain.tie_weights()
    plain.train(False)
    return plain
