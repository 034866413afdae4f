"""What a model is made of: encoder, ST, LLM, and what the families add to them."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from pipeline.config.fields import not_negative, one_of, path, positive

# The families, and the parts that a segment of llm_tune may train of each; `early` and `affine` are
# there where the recipe switches them on.
PARTS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "clipcap": ("st", "llm"),
        "llama_adapter": ("st", "llm", "norms", "prompts", "gates", "early", "affine"),
        "lavin": ("encoder_adapters", "st", "llm", "adapters"),
    }
)


@dataclass
class EncoderConfig:
    """The image tower, any that open_clip knows."""

    # an open_clip architecture, or local-dir:FOLDER in open_clip's format
    arch: str = path("ViT-B-32")
    # a tag of open_clip, a local file, or null (random weights)
    pretrained: str | None = path("openai")
    normalize: bool = False  # L2-normalise the features (the reference's --normalize_prefix)
    # how pixels are prepared: `own` is what the weights were trained with; the references of LaVIN
    # and LLaMA-Adapter use ImageNet's mean and std, LaVIN also squashes images to a square
    pixels: str = one_of("own", "own", "imagenet")
    resize: str = one_of("own", "own", "squash")
    # s cuts an image of s times the tower's size into s * s tiles and takes the mean of their
    # features; the scales' features follow one another on the channels
    scales: list[int] = field(default_factory=lambda: [1])


@dataclass
class STConfig:
    """The network from image features to the LLM's embedding space."""

    kind: str = one_of("mlp", "mlp", "transformer", "linear")
    prefix_length: int = positive(10)  # embeddings handed to the LLM for one image
    hidden: int | None = not_negative(None)  # mlp: null = LLM width * prefix_length / 2
    clip_length: int = positive(10)  # transformer: tokens that the image feature is unfolded into
    num_layers: int = positive(8)  # transformer
    num_heads: int = positive(8)  # transformer


@dataclass
class LlamaAdapterConfig:
    """Adaption prompts in the language model, of family=llama_adapter."""

    # false: the text model of V1's published checkpoints, without encoder and ST, which answers
    # questions without their images
    sees_images: bool = True
    layers: int = positive(30)  # topmost layers with prompts
    prompt_length: int = positive(10)  # prompts of each
    # V2: first layers that attend to the image's embeddings (st.prefix_length of them); 0 is V1,
    # which adds the image's one embedding to the prompts of the topmost layers
    early_layers: int = not_negative(0)
    bias_scale: bool = False  # V2: y = scale * (W x + bias) in every linear map of the layers
    # V2: no part learns of both kinds of data. st_align, on captions, trains the projection and the
    # early prompts; llm_tune, on instructions, leaves them alone and trains prompts, norms, bias
    # and scale. Two sets of data are two recipes: the second's llm_tune.init_from is the first's
    disjoint: bool = False


@dataclass
class MMAdapterConfig:
    """LaVIN's adapters before the attention of every layer, in the LLM and in the image tower."""

    hidden: int = positive(8)  # width of the bottleneck; even
    scale: float = 1.0  # of the update
    temperature: float = positive(10.0)  # of the router; the reference: 10 for 7B, 5 for 13B
    dropout: float = not_negative(0.1)  # in the bottleneck


@dataclass
class LavinConfig:
    """What the family lavin is made of besides encoder and llm."""

    adapter: MMAdapterConfig = field(default_factory=MMAdapterConfig)
    # what an image's adapters route on: its class token, or each token on itself, as the reference
    # does for single images (its checkpoints want `token`)
    routing: str = one_of("cls", "cls", "token")
    image_layers: list[int] = field(default_factory=list)  # from 1; empty: 6 evenly spaced
    visual_hidden: int = positive(128)  # width of the visual projection


@dataclass
class LoRAConfig:
    """Low-rank adapters for the language model; with them its own weights never train."""

    rank: int = not_negative(0)  # of each update; 0 = no adapters
    alpha: int = positive(16)  # an update counts alpha / rank times
    dropout: float = not_negative(0.0)  # of an adapter's input, while it trains
    # Linear layers by the end of their names ([c_attn, c_proj]), or [all-linear] for all but the
    # output head; null = peft's choice for the architecture.
    targets: list[str] | None = None


@dataclass
class LLMConfig:
    """The language model, any causal LM of transformers."""

    path: str = path("gpt2")  # a local folder, or a name on the hub
    # a config.json that --plan goes by while there is no such folder, from the repository's root
    plan_by: str | None = field(default=None, metadata={"path": True})
    dropout: float | None = not_negative(None)  # null keeps what the model's own config says
    # the frozen weights in few bits: LLM.int8(), or QLoRA's NF4; ZeRO below 3, needs bitsandbytes
    quantize: str = one_of("none", "none", "8bit", "4bit")
    lora: LoRAConfig = field(default_factory=LoRAConfig)
