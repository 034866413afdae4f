"""How a step's loss comes from its micro-batches: the LM objective and the contrastive one.

Both divide by *global* counts before the first backward, so the result does not depend on ranks,
micro-batches or padding. An objective knows the engine and its task module, not the phase, the
schedule or the data set.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from pipeline.data.collate import Batch, ContrastiveBatch, LanguageBatch, to_device
from pipeline.dist import World, add_over_ranks, gather_rows, sum_over_ranks
from pipeline.engine import Engine
from pipeline.losses import alignment_loss, contrastive_loss, language_loss, sigmoid_loss
from pipeline.models.encoder import hold_batch_norm
from pipeline.models.lora import stable_name
from pipeline.models.multimodal import MultimodalLM, MultimodalOutput

# The inverse temperature's upper bound: Radford et al., 2021, section 2.5.
_HOTTEST = 100.0

# Where SigLIP starts, as logarithm of the inverse temperature and as bias: Zhai et al., 2023,
# section 3.2. The bias is large because almost all of the B x B pairs are negatives.
_SIGLIP_START = {"logit_scale": math.log(10.0), "logit_bias": -10.0}


class Task(nn.Module):
    """The module that DeepSpeed wraps: a model together with its loss."""

    def exported(self, trained: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The task's trained tensors under the names, and in the shapes, that exports have."""
        raise NotImplementedError


class LanguageTask(Task):
    """A multimodal LM with its LM loss and its alignment term."""

    def __init__(self, model: MultimodalLM, *, label_smoothing: float = 0.0) -> None:
        super().__init__()
        self.model = model
        self.label_smoothing = label_smoothing

    def exported(self, trained: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Drops the wrappers, ours and peft's: `model.st.x` is exported as `st.x`."""
        return {stable_name(n.removeprefix("model.")): each for n, each in trained.items()}

    def forward(self, batch: LanguageBatch) -> tuple[Tensor, Tensor]:
        """(sum of the token losses, sum of the alignment terms) of a micro-batch."""
        out = outputs_of(self.model, batch)
        smoothing = self.label_smoothing if self.training else 0.0
        loss = language_loss(out.logits, out.labels, out.weights, label_smoothing=smoothing)
        return loss, alignment_loss(out.prefix_mean, out.text_mean, out.row_weights)


def outputs_of(model: MultimodalLM, batch: LanguageBatch) -> MultimodalOutput:
    """What a model says of a micro-batch, on the batch's device."""
    out: MultimodalOutput = model(
        images=batch.images,
        features=batch.features,
        image_rows=batch.image_rows,
        input_ids=batch.input_ids,
        attention_mask=batch.attention_mask,
        labels=batch.labels,
        weights=batch.weights,
    )
    return out


class ContrastiveTask(Task):
    """An open_clip model, both towers, and the `adapters` in its image tower if it has some.

    loss: infonce or siglip; a model without SigLIP's bias gets one, and SigLIP's temperature.
    """

    def __init__(self, clip: nn.Module, *, loss: str = "infonce") -> None:
        super().__init__()
        self.clip = clip
        self.pair_loss = _PAIR_LOSSES[loss]
        self._sigmoid = loss == "siglip"
        self._added = set[str]()
        if self._sigmoid and getattr(clip, "logit_bias", None) is None:
            self._added.add("clip.logit_bias")
            for name, value in _SIGLIP_START.items():
                setattr(clip, name, nn.Parameter(torch.tensor(value)))
        # DeepSpeed's broadcast cannot view a scalar as bytes: the temperature trains as (1,).
        scalars = {n: p for n, p in clip.named_parameters(recurse=False) if p.dim() == 0}
        self._shapes = {f"clip.{name}": each.shape for name, each in scalars.items()}
        for name, each in scalars.items():
            setattr(clip, name, nn.Parameter(each.detach().reshape(1)))

    def train(self, mode: bool = True) -> "ContrastiveTask":
        """Sets the mode of what trains; batch normalisation and locked towers stay in eval."""
        super().train(mode)
        hold_batch_norm(self)
        for tower in self.clip.children():
            if not any(each.requires_grad for each in tower.parameters()):
                tower.eval()
        return self

    def exported(self, trained: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The image tower, adapters in it included, is exported as `encoder`, the rest as `text`.

        A bias that was added here is not: the model that an export is laid over has none.
        """
        named = {}
        for name, tensor in trained.items():
            if name in self._added:
                continue
            inner = name.removeprefix("clip.")
            part = "encoder" if inner.startswith(("visual.", "adapters.")) else "text"
            named[f"{part}.{inner}"] = tensor.reshape(self._shapes.get(name, tensor.shape))
        return named

    def forward(self, batch: ContrastiveBatch) -> tuple[Tensor, Tensor, Tensor]:
        """Normalised features of the N pairs, (N, E) and (N, E), and the loss's constants.

        These are the inverse temperature, (1,), and with SigLIP the bias, (2,).
        """
        output: Any = self.clip(batch.images, batch.text)
        if isinstance(output, dict):
            names = ("image_features", "text_features", "logit_scale", "logit_bias")
            output = tuple(output[name] for name in names if name in output)
        image, text, scale = output[:3]
        if self._sigmoid:
            constants = torch.cat([scale.reshape(1), output[3].reshape(1)])
        else:
            constants = scale.clamp(max=_HOTTEST)
        return image[batch.image_rows], text, constants


_PAIR_LOSSES: Mapping[str, Callable[..., Tensor]] = MappingProxyType(
    {"infonce": contrastive_loss, "siglip": sigmoid_loss}
)


@dataclass(frozen=True)
class StepLoss:
    """A step's loss: this rank's `share` (the shares of all ranks add up to it)."""

    share: Tensor
    targets: float  # over all ranks


class Objective(Protocol):
    """What the trainer asks of an objective."""

    def step(self, batches: Sequence[Batch]) -> StepLoss:
        """Adds the gradients of one step; the same number of micro-batches on every rank."""


class LanguageObjective:
    """Next-token loss over target tokens, plus `align_weight` times the alignment term."""

    def __init__(
        self, engine: Engine, world: World, dtype: torch.dtype, *, align_weight: float
    ) -> None:
        self.engine, self.world, self.dtype = engine, world, dtype
        self.align_weight = align_weight

    def step(self, batches: Sequence[Batch]) -> StepLoss:
        """loss = sum(token losses) / global target tokens + align_weight * mean alignment."""
        language = [_language(batch) for batch in batches]
        local = [sum(float(b.weights.sum()) for b in language), sum(_rows(b) for b in language)]
        tokens, rows = sum_over_ranks(local, self.world)
        share = torch.zeros((), device=self.world.device)
        for batch in language:
            loss, align = self.engine(to_device(batch, self.world.device, self.dtype))
            loss = loss / max(tokens, 1.0)
            if self.align_weight:
                loss = loss + self.align_weight * align / max(rows, 1.0)
            share += loss.detach()
            self.engine.backward(loss)
            self.world.presence.beat()
        return StepLoss(share, tokens)


class ContrastiveObjective:
    """A loss of all pairs of the global batch (InfoNCE, SigLIP), whatever the micro-batch.

    GradCache (Gao et al., 2021): features without a graph, the loss's gradient with respect to all
    features, then a second forward whose outputs are multiplied by it. With a single micro-batch
    the first forward keeps its graph and serves as the second.
    """

    def __init__(
        self, engine: Engine, world: World, dtype: torch.dtype, loss: Callable[..., Tensor]
    ) -> None:
        self.engine, self.world, self.dtype, self.loss = engine, world, dtype, loss

    def step(self, batches: Sequence[Batch]) -> StepLoss:
        """Gradients of the mean over the global batch's pairs."""
        moved = [_contrastive(to_device(batch, self.world.device, self.dtype)) for batch in batches]
        once = len(moved) == 1
        randomness = []
        outputs = []
        with torch.set_grad_enabled(once):
            for batch in moved:
                randomness.append(_random_state())
                outputs.append(self.engine(batch))
                self.world.presence.beat()
        share, pairs, gradients, scale_gradient = self._loss_gradients(moved, outputs)
        for i, batch in enumerate(moved):
            if not once:
                _restore(randomness[i])  # the second forward drops what the first has dropped
            image, text, scale = outputs[i] if once else self.engine(batch)
            image_gradient, text_gradient = gradients[i]
            surrogate = (image * image_gradient).sum() + (text * text_gradient).sum()
            self.engine.backward(surrogate + (scale * scale_gradient).sum() / len(moved))
            self.world.presence.beat()
        return StepLoss(share, pairs)

    def _loss_gradients(
        self, batches: Sequence[ContrastiveBatch], outputs: Sequence[tuple[Tensor, Tensor, Tensor]]
    ) -> tuple[Tensor, float, list[tuple[Tensor, Tensor]], Tensor]:
        """This rank's share of the loss, all pairs, and d loss / d features for each batch."""
        real = [batch.identity[:, 0] >= 0 for batch in batches]
        own = [
            torch.cat([out[k].detach()[r] for out, r in zip(outputs, real, strict=True)])
            for k in (0, 1)
        ]
        identity = torch.cat([b.identity[r] for b, r in zip(batches, real, strict=True)])
        images, texts = (gather_rows(each, self.world) for each in own)
        identities = gather_rows(identity, self.world)
        start = sum(len(each) for each in identities[: self.world.rank])
        rows = slice(start, start + len(identity))
        image_all = torch.cat(images).requires_grad_()
        text_all = torch.cat(texts).requires_grad_()
        scale = outputs[0][2].detach().requires_grad_()
        pairs = len(image_all)
        loss = self.loss(image_all, text_all, scale, torch.cat(identities), rows=rows)
        loss = loss / max(pairs, 1)
        wanted = (image_all, text_all, scale)
        image_gradient, text_gradient, scale_gradient = torch.autograd.grad(loss, wanted)
        # Other ranks' rows push and pull on our features too.
        add_over_ranks(image_gradient, self.world)
        add_over_ranks(text_gradient, self.world)
        per_batch = []
        taken = start
        for (image, text, _), mask in zip(outputs, real, strict=True):
            into_image, into_text = torch.zeros_like(image), torch.zeros_like(text)
            count = int(mask.sum())
            into_image[mask] = image_gradient[taken : taken + count]
            into_text[mask] = text_gradient[taken : taken + count]
            per_batch.append((into_image.detach(), into_text.detach()))
            taken += count
        return loss.detach(), float(pairs), per_batch, scale_gradient


def _language(batch: Batch) -> LanguageBatch:
    assert isinstance(batch, LanguageBatch)
    return batch


def _rows(batch: LanguageBatch) -> float:
    return float((batch.weights.sum(1) > 0).sum())


def _contrastive(batch: Batch) -> ContrastiveBatch:
    assert isinstance(batch, ContrastiveBatch)
    return batch


def _random_state() -> list[Tensor]:
    """Of the CPU and, where there is one, of this process's GPU."""
    states = [torch.get_rng_state()]
    return [*states, torch.cuda.get_rng_state()] if torch.cuda.is_available() else states


def _restore(states: Sequence[Tensor]) -> None:
    torch.set_rng_state(states[0])
    if len(states) > 1:
        torch.cuda.set_rng_state(states[1])
