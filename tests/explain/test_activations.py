"""Activations that a plan counts on the meta device, against those of real forward passes.

The meta device has the plain attention kernel, which keeps scaled queries and keys too: counts are
above those of a CPU by up to a fifth here, where images have few tokens.
"""

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from pipeline.config import MMAdapterConfig
from pipeline.explain.activations import (
    kept_bytes,
    language_activations,
    pair_activations,
    tower_activations,
)
from pipeline.explain.parts import census
from pipeline.explain.sketches import with_sketches
from pipeline.models.tower import AdaptedTower, make_tower_adapters
from pipeline.phases import Segment
from pipeline.recipe import load_recipe
from tests.models import tiny
from tests.tiny import write_questions

IMAGES, SIZE = 4, 32


def tower() -> AdaptedTower:
    """Frozen, with adapters that train; on the device of the context."""
    torch.manual_seed(0)
    visual = open_clip.transformer.VisionTransformer(
        image_size=SIZE, patch_size=8, width=64, layers=6, heads=4, mlp_ratio=4.0, output_dim=16
    ).requires_grad_(False)
    adapters = make_tower_adapters(visual, MMAdapterConfig(hidden=8, dropout=0.1))
    return AdaptedTower(visual, (2, 4, 6), adapters, "cls")


def sketch() -> AdaptedTower:
    with torch.device("meta"):
        return tower()


def saved_bytes(model: nn.Module, forward: Callable[[], Any]) -> int:
    """Of the tensors that autograd really saves; of parameters it saves no copy."""
    found = {each.data_ptr(): 0 for each in model.parameters()}
    held = []

    def pack(tensor: Tensor) -> Tensor:
        held.append(tensor)
        found.setdefault(tensor.untyped_storage().data_ptr(), tensor.untyped_storage().nbytes())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        held.append(forward())
    return sum(found.values())


class Living(TorchDispatchMode):
    """Bytes of the storages that were made since, and are still there."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self._own = {each.untyped_storage()._cdata for each in model.parameters()}
        self._made: dict[int, tuple[Any, int]] = {}
        self.peak = 0

    def now(self) -> int:
        self._made = {key: each for key, each in self._made.items() if each[0]() is not None}
        return sum(size for _, size in self._made.values())

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for each in tree_leaves(out):
            if isinstance(each, Tensor) and each.untyped_storage()._cdata not in self._own:
                storage = each.untyped_storage()
                self._made[storage._cdata] = (weakref.ref(storage), storage.nbytes())
        self.peak = max(self.peak, self.now())
        return out


@contextmanager
def living(model: nn.Module) -> Iterator[Living]:
    with Living(model) as found:
        yield found


def test_an_adapted_tower_keeps_what_is_counted() -> None:
    real, images = tower().train(), torch.randn(IMAGES, 3, SIZE, SIZE)
    counted, features = tower_activations(sketch(), images=IMAGES, image_size=SIZE)
    assert counted == pytest.approx(saved_bytes(real, lambda: real(images)), rel=0.2)
    assert features.shape == real(images).shape and features.requires_grad


def test_a_recomputed_tower_keeps_the_inputs_of_its_blocks_and_one_block() -> None:
    real, images = tower().train(), torch.randn(IMAGES, 3, SIZE, SIZE)
    real.visual.set_grad_checkpointing()
    with living(real) as found:
        features = real(images)
        after_forward = found.now()
        features.sum().backward()
    sizes = {"images": IMAGES, "image_size": SIZE}
    counted, _ = tower_activations(sketch(), **sizes, recompute=True)
    # The peak of a step has gradients of activations besides.
    assert 1.5 * after_forward < counted < found.peak
    assert counted > 0.6 * found.peak
    assert counted < 0.3 * tower_activations(sketch(), **sizes)[0]


def test_a_frozen_tower_keeps_nothing() -> None:
    frozen = sketch().requires_grad_(False)
    counted, features = tower_activations(frozen, images=IMAGES, image_size=SIZE)
    assert counted == 0 and not features.requires_grad


def test_a_recomputed_language_model_keeps_the_inputs_of_its_layers_and_one_layer() -> None:
    sizes = {"num_hidden_layers": 6, "hidden_size": 64, "intermediate_size": 128}
    real = tiny.llama(**sizes).train()
    with torch.device("meta"):
        sketched = tiny.multimodal(tiny.llama(**sizes))
    real.gradient_checkpointing_enable()
    with living(real) as found:
        embeds = real.get_input_embeddings()(torch.ones(4, 20, dtype=torch.long))
        hidden = real.model(inputs_embeds=embeds, use_cache=False).last_hidden_state
        after_forward = found.now()
        hidden.sum().backward()
    asked = {"rows": 4, "prefix": 0, "tokens": 20, "features": None}
    counted, _ = language_activations(sketched, **asked, recompute=True)
    assert after_forward < counted < found.peak
    assert counted < 0.4 * language_activations(sketched, **asked)[0]


def test_adapters_that_train_alone_are_counted_in_an_image_text_model() -> None:
    def clip() -> Any:
        torch.manual_seed(0)
        vision = {"image_size": SIZE, "patch_size": 8, "width": 64, "layers": 3, "head_width": 16}
        text = {"context_length": 8, "vocab_size": 50, "width": 32, "heads": 2, "layers": 2}
        made = open_clip.CLIP(16, vision, text).requires_grad_(False)
        made.adapters = make_tower_adapters(made.visual, MMAdapterConfig(hidden=8))
        AdaptedTower(made.visual, (1,), made.adapters, "cls")
        return made

    with torch.device("meta"):
        sketched = clip()
    sizes = {"images": IMAGES, "texts": 5, "image_size": SIZE, "context": 8}
    counted = pair_activations(sketched, **sizes)
    real, images, ids = clip().train(), torch.randn(IMAGES, 3, SIZE, SIZE), torch.ones(5, 8).long()
    assert counted == pytest.approx(saved_bytes(real, lambda: real(images, ids)), rel=0.2)
    sketched.adapters.requires_grad_(False)
    assert pair_activations(sketched, **sizes) == 0


def test_modules_that_keep_their_input_all_the_same_are_counted() -> None:
    """As bitsandbytes' 8-bit products do; frozen linear maps keep nothing otherwise."""
    first, second = nn.Linear(8, 8), nn.Linear(8, 4).requires_grad_(False)
    model = nn.Sequential(first, second)
    rows = torch.randn(3, 8)
    plain = kept_bytes(model, lambda: model(rows))
    assert plain == rows.nbytes  # for the first one's own gradient
    assert kept_bytes(model, lambda: model(rows), inputs_of=[second]) == plain + 3 * 8 * 4
    assert kept_bytes(model, lambda: model(rows), inputs_of=[first]) == plain


def test_a_question_is_one_text_however_many_captions_are_usual(tmp_path: Path) -> None:
    config = load_recipe([f"recipe={write_questions(tmp_path, 'lavin')}"])
    with with_sketches(config) as sketched:
        segment = Segment(0, ("st",), 0, 1, 1.0)
        five, one = (
            census(sketched, "llm_tune", segment, precision="fp32", captions=each, ranks=1)
            for each in (5, 1)
        )
    assert five.activations == one.activations and five.logits == one.logits


def test_a_segment_that_trains_the_towers_adapters_needs_their_activations(tmp_path: Path) -> None:
    config = load_recipe([f"recipe={write_questions(tmp_path, 'lavin')}"])

    def counted(*parts: str, **changes: Any) -> int:
        phase = replace(config.llm_tune, **changes)
        with with_sketches(replace(config, llm_tune=phase)) as sketched:
            found = census(
                sketched,
                "llm_tune",
                Segment(0, parts, 0, 1, 1.0),
                precision="fp32",
                captions=1,
                ranks=1,
            ).activations
        assert found is not None
        return found

    without, beside = counted("st", "adapters"), counted("encoder_adapters", "st", "adapters")
    scratch = config.pretrain.scratch
    tokens = (scratch.image_size // scratch.patch_size) ** 2 + 1
    block = 4 * config.llm_tune.micro_batch * tokens * scratch.vision_width  # bytes of its input
    assert beside - without > 10 * block * scratch.vision_layers
    assert counted("encoder_adapters", activation_checkpointing=True) < beside
