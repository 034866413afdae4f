"""The three phases: what trains, on what, for how long."""

from dataclasses import dataclass, field

from pipeline.config.fields import not_negative, one_of, path, positive

PHASES = ("encoder_adapt", "st_align", "llm_tune")

BASELINE_SUFFIX = "-baseline"  # of the name of a run without the EIM measures


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
    keep_checkpoints: int = positive(2)  # the newest
    keep_every: int | None = None  # steps; those at its multiples stay for good; null = none
    keep_best: str | None = None  # a metric of the validation; the best one stays; null = none
    eval_every: int = positive(500)  # steps; validation also runs at the end of the phase
    val_records: int | None = None  # validate on this many records only; null = the whole split
    sample_images: int = not_negative(8)  # validation images shown with their captions
    max_skipped_steps: int = positive(20)  # in a row, for want of finite gradients; then it stops
    spike_window: int = not_negative(
        100
    )  # steps that a loss is compared with; 0 = no spikes marked
    spike_threshold: float = positive(6.0)  # standard deviations above their mean
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
class LanguagePhaseConfig(PhaseConfig):
    """A phase with an LM loss."""

    # data.task=scienceqa: validation questions answered by the likelihood of their options, for the
    # accuracy; null = as many as val_records, 0 = none
    question_records: int | None = not_negative(None)


@dataclass
class STAlignConfig(LanguagePhaseConfig):
    """The ST alone learns to speak the LLM's language."""

    align_weight: float = not_negative(0.0)  # of 1 - cosine(mean ST output, mean caption embedding)


@dataclass
class SegmentConfig:
    """One segment of LLM tuning: what trains and how long; learning rates are the phase's."""

    train: list[str] | None = None  # some of PARTS; null: what the family trains by default
    epochs: float = positive(1.0)
    lr_scale: float = positive(1.0)


@dataclass
class LLMTuneConfig(LanguagePhaseConfig):
    """The task itself, in segments."""

    lr: float = positive(2e-5)
    st_lr: float | None = not_negative(None)  # null = lr
    encoder_lr: float | None = not_negative(None)  # of adapters in the tower (lavin); null = lr
    label_smoothing: float = 0.0
    # empty: one of `epochs`, of what the family trains by default
    segments: list[SegmentConfig] = field(default_factory=list)
    caption_records: int = not_negative(0)  # validation records scored with CIDEr
