"""What stages do besides the phases: scoring, captioning, exporting, models from scratch."""

from dataclasses import dataclass, field

from pipeline.config.data import TASKS
from pipeline.config.fields import not_negative, null_or_one_of, one_of, path, positive
from pipeline.config.phases import EncoderAdaptConfig, LLMTuneConfig


@dataclass
class EvaluateConfig:
    """Captioning a split, or answering its questions, and the scores."""

    split: str = "test"
    # what is scored where it is not what the model learnt: another data.task; null = the recipe's
    task: str | None = null_or_one_of(*TASKS)
    # its folder, as data.shards; null = what the recipe prepares from the source of that name, or
    # data.shards
    shards: str | None = path(None)
    # null loads the whole model on every rank, which is many times faster; zero3 partitions one
    # that does not fit (stages below 3 partition nothing that inference has)
    ds_config: str | None = path(None)
    records: int | None = not_negative(None)  # null = the whole split
    batch: int = positive(32)  # records per rank and generation call
    # questions: the likeliest option, in one pass of the LLM for a batch, where the answer comes
    # before its explanation; or generated text, read where it says "The answer is X."
    answers: str = one_of("likelihood", "likelihood", "generate")
    beams: int = positive(5)  # of questions 1 by default: greedy
    # of questions 64 by default, 512 where scienceqa.format explains before it answers; of MME's
    # 20, of conversations 256
    max_new_tokens: int = positive(40)
    length_penalty: float = 1.0  # 1 = mean log-probability, as the reference
    stop: str | None = None  # a text of one token that ends a caption and stays in it; null = EOS
    # an export, phase or run to score; null = this run's last phase
    export: str | None = path(None)
    metrics: list[str] = field(
        default_factory=lambda: ["bleu", "meteor", "rouge_l", "cider", "spice"]
    )
    # samples in report.html: the worst and some of the best; about 10 kB each
    shown: int = not_negative(500)
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
