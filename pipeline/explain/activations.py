"""What autograd keeps of one micro-batch, counted by running the model on the meta device.

Exact in shapes and dtypes for any architecture that runs there, and approximate all the same:
kernels on a GPU may keep other things than the reference ones (attention above all), and work
buffers are not seen. Nothing here knows phases or recipes.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer

from pipeline.losses import language_loss
from pipeline.models.encoder import ImageEncoder
from pipeline.models.multimodal import MultimodalLM


def language_activations(
    model: MultimodalLM,
    *,
    rows: int,
    prefix: int,
    tokens: int,
    features: Tensor | None,
    recompute: bool = False,
    inputs_of: Iterable[nn.Module] = (),
) -> tuple[int, int]:
    """Bytes kept of a forward pass of ST and language model, and bytes of its logits and loss.

    Args:
        model: on the meta device, with what trains marked.
        rows: R, texts of a micro-batch.
        prefix: k, places of image embeddings in a row.
        tokens: of a row's text, all of them targets.
        features: (I, ...), what the ST network sees, of at most R images; None for no images.
        recompute: the layers' activations are computed again in the backward pass.
        inputs_of: as in `kept_bytes`.
    """
    llm: Any = model.llm

    ids = torch.zeros(rows, tokens, dtype=torch.long, device="meta")
    image_rows = torch.arange(rows, device="meta")
    if features is not None:
        image_rows = image_rows % len(features)

    def run(targets: int) -> int:
        def thin(_: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            return (args[0].flatten(0, 1)[None, :targets], *args[1:])

        def forward() -> Tensor:
            embeds: Tensor = llm.get_input_embeddings()(ids)  # (R, T, D)
            shown = None if features is None else model.st(features)  # (I, k, D)
            if shown is not None and prefix:
                embeds = torch.cat([shown[image_rows], embeds], dim=1)
            length = embeds.shape[1]
            # Four dimensions, because transformers looks at the values of fewer.
            mask = torch.ones(rows, 1, length, length, dtype=torch.bool, device="meta")
            with model.seeing(shown, image_rows):
                out = llm(inputs_embeds=embeds, attention_mask=mask, use_cache=False)
            labels = torch.zeros(targets, dtype=torch.long, device="meta")
            return language_loss(out.logits[0], labels, torch.ones(targets, device="meta"))

        handle = llm.get_output_embeddings().register_forward_pre_hook(thin)
        layers = [each for each in llm.modules() if isinstance(each, GradientCheckpointingLayer)]
        try:
            return kept_bytes(
                model, forward, recomputed=layers if recompute else (), inputs_of=inputs_of
            )
        finally:
            handle.remove()

    body = run(1)
    # The logits' own gradient lives beside what the loss kept.
    head = llm.get_output_embeddings().weight
    logits = run(rows * tokens) - body + rows * tokens * head.shape[0] * head.dtype.itemsize
    return body, logits


def tower_activations(
    encoder: ImageEncoder, *, images: int, image_size: int, recompute: bool = False
) -> tuple[int, Tensor]:
    """Bytes kept of a forward pass of an image tower, none where nothing in it trains; its output.

    Args:
        encoder: on the meta device, with what trains marked.
        images: I, of a micro-batch.
        image_size: pixels of a side.
        recompute: the blocks' activations are computed again in the backward pass.
    """
    dtype = next(encoder.parameters()).dtype
    pixels = torch.empty(images, 3, image_size, image_size, dtype=dtype, device="meta")
    found: list[Tensor] = []
    blocks = tuple(transformer_blocks(encoder)) if recompute else ()
    kept = kept_bytes(encoder, lambda: found.append(encoder(pixels)), recomputed=blocks)
    return kept, found[0].detach().requires_grad_(found[0].requires_grad)


def pair_activations(
    clip: nn.Module,
    *,
    images: int,
    texts: int,
    image_size: int,
    context: int,
    recompute: bool = False,
) -> int:
    """Bytes kept of a forward pass of an image-text model.

    Args:
        clip: open_clip's, on the meta device, with what trains marked.
        images, texts: of a micro-batch.
        image_size: pixels of a side.
        context: tokens of a text.
        recompute: the blocks' activations are computed again in the backward pass.
    """
    dtype = next(clip.parameters()).dtype
    pixels = torch.empty(images, 3, image_size, image_size, dtype=dtype, device="meta")
    ids = torch.zeros(texts, context, dtype=torch.long, device="meta")
    blocks = tuple(transformer_blocks(clip)) if recompute else ()
    return kept_bytes(clip, lambda: clip(pixels, ids), recomputed=blocks)


def pair_logits(rows: int, batch: int, itemsize: int) -> int:
    """Bytes of the contrastive loss of a rank's `rows` against the global batch.

    For each direction the similarity and three float32 matrices behind it, the gradient of one
    direction, and three masks; counted off `losses.contrastive_loss`.
    """
    return rows * batch * (2 * (itemsize + 12) + (itemsize + 8) + 3)


def transformer_blocks(module: nn.Module) -> Iterator[nn.Module]:
    """What open_clip computes again under `set_grad_checkpointing`: its own blocks and timm's."""
    for each in module.modules():
        for name in ("resblocks", "blocks"):
            blocks = getattr(each, name, None)
            if isinstance(blocks, nn.ModuleList | nn.Sequential):
                yield from blocks


def kept_bytes(
    model: nn.Module,
    forward: Callable[[], Any],
    *,
    recomputed: Sequence[nn.Module] = (),
    inputs_of: Iterable[nn.Module] = (),
) -> int:
    """Bytes of all tensors that `forward` leaves to its backward pass, the parameters left out.

    Args:
        model: whose parameters are left out; in training mode meanwhile.
        forward: runs it.
        recomputed: modules under activation checkpointing, none within another: of each its input
            is kept, and of the one that keeps most what it computes again. SOURCE: Chen et al.,
            "Training Deep Nets with Sublinear Memory Cost", 2016.
        inputs_of: modules that keep their input whatever autograd does.
    """
    ledger = _Ledger(model)
    mode = model.training
    model.train()
    handles = [each.register_forward_pre_hook(ledger.take_input) for each in inputs_of]
    try:
        with (
            ledger.recomputing(recomputed),
            torch.autograd.graph.saved_tensors_hooks(ledger.take, lambda tensor: tensor),
        ):
            forward()
    finally:
        model.train(mode)
        for handle in handles:
            handle.remove()
    return ledger.total()


class _Ledger:
    """Storages that are kept, each once, by the recomputed module that was running."""

    def __init__(self, model: nn.Module) -> None:
        self._seen = {each.untyped_storage()._cdata for each in model.parameters()}
        self._held: list[Tensor] = []  # so that no storage is freed and its address used again
        self._bytes: dict[nn.Module | None, int] = {None: 0}
        self._running: nn.Module | None = None

    def take(self, tensor: Tensor) -> Tensor:
        """Enters a tensor that autograd keeps."""
        storage = tensor.untyped_storage()
        if storage._cdata not in self._seen:
            self._seen.add(storage._cdata)
            self._held.append(tensor)
            self._bytes[self._running] = self._bytes.get(self._running, 0) + storage.nbytes()
        return tensor

    def take_input(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        """Enters a module's first argument where a gradient goes back through it."""
        if args[0].requires_grad:
            self.take(args[0])

    @contextmanager
    def recomputing(self, modules: Sequence[nn.Module]) -> Iterator[None]:
        """What is entered while one of `modules` runs is its own, its input is not."""

        def enter(module: nn.Module, args: tuple[Any, ...]) -> None:
            self.take_input(module, args)
            self._running = module

        def leave(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            self._running = None

        handles = [
            *(each.register_forward_pre_hook(enter) for each in modules),
            *(each.register_forward_hook(leave) for each in modules),
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def total(self) -> int:
        """Bytes at the worst moment."""
        largest = max((size for key, size in self._bytes.items() if key is not None), default=0)
        return self._bytes[None] + largest
