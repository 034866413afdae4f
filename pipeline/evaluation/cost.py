"""What answering questions costs a language model: its forward passes, and their positions.

A pass is one call of the LLM on a batch: for each, ZeRO-3 gathers all parameters and a GPU waits. A
position is one token of one row that goes through it (a token-forward). Both ways of answering are
counted by the same hook (`models/counting.py`); what generating 64 tokens takes is arithmetic on
the lengths of what is generated from. Pure numbers.
"""

from dataclasses import asdict, dataclass, fields
from typing import Any

GENERATED = 64  # new tokens that a cost is compared with; SOURCE: LaVIN eval.py --max_gen_len


@dataclass(frozen=True)
class Cost:
    """Counted over batches; costs add up."""

    batches: int = 0  # that hold questions
    questions: int = 0
    passes: int = 0
    positions: int = 0
    prompts: int = 0  # positions of what generation would go on from

    def __add__(self, other: "Cost") -> "Cost":
        sums = (getattr(self, f.name) + getattr(other, f.name) for f in fields(self))
        return Cost(*sums)

    @property
    def passes_per_batch(self) -> float:
        """1 where options are compared; in generation about the tokens of the longest text."""
        return self.passes / max(self.batches, 1)

    def generating(self, new: int = GENERATED) -> tuple[int, int]:
        """Positions of generating `new` tokens for each question: with a KV cache, and without.

        With one, each prompt goes through once, and each new token but the last; without one, all
        that stands before it goes through again for each. Both take `new` passes a batch.
        """
        between = self.questions * new * (new - 1) // 2
        return self.prompts + self.questions * (new - 1), new * self.prompts + between

    def as_dict(self) -> dict[str, Any]:
        """For metrics.json."""
        cached, uncached = self.generating()
        return {
            "llm_passes": self.passes_per_batch,
            "token_forwards": self.positions,
            f"generating_{GENERATED}_tokens": {
                "llm_passes": GENERATED,
                "token_forwards": cached,
                "token_forwards_without_cache": uncached,
            },
            "counted": asdict(self),
        }

    def __str__(self) -> str:
        """One line: what it took a question, and what generation takes in its place."""
        each = max(self.questions, 1)
        cached, uncached = (f"{count / each:,.0f}" for count in self.generating())
        return (
            f"LLM passes a batch: {self.passes_per_batch:.3g}, positions a question: "
            f"{self.positions / each:,.0f}; generating {GENERATED} tokens: {GENERATED} passes, "
            f"{cached} positions with a KV cache, {uncached} without"
        )
