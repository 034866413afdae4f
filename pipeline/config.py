"""The recipe as typed dataclasses: every key a user can set, with its default and its meaning.

`pipeline/recipe.py` loads a YAML recipe and a dotlist into these and checks what can be checked
without loading a model. Defaults are the right choice for a real run. Sizes are counts of records
(one image with its captions) unless a name says otherwise; learning rates are absolute.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

PHASES = ("encoder_adapt", "st_align", "llm_tune")

# The families, and the parts that a segment of llm_tune may train of each; `early` and `affine` are
# there where the recipe switches them on.
PARTS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "clipcap": ("st", "llm"),
        "llama_adapter": ("st", "llm", "norms", "prompts", "gates", "early", "affine"),
        "lavin": ("encoder_adapters", "st", "llm", "adapters"),
    }
)

# What a task wants where the recipe does not say; before the recipe, after the defaults below.
TASK_DEFAULTS: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {"captions": {}, "scienceqa": {"data": {"max_tokens": 640}}}
)


def one_of(default: str, *choices: str) -> Any:
    """A string field that accepts only `choices` (OmegaConf itself would accept any string)."""
    return field(default=default, metadata={"choices": choices})


def not_negative(default: float | None) -> Any:
    """A number field whose value must be zero or more (or null, where that is the default)."""
    return field(default=default, metadata={"not_negative": True})


def positive(default: float) -> Any:
    """A number field whose value must be above zero."""
    return field(default=default, metadata={"positive": True})


def path(default: str | None = "") -> Any:
    """A file or a folder: `~` and variables of the environment in it are expanded."""
    return field(default=default, metadata={"path": True})


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

    layers: int = positive(30)  # topmost layers with prompts
    prompt_length: int = positive(10)  # prompts of each
    # V2: first layers that attend to the image's embeddings (st.prefix_length of them); 0 is V1,
    # which adds the image's one embedding to the prompts of the topmost layers
    early_layers: int = not_negative(0)
    bias_scale: bool = False  # V2: y = scale * (W x + bias) in every linear map of the layers


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
    lora: LoRAConfig = field(default_factory=LoRAConfig)


@dataclass
class MixConfig:
    """One set of a mixture."""

    shards: str = path()  # as data.shards
    split: str | None = None  # null = data.train_split
    weight: float = positive(1.0)  # how often an epoch has each record; 2.5: twice, half of them 3x
    name: str | None = None  # in TensorBoard and the summary; null = the last part of `shards`

    @property
    def label(self) -> str:
        """The set's name, given or taken from its place."""
        return self.name or self.shards.rstrip("/").rpartition("/")[2]


@dataclass
class RemoteConfig:
    """How shards are read that lie on a server: fetched whole into a folder of this machine."""

    cache: str | None = path(None)  # this folder, best on a local disk; null = ~/.cache/eim
    cache_gb: float = positive(100.0)  # the most that it holds, in 10^9 bytes
    schemes: list[str] = field(default_factory=list)  # fsspec's, allowed besides http(s) and s3


@dataclass
class DataConfig(RemoteConfig):
    """Where the records are and how they are read."""

    # what an LM learns of a record: its captions, or to answer its question (see `scienceqa`)
    task: str = one_of("captions", "captions", "scienceqa")
    shards: str = path()  # folder, or http(s):// or s3:// URL, with a sub-folder for each split
    mix: list[MixConfig] = field(default_factory=list)  # trained on instead of shards' train_split
    train_split: str = "train"
    val_split: str = "val"
    test_split: str = "test"
    # longest text in tokens, EOS included; the rest is cut, counted. Of a question's row it counts
    # all positions, image slots too, and is 640 by default
    max_tokens: int = positive(64)
    lanes: int = positive(64)  # the plan's parallel streams; part of the data order
    window: int = positive(1024)  # records shuffled together within a lane
    workers: int = not_negative(2)  # loading processes per rank; 0 loads in the training process
    max_pixels: int = positive(89_478_485)  # larger images are refused from their header
    max_bad_fraction: float = not_negative(0.01)  # of an epoch; more bad records stop the run
    strict: bool = False  # stop at the first bad record
    cache_features: bool = True  # encode each image once where the encoder is frozen


@dataclass
class ScienceQAConfig:
    """How ScienceQA's questions are put (`data.task: scienceqa`)."""

    # what is shown, and what is to be said, in order: Question, Context, Multiple choices, Lecture,
    # Explanation (the data's solution), Answer
    format: str = "QCM-ALE"
    wording: str = one_of("scienceqa", "scienceqa", "lavin")  # "Answer:", or LaVIN's "Response:"
    use_caption: bool = False  # a captioner's words on the image are part of the context
    answer_weight: float = positive(1.0)  # in the loss, of "The answer is A."; all else counts 1


@dataclass
class PhaseConfig:
    """What every phase has."""

    enabled: bool = True
    ds_config: str = path("zero3")  # a file of ds_configs/ without its ending, or a path
    init_from: str | None = path(None)  # an export to start from instead of the predecessor's
    captions: str = one_of("all", "all", "one")  # of a record: all of them, or one drawn per epoch
    global_batch: int = positive(64)  # records per optimizer step, on any number of ranks
    micro_batch: int = positive(16)  # records per rank and forward pass; changes speed, not results
    epochs: float = positive(1.0)
    max_steps: int | None = None  # ends the phase earlier; the schedule spans this many steps
    lr: float = positive(1e-4)
    weight_decay: float = not_negative(0.01)  # of matrices; vectors (norms, biases) have none
    betas: list[float] = field(default_factory=lambda: [0.9, 0.98])
    eps: float = positive(1e-8)
    clip_norm: float = not_negative(1.0)  # of the global gradient; 0 switches clipping off
    warmup_steps: int = not_negative(0)
    schedule: str = one_of("cosine", "cosine", "linear", "constant")
    ema: float = not_negative(0.0)  # decay of a moving average that is exported; 0 = the last step
    activation_checkpointing: bool = False
    log_every: int = positive(10)  # steps
    checkpoint_every: int = positive(500)  # steps
    keep_checkpoints: int = positive(2)
    eval_every: int = positive(500)  # steps; validation also runs at the end of the phase
    val_records: int | None = None  # validate on this many records only; null = the whole split
    sample_images: int = not_negative(8)  # validation images shown with their captions
    stop_after: int | None = None  # stop, resumable, after this many steps of this start


@dataclass
class EncoderAdaptConfig(PhaseConfig):
    """Contrastive adaptation of the image encoder to the task's own pairs."""

    captions: str = one_of("one", "all", "one")
    lr: float = positive(1e-5)
    # all, last:N (the last N blocks and what follows them), or adapters (family lavin)
    train: str = "all"
    layer_decay: float = positive(1.0)  # a block's learning rate is this times the next one's
    text: str = one_of("train", "train", "locked")  # locked: the text tower stays as it came
    loss: str = one_of("infonce", "infonce", "siglip")
    merge_alpha: float = not_negative(1.0)  # the export: 0 = the original, 1 = the trained weights


@dataclass
class STAlignConfig(PhaseConfig):
    """The ST alone learns to speak the LLM's language."""

    align_weight: float = not_negative(0.0)  # of 1 - cosine(mean ST output, mean caption embedding)


@dataclass
class SegmentConfig:
    """One segment of LLM tuning: what trains and how long; learning rates are the phase's."""

    train: list[str] | None = None  # some of PARTS; null: what the family trains by default
    epochs: float = positive(1.0)
    lr_scale: float = positive(1.0)


@dataclass
class LLMTuneConfig(PhaseConfig):
    """The task itself, in segments."""

    lr: float = positive(2e-5)
    st_lr: float | None = not_negative(None)  # null = lr
    label_smoothing: float = 0.0
    # empty: one of `epochs`, of what the family trains by default
    segments: list[SegmentConfig] = field(default_factory=list)
    caption_records: int = not_negative(0)  # validation records scored with CIDEr


@dataclass
class EvaluateConfig:
    """Captioning of a split and its scores."""

    split: str = "test"
    # null loads the whole model on every rank, which is many times faster; zero3 partitions one
    # that does not fit (stages below 3 partition nothing that inference has)
    ds_config: str | None = path(None)
    records: int | None = not_negative(None)  # null = the whole split
    batch: int = positive(32)  # images per rank and generation call
    beams: int = positive(5)
    max_new_tokens: int = positive(40)
    length_penalty: float = 1.0  # 1 = mean log-probability, as the reference
    stop: str | None = None  # a text of one token that ends a caption and stays in it; null = EOS
    # an export, phase or run to score; null = this run's last phase
    export: str | None = path(None)
    metrics: list[str] = field(
        default_factory=lambda: ["bleu", "meteor", "rouge_l", "cider", "spice"]
    )
    # folder of SPICE's jars; null = pycocoevalcap's own, if there
    spice_models: str | None = path(None)


@dataclass
class CaptionConfig:
    """Captions for one's own images; the keys of `stages/caption.py`."""

    checkpoint: str = path()  # an export, a phase's folder or a run's; its recipe comes along
    images: str = path()  # a folder (with all below it), a file, or a pattern such as 'a/*.jpg'
    out: str = path()  # folder; empty = runs/<name>/captions/<name of the images' folder>
    shown: int = not_negative(300)  # images in the HTML sheet; the JSON lines hold all


@dataclass
class ExportConfig:
    """Models in and out; the keys of `stages/export.py`: either `official` or `checkpoint`."""

    official: str = path()  # a checkpoint of the reference, which becomes an export
    checkpoint: str = path()  # an export, phase or run, which becomes folders for other libraries
    out: str = path()  # folder; must not exist, or be empty


@dataclass
class PrepareConfig(RemoteConfig):
    """One data set to be written as shards, or shards of others to be indexed."""

    # coco, flickr8k, folder, scenes, scienceqa, or webdataset (shards of others)
    source: str = ""
    out: str = path()  # folder; each split becomes a sub-folder
    # coco, flickr8k, folder: the image folder; scienceqa: the folder above train/, val/ and test/
    images: str = path()
    # coco: annotation JSON files
    annotations: list[str] = field(default_factory=list, metadata={"path": True})
    karpathy: str = path()  # coco: dataset_coco.json, whose splits (and sentences) are used
    split: str = "train"  # coco without karpathy and lists, folder without a column, webdataset
    # flickr8k: captions.txt; folder: a .csv, .tsv, .jsonl or .json file; scienceqa: captions.json,
    # may be left out
    captions: str = path()
    # scienceqa: problems.json, or several files
    problems: list[str] = field(default_factory=list, metadata={"path": True})
    pid_splits: str = path()  # scienceqa: pid_splits.json; "" = each problem's own split
    splits: list[str] = field(default_factory=list)  # scienceqa: empty = train, val and test
    resplit: bool = False  # scienceqa: train, val, test anew by the pid's hash, for trials
    image_column: str = ""  # folder: "" = found by its usual names (image, file_name, path, ...)
    caption_column: str = ""  # folder: "" = found by its usual names (caption, text, ...)
    split_column: str = ""  # folder: "" = the column `split`, where there is one
    # webdataset: a folder of tars, or a pattern: [s3://b]/d/{00000..00331}.tar
    shards: str = path()
    hash: bool = False  # webdataset: also compute SHA-256 of each shard, which reads all of it
    # flickr8k: folder with Flickr_8k.{train,dev,test}Images.txt
    # coco with annotations: folder with karpathy_{val,test}_images.txt
    split_lists: str = path()
    style: str = one_of("general", "general", "target")  # scenes
    wording: str = one_of("style", "style", "both")  # scenes: a record is told in either wording
    counts: dict[str, int] = field(
        default_factory=lambda: {"train": 2000, "val": 200, "test": 200}
    )  # scenes: records of each split
    image_size: int = positive(64)  # scenes: pixels
    records_per_shard: int = positive(1000)
    seed: int = not_negative(0)
    workers: int = not_negative(2)


@dataclass
class ScratchConfig:
    """Sizes of the small models that `stages/pretrain.py` makes, for whoever has no weights."""

    vocab_size: int = positive(1000)
    context_length: int = positive(64)
    # of the CLIP's text tower, which pads every text to it; null = context_length
    text_context_length: int | None = not_negative(None)
    image_size: int = positive(64)
    patch_size: int = positive(8)
    vision_width: int = positive(128)
    vision_layers: int = positive(4)
    text_width: int = positive(128)
    text_layers: int = positive(2)
    embed_dim: int = positive(128)
    llm_width: int = positive(128)
    llm_layers: int = positive(4)
    heads: int = positive(4)


@dataclass
class PretrainConfig:
    """A small CLIP and a small LM from scratch, on `shards`."""

    out: str = path()  # folder: clip/ in open_clip's format, llm/ in transformers'
    shards: str = path()  # null-string = the recipe's own data
    scratch: ScratchConfig = field(default_factory=ScratchConfig)
    clip: EncoderAdaptConfig = field(default_factory=lambda: EncoderAdaptConfig(lr=1e-3))
    llm: LLMTuneConfig = field(default_factory=lambda: LLMTuneConfig(lr=1e-3))


@dataclass
class Config:
    """A whole experiment: the model, the data, the three phases."""

    recipe: str = "quickstart"
    name: str = ""  # of the run directory; the recipe's name when empty
    runs: str = path("runs")
    seed: int = not_negative(0)
    family: str = one_of("clipcap", *PARTS)
    baseline: bool = False  # the same model with the EIM measures off, for as many records seen
    precision: str = one_of("auto", "auto", "bf16", "fp16", "fp32")
    make_missing: bool = False  # make missing shards, weights and predecessors first
    overwrite: bool = False  # start a phase again whose export is of another recipe
    plan: bool = False  # say what the stage would do, and stop (also --plan)
    plan_ranks: int | None = None  # plan for this many ranks; null = those of the launch
    paths: dict[str, str] = field(default_factory=dict)  # variables for the recipe's ${paths.x}
    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    st: STConfig = field(default_factory=STConfig)
    llm: LLMConfig = field(default_factory=LLMConfig)
    lavin: LavinConfig = field(default_factory=LavinConfig)
    llama_adapter: LlamaAdapterConfig = field(default_factory=LlamaAdapterConfig)
    data: DataConfig = field(default_factory=DataConfig)
    scienceqa: ScienceQAConfig = field(default_factory=ScienceQAConfig)
    encoder_adapt: EncoderAdaptConfig = field(default_factory=EncoderAdaptConfig)
    st_align: STAlignConfig = field(default_factory=STAlignConfig)
    llm_tune: LLMTuneConfig = field(default_factory=LLMTuneConfig)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
    caption: CaptionConfig = field(default_factory=CaptionConfig)
    export: ExportConfig = field(default_factory=ExportConfig)
    prepare: dict[str, PrepareConfig] = field(default_factory=dict)
    pretrain: PretrainConfig = field(default_factory=PretrainConfig)
