"""What all families share: an encoder, an ST network and a language model as one module.

A row is token ids in which `IMAGE_SLOT` marks the places of image embeddings. Rows of a training
batch are padded on the right, prompts on the left. Everything goes through submodule calls, so that
it also works when parameters are partitioned; nothing here knows data, losses or DeepSpeed.
"""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import Cache, GenerationConfig, PreTrainedModel

from pipeline.models.encoder import ImageEncoder

IMAGE_SLOT = -1  # in `input_ids`: an image embedding goes here
IGNORE = -100  # in `labels`: no target

_GenerationConfig: Any = GenerationConfig  # transformers leaves its constructor untyped


class MultimodalOutput(NamedTuple):
    """N counts the target tokens of all R rows, in row order.

    A named tuple because DeepSpeed's ZeRO-3 hooks find tensors in tuples but not in dataclasses.
    """

    logits: Tensor  # (N, V) of the position before each target
    labels: Tensor  # (N,) long
    weights: Tensor  # (N,) float32
    prefix_mean: Tensor  # (R, D) mean ST output of the row's image, 0 where there is none
    text_mean: Tensor  # (R, D) mean input embedding of the row's targets, detached
    row_weights: Tensor  # (R,) the row's largest target weight, 0 without an image or a target


class MultimodalLM(nn.Module):
    """encoder -> ST -> LLM.

    Args:
        encoder: the image tower; None where features are always given.
        st: (I, C) -> (I, k, D).
        llm: a causal language model of transformers.
    """

    def __init__(self, encoder: ImageEncoder | None, st: nn.Module, llm: PreTrainedModel) -> None:
        super().__init__()
        self.encoder = encoder
        self.st = st
        self.llm = llm

    def train(self, mode: bool = True) -> "MultimodalLM":
        """Parts of which nothing trains stay in eval mode: frozen means no dropout either.

        A language model with adapters that train is in training mode, its own dropout included: it
        acts on activations, and so on what the adapters learn, as in full tuning.

        Modules that recompute activations keep the mode, because transformers recomputes in
        training mode only; they draw no random numbers themselves.
        """
        super().train(mode)
        for part in self.units():
            if any(each.requires_grad for each in part.parameters()):
                continue
            for module in part.modules():
                module.training = mode and bool(getattr(module, "gradient_checkpointing", False))
        return self

    def units(self) -> tuple[nn.Module, ...]:
        """What is frozen or trained as a whole; together they hold every parameter."""
        found = (self.encoder, self.st, self.llm)
        return tuple(each for each in found if each is not None)

    def image_embeddings(
        self, images: Tensor | None = None, features: Tensor | None = None
    ) -> Tensor:
        """The embeddings that the language model gets for each image.

        Args:
            images: (I, 3, H, W), as the encoder's transform makes them; unused with `features`.
            features: (I, C), the encoder's outputs, computed before.

        Returns:
            (I, k, D) in the ST network's dtype. No gradient reaches a frozen encoder, which runs
            in eval mode whatever mode this model is in.
        """
        if features is None:
            features = self._encode(images)
        embeds: Tensor = self.st(features.to(next(self.st.parameters()).dtype))
        return embeds

    def embed(self, input_ids: Tensor, image_embeds: Tensor | None, image_rows: Tensor) -> Tensor:
        """Token embeddings with image embeddings in the slots, in order.

        Args:
            input_ids: (R, T) long, IMAGE_SLOT where an image embedding goes.
            image_embeds: (I, k, D); None only where no row has an image.
            image_rows: (R,) long, the image of each row, -1 for none.

        Returns:
            (R, T, D).

        Raises:
            ValueError: a row's slots are not as many as its image's embeddings (a caller's bug).
        """
        tokens = self._embed_tokens(input_ids)
        return self._scatter(tokens, input_ids, image_embeds, image_rows)

    def forward(
        self,
        *,
        images: Tensor | None = None,
        features: Tensor | None = None,
        image_rows: Tensor,
        input_ids: Tensor,
        attention_mask: Tensor,
        labels: Tensor,
        weights: Tensor,
    ) -> MultimodalOutput:
        """Logits for the positions whose next token is a target, and for no others.

        Args:
            images, features: as in `image_embeddings`; neither where no row has an image. An image
                that no row uses still runs, without influence: partitioned ranks need that.
            image_rows: (R,) long, the image of each row, -1 for none.
            input_ids: (R, T) long, padded on the right; IMAGE_SLOT where an image embedding goes.
            attention_mask: (R, T), 1 for slots and tokens, 0 for padding.
            labels: (R, T) long, the token at each target place, which is predicted from the place
                before; IGNORE elsewhere.
            weights: (R, T) float, of each target in the loss; 0 for dummies.
        """
        target = labels[:, 1:] != IGNORE  # (R, T - 1)
        chosen = target.flatten().nonzero().squeeze(1)  # (N,)
        embeds = None
        if images is not None or features is not None:
            embeds = self.image_embeddings(images, features)
        tokens = self._embed_tokens(input_ids)
        inputs = self._scatter(tokens, input_ids, embeds, image_rows)
        prefix_mean, text_mean = _means(tokens, embeds, image_rows, labels)
        with self.seeing(embeds, image_rows):
            logits = self._logits(inputs, attention_mask, image_rows, chosen)
        return MultimodalOutput(
            logits=logits,
            labels=labels[:, 1:].flatten()[chosen],
            weights=weights[:, 1:].flatten()[chosen].float(),
            prefix_mean=prefix_mean,
            text_mean=text_mean,
            row_weights=(weights[:, 1:] * target).amax(1).float() * (image_rows >= 0),
        )

    @torch.no_grad()
    def generate(
        self,
        *,
        images: Tensor | None = None,
        features: Tensor | None = None,
        image_rows: Tensor,
        input_ids: Tensor,
        attention_mask: Tensor,
        max_new_tokens: int,
        num_beams: int = 1,
        length_penalty: float = 1.0,
        eos_token_id: int | Sequence[int],
        pad_token_id: int,
        synced_gpus: bool = False,
        **sampling: Any,
    ) -> Tensor:
        """Continuations of prompts, through transformers' generate and its KV cache.

        Beam search ranks by the sum of log-probabilities over length ** `length_penalty`, EOS
        included: 1 is the mean, as the reference ranks (SOURCE: ClipCap predict.py:164-228). Like
        the reference it stops when no running beam's mean beats a finished one's.

        Args:
            images, features, image_rows: as in `forward`.
            input_ids: (R, T) long prompts, padded on the left; IMAGE_SLOT for image embeddings.
            attention_mask: (R, T), 0 for the padding.
            max_new_tokens: at most, EOS included.
            eos_token_id: what ends a text; any of several.
            synced_gpus: True under ZeRO-3; then every rank calls this equally often.
            sampling: further fields of transformers' GenerationConfig (do_sample, top_p, ...).

        Returns:
            (R, <= max_new_tokens) long: the new tokens alone, `pad_token_id` after EOS.
        """
        with evaluating(self):
            embeds = None
            if images is not None or features is not None:
                embeds = self.image_embeddings(images, features)
            config = _GenerationConfig(
                max_new_tokens=max_new_tokens,
                num_beams=num_beams,
                length_penalty=length_penalty,
                eos_token_id=eos_token_id,
                pad_token_id=pad_token_id,
                **{"do_sample": False, "use_cache": True, **sampling},
            )
            with self.seeing(embeds, image_rows):
                out = self._continue(
                    self.embed(input_ids, embeds, image_rows),
                    attention_mask,
                    image_rows,
                    generation_config=config,
                    synced_gpus=synced_gpus,
                )
        # transformers pads finished beams with EOS where the pad id is 0.
        is_eos = torch.isin(out, torch.as_tensor(eos_token_id, device=out.device))
        ended: Tensor = is_eos.cumsum(1) - is_eos.long() > 0
        return torch.where(ended, pad_token_id, out)

    def extend(self, inputs: Tensor, cache: Cache, image_rows: Tensor) -> Tensor:
        """Goes on where rows end whose keys and values are there already.

        Args:
            inputs: (R, T, D), from `embed`; no row is padded.
            cache: of the P places before, none at first; it grows by T.
            image_rows: as in `embed`, of the whole rows.

        Returns:
            (R, V), the logits behind each row's last place.
        """
        llm: Any = self.llm
        out = llm(inputs_embeds=inputs, past_key_values=cache, use_cache=True, logits_to_keep=1)
        logits: Tensor = out.logits[:, -1]
        return logits

    def seeing(
        self, image_embeds: Tensor | None, image_rows: Tensor
    ) -> AbstractContextManager[None]:
        """The context of each pass of the language model, for images that are not in slots only.

        Args: as in `embed`; a beam search repeats each row.
        """
        return nullcontext()

    def _encode(self, images: Tensor | None) -> Tensor:
        if self.encoder is None or images is None:
            raise ValueError("features are needed where there is no encoder or no image")
        trained = any(parameter.requires_grad for parameter in self.encoder.parameters())
        if not trained:
            self.encoder.eval()
        with torch.set_grad_enabled(trained and torch.is_grad_enabled()):
            features: Tensor = self.encoder(images)
        return features

    def _embed_tokens(self, input_ids: Tensor) -> Tensor:
        ids = input_ids.masked_fill(input_ids == IMAGE_SLOT, 0)
        tokens: Tensor = self.llm.get_input_embeddings()(ids)  # (R, T, D)
        return tokens

    def _scatter(
        self, tokens: Tensor, input_ids: Tensor, image_embeds: Tensor | None, image_rows: Tensor
    ) -> Tensor:
        slot = input_ids == IMAGE_SLOT  # (R, T)
        length = 0 if image_embeds is None else image_embeds.shape[1]
        if bool((slot.sum(1) != length * (image_rows >= 0)).any()):
            raise ValueError(f"a row with an image needs {length} slots, a row without one none")
        if image_embeds is None:
            return tokens
        # Rows without an image read image 0 under an empty mask: the graph still holds the image.
        place = (slot.cumsum(1) - 1).clamp(min=0)  # (R, T)
        source = image_embeds[image_rows.clamp(min=0)[:, None], place.clamp(max=length - 1)]
        return torch.where(slot[..., None], source.to(tokens.dtype), tokens)

    def _run(self, inputs: Tensor, attention_mask: Tensor, image_rows: Tensor) -> Tensor:
        """The language model's logits for (R, T, D); a family may put more before each row."""
        llm: Any = self.llm  # transformers leaves its forward untyped
        out = llm(inputs_embeds=inputs, attention_mask=attention_mask, use_cache=False)
        logits: Tensor = out.logits
        return logits

    def _continue(
        self, inputs: Tensor, attention_mask: Tensor, image_rows: Tensor, **options: Any
    ) -> Tensor:
        """New tokens after prompts (R, T, D), by transformers' generate with its `options`."""
        llm: Any = self.llm
        tokens: Tensor = llm.generate(
            inputs_embeds=inputs, attention_mask=attention_mask, **options
        )
        return tokens

    def _logits(
        self, inputs: Tensor, attention_mask: Tensor, image_rows: Tensor, chosen: Tensor
    ) -> Tensor:
        """(R, T, D) and places (N,) in the flattened (R, T - 1) -> (N, V)."""
        llm: Any = self.llm
        head: nn.Module = llm.get_output_embeddings()
        length = inputs.shape[1]

        def thin(_: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            hidden = args[0][:, -length:-1].flatten(0, 1).index_select(0, chosen)
            return (hidden[None], *args[1:])

        # Thinning what the head sees, inside the model's own forward, keeps what some models do to
        # their logits afterwards (soft caps, scales) without knowing which models those are.
        handle = head.register_forward_pre_hook(thin)
        try:
            logits = self._run(inputs, attention_mask, image_rows)
        finally:
            handle.remove()
        return logits[0]


def _means(
    tokens: Tensor, image_embeds: Tensor | None, image_rows: Tensor, labels: Tensor
) -> tuple[Tensor, Tensor]:
    """Each row's mean image embedding and mean target embedding, both (R, D)."""
    target = (labels != IGNORE).to(tokens.dtype)  # (R, T)
    count = target.sum(1, keepdim=True).clamp(min=1)
    text = ((target / count)[:, None] @ tokens.detach()).squeeze(1)
    if image_embeds is None:
        return torch.zeros_like(text), text
    prefix = image_embeds.mean(1)[image_rows.clamp(min=0)]
    return torch.where((image_rows >= 0)[:, None], prefix, 0.0), text


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Eval mode inside; afterwards every submodule is in the mode it was in."""
    modes = [(each, each.training) for each in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for each, mode in modes:
            each.training = mode
