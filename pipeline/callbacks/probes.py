"""What a phase is watched by: numbers and pictures from the validation split.

`CaptionProbe` for the phases with an LM loss, with a `QuestionProbe` where questions are answered;
`RetrievalProbe` for the contrastive one. All are called on every rank, the engine in eval mode.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import TypeVar

import torch
from PIL import Image
from transformers import PreTrainedTokenizerBase

from pipeline.answering import choose_options
from pipeline.callbacks.samples import Example, sheet
from pipeline.captioning import caption_batches
from pipeline.config import EvaluateConfig
from pipeline.data.faults import ContentFault
from pipeline.data.loader import Pass
from pipeline.data.reader import RawRecord, ShardReader
from pipeline.dist import World, gather_json, on_main
from pipeline.engine import Engine
from pipeline.evaluation.captions import quick_cider
from pipeline.evaluation.retrieval import recall_at_k
from pipeline.models.multimodal import MultimodalLM
from pipeline.stopping import stoppable
from pipeline.validation import language_metrics, retrieval_features, skipped_over_ranks

T = TypeVar("T")


def captions_of(raw: RawRecord) -> list[str]:
    """A record's captions."""
    return list(raw.data["captions"])


def nothing(raw: RawRecord) -> str:
    """Captions answer no question."""
    return ""


@dataclass(frozen=True)
class References:
    """The first records of a split with their images and true texts, for rank 0."""

    reader: ShardReader
    items: Sequence[tuple[int, int]]  # (shard, record)
    texts: Callable[[RawRecord], list[str]] = captions_of  # ContentFault where there are none
    asked: Callable[[RawRecord], str] = nothing  # what a record asks; ContentFault likewise

    def captions(self) -> dict[str, list[str]]:
        """Record key -> true texts."""
        return self._read(self.texts)

    def questions(self) -> dict[str, str]:
        """Record key -> what it asks."""
        return self._read(self.asked)

    def _read(self, what: Callable[[RawRecord], T]) -> dict[str, T]:
        found = {}
        for shard, record in self.items:
            try:
                raw = self.reader.read(shard, record)
                found[raw.key] = what(raw)
            except ContentFault:
                continue
        return found

    def examples(self, predicted: dict[str, str], limit: int) -> list[Example]:
        """Images with predictions and the first true text; unusable images are left out."""
        found: list[Example] = []
        for shard, record in self.items[:limit]:
            try:
                raw = self.reader.read(shard, record)
                image = self.reader.image(raw, draft_size=256)
                said, truth = predicted.get(raw.key, ""), self.texts(raw)[0]
                found.append(Example(image, said, truth, self.asked(raw)))
            except ContentFault:
                continue
        return found


class QuestionProbe:
    """The accuracy of the likeliest options of the first questions, in percent."""

    def __init__(
        self,
        engine: Engine,
        model: MultimodalLM,
        *,
        asked: Pass,
        right: Callable[[], dict[str, int]],
        dtype: torch.dtype,
    ) -> None:
        """right: record key -> index of the right choice, of all questions; rank 0 asks once."""
        self._engine, self._model, self._asked, self._dtype = engine, model, asked, dtype
        self._right = cache(right)

    def measure(self) -> dict[str, float]:
        """accuracy; a question that could not be asked is wrong, as in the evaluation."""
        world = self._engine.world
        mine = choose_options(self._model, self._asked(), device=world.device, dtype=self._dtype)
        chosen = mine.over_ranks(world).chosen

        def accuracy() -> float:
            right = self._right()
            hits = sum(chosen.get(key) == index for key, index in right.items())
            return 100 * hits / max(len(right), 1)

        return {"accuracy": on_main(accuracy, world)}


class CaptionProbe:
    """Validation loss, and what is said of the first records: CIDEr and a sheet of samples."""

    def __init__(
        self,
        engine: Engine,
        model: MultimodalLM,
        tokenizer: PreTrainedTokenizerBase,
        *,
        rows: Pass,
        prompts: Pass,
        references: References,
        caption_records: int,
        sample_images: int,
        settings: EvaluateConfig,
        dtype: torch.dtype,
        questions: QuestionProbe | None = None,
    ) -> None:
        self._engine, self._model, self._tokenizer = engine, model, tokenizer
        self._questions = questions
        self._rows, self._prompts, self._references = rows, prompts, references
        self._caption_records, self._sample_images = caption_records, sample_images
        # Greedy: watching must stay cheap; the final evaluation searches with beams.
        self._settings = replace(settings, beams=1)
        self._dtype = dtype
        self._captions: dict[str, str] = {}

    @property
    def _world(self) -> World:
        return self._engine.world

    def measure(self) -> dict[str, float]:
        """loss, perplexity and, where asked for, accuracy, and CIDEr of greedy captions."""
        metrics = language_metrics(self._engine, self._rows(), self._world, self._dtype)
        metrics |= {} if self._questions is None else self._questions.measure()
        metrics |= _skipped(self._rows, self._world)
        if not self._references.items:
            return metrics
        local = caption_batches(
            self._model,
            stoppable(self._prompts(), self._world),
            self._tokenizer,
            self._settings,
            device=self._world.device,
            dtype=self._dtype,
            synced=self._engine.stage == 3,
        )
        self._captions = {k: v for each in gather_json(local, self._world) for k, v in each.items()}
        if self._caption_records:
            truth = self._references.captions()
            both = {key: text for key, text in self._captions.items() if key in truth}
            metrics["cider"] = quick_cider(both, {key: truth[key] for key in both})
        return metrics

    def show(self) -> Image.Image | None:
        """The samples, on rank 0."""
        if not self._world.is_main or not self._captions or not self._sample_images:
            return None
        return sheet(self._references.examples(self._captions, self._sample_images))


class RetrievalProbe:
    """Recall over the split, and for the first records the caption that the towers find nearest."""

    def __init__(
        self,
        engine: Engine,
        *,
        pairs: Pass,
        references: References,
        sample_images: int,
        dtype: torch.dtype,
    ) -> None:
        self._engine, self._pairs, self._references = engine, pairs, references
        self._sample_images, self._dtype = sample_images, dtype
        self._nearest: list[tuple[int, int, int]] = []

    def measure(self) -> dict[str, float]:
        """Recall at 1, 5, 10, both ways."""
        world = self._engine.world
        found = retrieval_features(self._engine, self._pairs(), world, self._dtype)
        image, text, text_image, records = found
        self._nearest = []
        best = (image[: self._sample_images] @ text.T).argmax(1)
        for row, index in enumerate(best.tolist()):
            owner = int(text_image[index])
            which = int((text_image[:index] == owner).sum())
            self._nearest.append((int(records[row]), int(records[owner]), which))
        return recall_at_k(image, text, text_image) | _skipped(self._pairs, world)

    def show(self) -> Image.Image | None:
        """The samples, on rank 0."""
        if not self._engine.world.is_main or not self._nearest:
            return None
        reader, items = self._references.reader, self._references.items
        examples = []
        for own, found, which in self._nearest:
            try:
                raw = reader.read(*items[own])
                image = reader.image(raw, draft_size=256)
                texts = reader.read(*items[found]).data["captions"]
            except ContentFault:
                continue
            examples.append(
                Example(image, texts[min(which, len(texts) - 1)], raw.data["captions"][0])
            )
        return sheet(examples)


def _skipped(reading: Pass, world: World) -> dict[str, float]:
    """How many records a validation could not use, as a metric where there are any."""
    total = skipped_over_ranks(reading.faults, world).total()
    return {"records_skipped": float(total)} if total else {}
