"""An image tower with MM-adapters before the attention of every block, read after chosen blocks.

Uses hooks on open_clip's own modules, so it holds no copy of a tower and takes what open_clip gives
(QuickGELU, activation checkpointing). It assumes a vision transformer of pre-norm blocks. Where
there is no class token (SigLIP), the mean of the tokens takes its place.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.config import MMAdapterConfig
from pipeline.errors import ConfigError
from pipeline.models.adapters import MMAdapter
from pipeline.models.encoder import ImageEncoder

IMAGE_FEATURES = 6  # of one image, by default. SOURCE: LaVIN --n_prompt 6


@dataclass(frozen=True)
class TowerBlocks:
    """The blocks of a vision transformer, from the patches up."""

    blocks: tuple[nn.Module, ...]  # (B, N, C) -> (B, N, C)
    norms: tuple[nn.Module, ...]  # their output goes into the block's attention and nowhere else
    width: int  # C
    class_token: bool  # whether token 0 is one

    def summary(self, tokens: Tensor) -> Tensor:
        """(B, N, C) -> (B, 1, C): the class token, or the mean of all where there is none."""
        return tokens[:, :1] if self.class_token else tokens.mean(1, keepdim=True)


def tower_blocks(visual: nn.Module) -> TowerBlocks:
    """The blocks of open_clip's VisionTransformer, or of a timm one inside open_clip.

    Raises:
        ConfigError: another kind of tower.
    """
    tower: Any = visual
    if hasattr(tower, "transformer") and hasattr(tower, "class_embedding"):
        blocks = tuple(tower.transformer.resblocks)
        norms = tuple(each.ln_1 for each in blocks)
        return TowerBlocks(blocks, norms, int(tower.transformer.width), class_token=True)
    trunk: Any = getattr(tower, "trunk", None)
    if hasattr(trunk, "blocks") and all(map(_is_pre_norm, trunk.blocks)):
        blocks = tuple(trunk.blocks)
        norms = tuple(each.norm1 for each in blocks)
        return TowerBlocks(blocks, norms, int(trunk.embed_dim), trunk.num_prefix_tokens > 0)
    raise ConfigError(
        f"encoder.arch: a {type(visual).__name__} has no blocks that adapters could be put into; "
        "use a vision transformer, such as ViT-L-14"
    )


def _is_pre_norm(block: nn.Module) -> bool:
    """Of timm's blocks, those that normalise before their attention: EVA02-E's do so behind it."""
    return hasattr(block, "norm1") and "Post" not in type(block).__name__


def chosen_layers(layers: Sequence[int], depth: int) -> tuple[int, ...]:
    """The blocks whose outputs are used, counted from 1.

    Args:
        layers: the recipe's; empty for six evenly spaced ones, the last among them.
        depth: blocks of the tower.

    Raises:
        ConfigError: the tower has no such block, or fewer than six.
    """
    if not layers and depth >= IMAGE_FEATURES:
        return tuple(round(depth * (i + 1) / IMAGE_FEATURES) for i in range(IMAGE_FEATURES))
    if not layers or min(layers) < 1 or max(layers) > depth:
        raise ConfigError(
            f"lavin.image_layers: {list(layers) or f'{IMAGE_FEATURES} by default'}: the tower has "
            f"{depth} blocks; name some of 1 to {depth}"
        )
    return tuple(layers)


def make_tower_adapters(visual: nn.Module, cfg: MMAdapterConfig) -> nn.ModuleList:
    """One adapter for each block; its values come from `placement.fill`."""
    found = tower_blocks(visual)
    return nn.ModuleList(MMAdapter(found.width, cfg) for _ in found.blocks)


class LayeredTower(ImageEncoder):
    """An image tower that gives one feature for each chosen block.

    Args:
        visual: the tower, the `visual` of an open_clip model.
        layers: the chosen blocks, from 1.

    Raises:
        ConfigError: the blocks of this kind of tower are not known.
    """

    def __init__(self, visual: nn.Module, layers: Sequence[int]) -> None:
        blocks = tower_blocks(visual)
        super().__init__(visual, blocks.width)
        self.blocks = blocks
        self.layers = tuple(layers)

    @property
    def feature_shape(self) -> tuple[int, ...]:
        """Of one image's features: (k, C)."""
        return (len(self.layers), self.width)

    @property
    def settings(self) -> dict[str, object]:
        """As in `ImageEncoder`."""
        return {"layers": self.layers}

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, k, C): after each chosen block, before any final norm."""
        dtype = next(self.visual.parameters()).dtype
        with self._outputs() as outputs:
            self.visual(images.to(dtype))
        return torch.cat([self.blocks.summary(outputs[each]) for each in self.layers], 1)

    @contextmanager
    def _outputs(self) -> Iterator[dict[int, Tensor]]:
        """The chosen blocks' outputs of the forward pass inside, by number.

        The hooks go with it, so that nothing is kept when a backward pass computes blocks again.
        """
        kept: dict[int, Tensor] = {}

        def keep(number: int, block: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
            kept[number] = output

        handles = [
            self.blocks.blocks[each - 1].register_forward_hook(partial(keep, each))
            for each in self.layers
        ]
        try:
            yield kept
        finally:
            for handle in handles:
                handle.remove()


class AdaptedTower(LayeredTower):
    """A layered tower with an MM-adapter before the attention of every block.

    Args:
        visual: changed in place: its norms get hooks.
        layers: the chosen blocks, from 1.
        adapters: from `make_tower_adapters`.
        routing: `cls`: an image's routing weights come from its own class token, whatever else is
            in the batch; `token`: each token routes itself, as LaVIN's code does with a batch of
            one (with more it routes all images by the first).

    Raises:
        ConfigError: the blocks of this kind of tower are not known.
    """

    def __init__(
        self, visual: nn.Module, layers: Sequence[int], adapters: nn.ModuleList, routing: str
    ) -> None:
        super().__init__(visual, layers)
        self.adapters = adapters
        self.routing = routing
        for index, norm in enumerate(self.blocks.norms):
            norm.register_forward_hook(partial(self._adapt, index))

    @property
    def settings(self) -> dict[str, object]:
        """As in `ImageEncoder`; all adapters are of one kind."""
        first: Any = self.adapters[0]
        kind = {"scale": first.scale, "temperature": first.router.temperature}
        return {**super().settings, "routing": self.routing, **kind}

    def _adapt(
        self, index: int, norm: nn.Module, args: tuple[Tensor, ...], normed: Tensor
    ) -> Tensor:
        adapter: Any = self.adapters[index]
        seen = normed if self.routing == "token" else self.blocks.summary(normed)
        adapted: Tensor = adapter(normed, adapter.router(seen))
        return adapted
