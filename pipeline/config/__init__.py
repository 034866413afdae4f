"""The recipe as typed dataclasses: every key a user can set, with its default and its meaning.

`pipeline/recipe.py` loads a YAML recipe and a dotlist into these and checks what can be checked
without loading a model. Defaults are the right choice for a real run. Sizes are counts of records
(one image with its captions) unless a name says otherwise; learning rates are absolute.
"""

from dataclasses import dataclass, field

from pipeline.config.chat import ChatConfig
from pipeline.config.checkpoints import CheckpointsConfig
from pipeline.config.data import (
    TASKS,
    DataConfig,
    InstructConfig,
    MixConfig,
    PrepareConfig,
    RemoteConfig,
    ScienceQAConfig,
    task_defaults,
)
from pipeline.config.fields import not_negative, one_of, path
from pipeline.config.jobs import (
    CaptionConfig,
    EvaluateConfig,
    ExportConfig,
    PretrainConfig,
    ScratchConfig,
)
from pipeline.config.model import (
    PARTS,
    EncoderConfig,
    LavinConfig,
    LlamaAdapterConfig,
    LLMConfig,
    LoRAConfig,
    MMAdapterConfig,
    STConfig,
)
from pipeline.config.phases import (
    BASELINE_SUFFIX,
    PHASES,
    EncoderAdaptConfig,
    LanguagePhaseConfig,
    LLMTuneConfig,
    PhaseConfig,
    SegmentConfig,
    STAlignConfig,
)

__all__ = [
    "BASELINE_SUFFIX",
    "PARTS",
    "PHASES",
    "TASKS",
    "CaptionConfig",
    "ChatConfig",
    "CheckpointsConfig",
    "Config",
    "DataConfig",
    "EncoderAdaptConfig",
    "EncoderConfig",
    "EvaluateConfig",
    "ExportConfig",
    "InstructConfig",
    "LLMConfig",
    "LLMTuneConfig",
    "LanguagePhaseConfig",
    "LavinConfig",
    "LlamaAdapterConfig",
    "LoRAConfig",
    "MMAdapterConfig",
    "MixConfig",
    "PhaseConfig",
    "PrepareConfig",
    "PretrainConfig",
    "RemoteConfig",
    "STAlignConfig",
    "STConfig",
    "ScienceQAConfig",
    "ScratchConfig",
    "SegmentConfig",
    "task_defaults",
]


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
    resume_with_changes: bool = False  # go on from what other values or data began, knowingly
    deterministic: bool = False  # the same bits again on GPUs too, at some speed; CPUs give them
    # seconds without a sign of life of a rank until all ranks end (ten times as long where none has
    # done its first step); null = wait for ever
    timeout: float | None = not_negative(45.0)
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
    checkpoints: CheckpointsConfig = field(default_factory=CheckpointsConfig)
    instruct: InstructConfig = field(default_factory=InstructConfig)
    encoder_adapt: EncoderAdaptConfig = field(default_factory=EncoderAdaptConfig)
    st_align: STAlignConfig = field(default_factory=STAlignConfig)
    llm_tune: LLMTuneConfig = field(default_factory=LLMTuneConfig)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
    caption: CaptionConfig = field(default_factory=CaptionConfig)
    chat: ChatConfig = field(default_factory=ChatConfig)
    export: ExportConfig = field(default_factory=ExportConfig)
    prepare: dict[str, PrepareConfig] = field(default_factory=dict)
    pretrain: PretrainConfig = field(default_factory=PretrainConfig)
