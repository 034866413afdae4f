"""The LLaMA-Adapter family: adaption prompts in a frozen language model, to which images are added.

V1 (arXiv:2303.16199): the image's one embedding, which the ST network projects from the tower's
global features, is added to all prompts. V2 (arXiv:2304.15010) as switches: early fusion, bias and
scale, disjoint parts for captions and instructions (`llama_adapter.*`), and norms, a part that a
segment may train. No image takes a place in the text. Assumes a decoder that `decoder.py` knows;
which parts train is the phase's business.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from functools import partial

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from pipeline.config import Config
from pipeline.errors import ConfigError
from pipeline.models.adaption import AdaptionPrompts
from pipeline.models.affine import LinearAffines, norms
from pipeline.models.decoder import check_decoder, decoder
from pipeline.models.encoder import ImageEncoder, load_image_encoder
from pipeline.models.llm import context_length, llm_width, load_llm, load_llm_config
from pipeline.models.multimodal import IMAGE_SLOT, MultimodalLM
from pipeline.models.placement import WHOLE, Placement, fill, reset_parameters
from pipeline.models.st import build_st

# What V2 trains on image and caption pairs, and on nothing else (its section 3.2).
_CAPTIONS = ("st", "early")


class LlamaAdapter(MultimodalLM):
    """A language model that sees images through prompts in its attention.

    Args:
        encoder, st, llm: as in `MultimodalLM`; `st` gives (I, 1, D), or with early fusion
            (I, n, D); without an encoder and ST at all, `st` is `nn.Identity`. The attention of
            `llm` is changed in place.
        adaption: the prompts, made for `llm`.
        affine: bias and scale of the linear maps, made for `llm`; None for none.
    """

    def __init__(
        self,
        encoder: ImageEncoder | None,
        st: nn.Module,
        llm: PreTrainedModel,
        adaption: AdaptionPrompts,
        affine: LinearAffines | None = None,
    ) -> None:
        super().__init__(encoder, st, llm)
        self.adaption = adaption
        self.affine = affine
        layers = decoder(llm)
        adaption.attach(llm, layers)
        if affine is not None:
            affine.attach(layers)

    def units(self) -> tuple[nn.Module, ...]:
        """With the prompts, and the bias and scale where there are some."""
        added = (self.adaption, self.affine)
        return (*super().units(), *(each for each in added if each is not None))

    def _scatter(
        self, tokens: Tensor, input_ids: Tensor, image_embeds: Tensor | None, image_rows: Tensor
    ) -> Tensor:
        if bool((input_ids == IMAGE_SLOT).any()):
            raise ValueError("images take no slots in this family")
        return tokens

    def seeing(
        self, image_embeds: Tensor | None, image_rows: Tensor
    ) -> AbstractContextManager[None]:
        return self.adaption.showing(image_embeds, image_rows)


def build(
    cfg: Config,
    *,
    dtype: torch.dtype,
    placement: Placement,
    with_encoder: bool,
    feature_width: int | None = None,
    encoder: ImageEncoder | None = None,
) -> LlamaAdapter:
    """The model of a recipe: pretrained language model, fresh ST network, prompts and gates.

    Args, returns, raises: as `clipcap.build`.
    """
    config = load_llm_config(cfg.llm)
    check(cfg, config)
    if not with_encoder or not sees_images(cfg):
        encoder = None
    elif encoder is None:
        encoder, _ = load_image_encoder(cfg.encoder, seed=cfg.seed)
    width = feature_width if encoder is None else encoder.width
    if width is None and sees_images(cfg):
        raise ValueError("feature_width is needed without an encoder")
    llm = load_llm(cfg.llm, dtype=dtype, placement=placement, seed=cfg.seed)
    with placement.skeleton():
        st: nn.Module = nn.Identity()
        if width is not None:
            st = build_st(cfg.st, width=width, llm_width=llm_width(config))
        adaption, affine = build_adaption(cfg, llm)
    for part in (st, adaption, affine):
        if part is not None:
            fill(part, lambda name: None, placement, seed=cfg.seed, init=reset_parameters)
            part.to(dtype)
    return LlamaAdapter(None if encoder is None else encoder.to(dtype), st, llm, adaption, affine)


def build_adaption(
    cfg: Config, llm: PreTrainedModel
) -> tuple[AdaptionPrompts, LinearAffines | None]:
    """What the recipe adds to the language model, not attached to it yet."""
    chosen = cfg.llama_adapter
    layers = decoder(llm)
    adaption = AdaptionPrompts(
        layers,
        layers=chosen.layers,
        length=chosen.prompt_length,
        early_layers=chosen.early_layers,
        early_length=cfg.st.prefix_length,
    )
    return adaption, LinearAffines(layers) if chosen.bias_scale else None


def check(cfg: Config, config: PretrainedConfig) -> None:
    """Compares the recipe with the language model's config, before anything is loaded.

    Raises:
        ConfigError: an unsupported architecture, more adapted layers than there are, more image
            embeddings than V1 can add, disjoint parts that are not, or texts longer than the
            context, or two ways at once to tune the linear maps.
    """
    check_decoder(config)
    _check_disjoint(cfg)
    chosen = cfg.llama_adapter
    depth = int(config.get_text_config().num_hidden_layers)
    if chosen.layers + chosen.early_layers > depth:
        raise ConfigError(
            f"llama_adapter.layers: {chosen.layers} topmost layers with prompts and "
            f"{chosen.early_layers} first ones (llama_adapter.early_layers) exceed the {depth} "
            f"layers of {cfg.llm.path}; together at most {depth} fit"
        )
    if chosen.early_layers and not chosen.sees_images:
        raise ConfigError(
            f"llama_adapter.early_layers={chosen.early_layers}: these layers attend to an image, "
            "and with llama_adapter.sees_images=false there is none; set it to 0"
        )
    if chosen.bias_scale and cfg.llm.lora.rank:
        raise ConfigError(
            f"llama_adapter.bias_scale=true and llm.lora.rank={cfg.llm.lora.rank} both change the "
            "linear maps; use one of them"
        )
    if not chosen.early_layers and cfg.st.prefix_length != 1 and chosen.sees_images:
        raise ConfigError(
            f"st.prefix_length: {cfg.st.prefix_length} embeddings cannot be added to each prompt; "
            "set it to 1, or llama_adapter.early_layers to 1 or more (early fusion)"
        )
    limit = context_length(config)
    for key, tokens in (
        ("data.max_tokens", cfg.data.max_tokens),
        ("evaluate.max_new_tokens", cfg.evaluate.max_new_tokens),
    ):
        if limit is not None and tokens >= limit:
            raise ConfigError(
                f"{key}: {tokens} tokens and the one before them exceed the context of {limit} of "
                f"{cfg.llm.path}; at most {limit - 1} fit"
            )


def tower(cfg: Config, encoder: ImageEncoder, placement: Placement = WHOLE) -> ImageEncoder:
    """The image tower as it is; see `clipcap.tower`."""
    return encoder


def sees_images(cfg: Config) -> bool:
    """V1's text model does not."""
    return cfg.llama_adapter.sees_images


def slots(cfg: Config) -> int:
    """An image takes no place in a row."""
    return 0


def layout(
    cfg: Config, tokenizer: PreTrainedTokenizerBase
) -> Callable[[Sequence[int], bool], list[int]]:
    """BOS (EOS where a tokenizer has none) and the prompt, whatever the row shows.

    SOURCE: LLaMA-Adapter alpaca_finetuning_v1/finetuning.py:60-71, whose tokenizer puts BOS.
    """
    bos = tokenizer.bos_token_id
    return partial(_before, int(tokenizer.eos_token_id if bos is None else bos))


def _before(opening: int, prompt_ids: Sequence[int], has_image: bool) -> list[int]:
    return [opening, *prompt_ids]


def parts(model: MultimodalLM) -> dict[str, nn.Module]:
    """The parts a phase can train or freeze, by name.

    `norms` lie within `llm`, `gates` within `prompts`: of such a pair a segment may train one.
    """
    assert isinstance(model, LlamaAdapter)
    found: dict[str, nn.Module] = {} if model.encoder is None else {"encoder": model.encoder}
    if not isinstance(model.st, nn.Identity):
        found["st"] = model.st
    found["llm"] = model.llm
    found["norms"] = nn.ModuleList(norms(model.llm))
    found["prompts"] = model.adaption.late
    found["gates"] = model.adaption.gates()
    if len(model.adaption.early):
        found["early"] = model.adaption.early
    if model.affine is not None:
        found["affine"] = model.affine
    return found


def trains(cfg: Config, phase: str) -> tuple[str, ...]:
    """The parts that st_align trains, or llm_tune where the recipe does not say.

    The gates start at zero, and through a closed gate the ST network learns nothing: aligning it
    opens them. V2 trains the same on captions (its section 3.2), and with `llama_adapter.disjoint`
    nothing of it on instructions.
    """
    chosen = cfg.llama_adapter
    if phase == "st_align":
        return _CAPTIONS if chosen.early_layers else ("st", "gates")
    affine = ("affine",) if chosen.bias_scale else ()
    if chosen.disjoint:
        return ("prompts", *affine, "norms")
    early = ("early",) if chosen.early_layers else ()
    st = ("st",) if chosen.sees_images else ()
    return (*st, "prompts", *early, *affine)


def _check_disjoint(cfg: Config) -> None:
    """Raises ConfigError where a recipe's disjoint groups are none."""
    if not cfg.llama_adapter.disjoint:
        return
    if not cfg.llama_adapter.early_layers:
        raise ConfigError(
            "llama_adapter.disjoint=true: images are added to the prompts, which both kinds of "
            "data would train; set llama_adapter.early_layers to 1 or more (early fusion)"
        )
    for index, segment in enumerate(cfg.llm_tune.segments):
        if both := [part for part in segment.train or () if part in _CAPTIONS]:
            raise ConfigError(
                f"llm_tune.segments[{index}].train: {', '.join(both)} trains in st_align alone "
                "(llama_adapter.disjoint=true); leave it out, or set that to false"
            )
