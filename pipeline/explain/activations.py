"""What autograd keeps of one micro-batch, counted by running the model on the meta device.

Exact in shapes and dtypes for any architecture that runs there, and approximate all the same:
kernels on a GPU may keep other things than the reference ones (attention above all), and work
buffers are not seen. Nothing here knows phases or recipes.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.losses import language_loss
from pipeline.models.multimodal import MultimodalLM


def language_activations(
    model: MultimodalLM,
    *,
    rows: int,
    prefix: int,
    tokens: int,
    features: tuple[int, ...] | None,
    layers: int,
) -> tuple[int, int]:
    """Bytes kept of a forward pass of ST and language model, and bytes of its logits and loss.

    Args:
        model: on the meta device, with what trains marked.
        rows: R, texts of a micro-batch.
        prefix: k, places of image embeddings in a row.
        tokens: of a row's text, all of them targets.
        features: shape of an image's features; None for a model without images.
        layers: of the language model if its activations are recomputed, else 0.
    """
    llm: Any = model.llm
    dtype = next(llm.parameters()).dtype

    ids = torch.zeros(rows, tokens, dtype=torch.long, device="meta")
    image_rows = torch.arange(rows, device="meta")

    def images() -> Tensor | None:
        if features is None:
            return None
        seen: Tensor = model.st(torch.empty(rows, *features, dtype=dtype, device="meta"))
        return seen  # (R, k, D)

    def run(targets: int) -> int:
        def thin(_: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            return (args[0].flatten(0, 1)[None, :targets], *args[1:])

        def forward() -> Tensor:
            embeds: Tensor = llm.get_input_embeddings()(ids)  # (R, T, D)
            shown = images()
            if shown is not None and prefix:
                embeds = torch.cat([shown, embeds], dim=1)
            length = embeds.shape[1]
            # Four dimensions, because transformers looks at the values of fewer.
            mask = torch.ones(rows, 1, length, length, dtype=torch.bool, device="meta")
            with model.seeing(shown, image_rows):
                out = llm(inputs_embeds=embeds, attention_mask=mask, use_cache=False)
            labels = torch.zeros(targets, dtype=torch.long, device="meta")
            return language_loss(out.logits[0], labels, torch.ones(targets, device="meta"))

        handle = llm.get_output_embeddings().register_forward_pre_hook(thin)
        try:
            return kept_bytes(model, forward)
        finally:
            handle.remove()

    body = run(1)
    # The logits' own gradient lives beside what the loss kept.
    vocabulary = llm.get_output_embeddings().weight.shape[0]
    logits = run(rows * tokens) - body + rows * tokens * vocabulary * dtype.itemsize
    if layers:
        hidden = rows * (prefix + tokens) * llm.get_input_embeddings().weight.shape[1]
        body = recomputed(body, hidden * dtype.itemsize, layers)
    return body, logits


def pair_activations(
    clip: nn.Module, *, images: int, texts: int, image_size: int, context: int, layers: int
) -> int:
    """Bytes kept of a forward pass of an image-text model.

    Args:
        clip: open_clip's, on the meta device, with what trains marked.
        images, texts: of a micro-batch.
        image_size: pixels of a side.
        context: tokens of a text.
        layers: blocks of the image tower if activations are recomputed, else 0.
    """
    dtype = next(clip.parameters()).dtype
    pixels = torch.empty(images, 3, image_size, image_size, dtype=dtype, device="meta")
    ids = torch.zeros(texts, context, dtype=torch.long, device="meta")

    def forward() -> Any:
        return clip(pixels, ids)

    body = kept_bytes(clip, forward)
    return recomputed(body, 0, layers) if layers else body


def pair_logits(rows: int, batch: int, itemsize: int) -> int:
    """Bytes of the contrastive loss of a rank's `rows` against the global batch.

    For each direction the similarity and three float32 matrices behind it, the gradient of one
    direction, and three masks; counted off `losses.contrastive_loss`.
    """
    return rows * batch * (2 * (itemsize + 12) + (itemsize + 8) + 3)


def kept_bytes(model: nn.Module, forward: Callable[[], Any]) -> int:
    """Bytes of all tensors that `forward` leaves to its backward pass, the parameters left out."""
    own = {each.untyped_storage()._cdata for each in model.parameters()}
    kept: dict[int, int] = {}
    held = []  # so that no storage is freed and its address used again

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own and storage._cdata not in kept:
            kept[storage._cdata] = storage.nbytes()
            held.append(tensor)
        return tensor

    mode = model.training
    model.train()
    try:
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            forward()
    finally:
        model.train(mode)
    return sum(kept.values())


def recomputed(body: int, between: int, layers: int) -> int:
    """With activation checkpointing: what lies between the layers, and one layer's own.

    SOURCE: Chen et al., "Training Deep Nets with Sublinear Memory Cost", 2016.
    """
    return between * layers + body // layers
