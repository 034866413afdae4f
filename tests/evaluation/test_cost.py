"""What answering costs: sums over batches, and the arithmetic of generation."""

from pipeline.evaluation.cost import Cost


def test_costs_add_up_and_are_told_by_the_batch_and_by_the_question() -> None:
    cost = Cost(1, 4, 1, 410, 400) + Cost(1, 2, 1, 190, 200)
    assert cost == Cost(2, 6, 2, 600, 600)
    assert cost.as_dict()["llm_passes"] == 1.0
    assert cost.as_dict()["token_forwards"] == 600
    assert str(cost) == (
        "LLM passes a batch: 1, positions a question: 100; generating 64 tokens: 64 passes, "
        "163 positions with a KV cache, 8,416 without"
    )


def test_generation_is_the_sum_of_what_goes_through_at_each_step() -> None:
    prompts, new = (7, 12, 3), 5
    cost = Cost(questions=len(prompts), prompts=sum(prompts))
    cached = sum(prompt + new - 1 for prompt in prompts)
    uncached = sum(prompt + step for prompt in prompts for step in range(new))
    assert cost.generating(new) == (cached, uncached)


def test_nothing_at_all_costs_nothing() -> None:
    assert Cost().as_dict()["llm_passes"] == 0
    assert "positions a question: 0" in str(Cost())
