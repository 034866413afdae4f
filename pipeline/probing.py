"""What watches a phase with an LM loss: its probes, put together from recipe, model and data.

Which records are looked at, and whether there is anything to ask; how it is measured stands in
`callbacks/probes.py`.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch

from pipeline.assemble import CaptionModel
from pipeline.callbacks.probes import CaptionProbe, QuestionProbe, References
from pipeline.config import Config, LanguagePhaseConfig, LLMTuneConfig
from pipeline.data.loader import Pass, StepDataset
from pipeline.data.plan import Plan, items_in_order
from pipeline.engine import Engine
from pipeline.splits import Split
from pipeline.tasks import QUESTIONS, question_format, question_text, right_choices, true_texts

log = logging.getLogger("pipeline")


@dataclass(frozen=True)
class Watched:
    """A phase that trains, and its validation split."""

    config: Config
    name: str
    phase: LanguagePhaseConfig
    engine: Engine
    built: CaptionModel
    val: Split
    rows: Callable[[Plan, str], StepDataset]  # of `val`: the plan, and which; `caption_dataset`
    dtype: torch.dtype

    def probe(self) -> CaptionProbe:
        """Validation loss, samples, and the scores that the recipe asks for."""
        config, phase, val = self.config, self.phase, self.val
        captioned = phase.caption_records if isinstance(phase, LLMTuneConfig) else 0
        shown = max(captioned, phase.sample_images)
        shown_plan = val.in_order(self._batch, min(shown, val.records))
        whole = self.rows(val.in_order(self._batch, phase.val_records), "all")
        return CaptionProbe(
            self.engine,
            self.built.model,
            self.built.tokenizer,
            rows=Pass(whole, config.data.workers),
            prompts=Pass(self.rows(shown_plan, "none"), workers=0),
            references=References(
                val.reader,
                items_in_order(shown_plan) if shown else [],
                partial(true_texts, config),
                partial(question_text, config),
            ),
            caption_records=captioned,
            sample_images=phase.sample_images,
            settings=config.evaluate,
            dtype=self.dtype,
            questions=self._questions(),
        )

    def _questions(self) -> QuestionProbe | None:
        """None where nothing is asked, or options cannot be compared."""
        config, phase = self.config, self.phase
        wanted = phase.val_records if phase.question_records is None else phase.question_records
        if config.data.task != QUESTIONS or wanted == 0:
            return None
        if not question_format(config).answers_first:
            log.info(
                "%-13s no accuracy while it trains: scienceqa.format=%s explains before it answers",
                self.name,
                config.scienceqa.format,
            )
            return None
        plan = self.val.in_order(self._batch, wanted)
        return QuestionProbe(
            self.engine,
            self.built.model,
            asked=Pass(self.rows(plan, "options"), config.data.workers),
            right=partial(right_choices, self.val.reader, items_in_order(plan)),
            dtype=self.dtype,
        )

    @property
    def _batch(self) -> int:
        return self.phase.micro_batch * self.engine.world.size
