"""Choosing by likelihood: one pass or one row an option, the same choice; ties and gaps told."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.evaluation.options import (
    NONE,
    choose,
    next_token_scores,
    option_table,
    sequence_scores,
)

counts = st.lists(st.integers(2, 5), min_size=1, max_size=6)


def test_the_likeliest_of_a_questions_own_options_is_chosen() -> None:
    logits = torch.tensor([[0.0, 9.0, 1.0, 2.0], [0.0, 3.0, 2.0, 9.0]])
    options = option_table([[(2,), (3,)], [(1,), (2,), (0,)]])
    assert options is not None and options.tolist() == [[2, 3, NONE], [1, 2, 0]]
    found = choose(next_token_scores(logits, options))
    assert found.index.tolist() == [1, 0] and not found.tied.any()


def test_options_of_several_tokens_have_no_table() -> None:
    assert option_table([[(1,), (2, 3)]]) is None


@given(counts, st.integers(0, 10_000))
@settings(deadline=None)
def test_one_pass_and_one_row_an_option_agree(sizes: list[int], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(len(sizes), 11, generator=generator)
    ids = [torch.randperm(11, generator=generator)[:n].tolist() for n in sizes]
    table = option_table([[(each,) for each in row] for row in ids])
    assert table is not None
    one_pass = next_token_scores(logits, table)
    question = torch.tensor([q for q, row in enumerate(ids) for _ in row])
    tokens = torch.tensor([each for row in ids for each in row])
    # Rows of four positions, of which the option is the third; the rest must not matter.
    log_probs = torch.full((len(tokens), 4), -torch.inf)
    log_probs[:, 2] = logits.log_softmax(-1)[question, tokens]
    mask = torch.zeros(len(tokens), 4, dtype=torch.bool)
    mask[:, 2] = True
    rows = sequence_scores(log_probs, mask, question)
    torch.testing.assert_close(rows, one_pass)
    assert choose(rows).index.tolist() == choose(one_pass).index.tolist()


def test_a_score_is_the_sum_over_the_options_tokens() -> None:
    log_probs = torch.tensor([[-1.0, -2.0, -4.0], [-8.0, -0.5, -0.25], [-1.0, -1.0, -1.0]])
    mask = torch.tensor([[0, 1, 1], [0, 1, 0], [1, 1, 1]], dtype=torch.bool)
    found = sequence_scores(log_probs, mask, torch.tensor([0, 0, 1]))
    assert found.tolist() == [[-6.0, -0.5], [-3.0, -torch.inf]]


@given(counts, st.integers(0, 10_000))
@settings(deadline=None)
def test_a_choice_does_not_depend_on_the_other_questions(sizes: list[int], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(len(sizes), 7, generator=generator)
    ids = [[(int(i),) for i in torch.randperm(7, generator=generator)[:n]] for n in sizes]
    table = option_table(ids)
    assert table is not None
    together = choose(next_token_scores(logits, table)).index.tolist()
    alone = []
    for row, question in zip(logits, ids, strict=True):
        own = option_table([question])
        assert own is not None
        alone += choose(next_token_scores(row[None], own)).index.tolist()
    assert together == alone
    assert all(0 <= index < n for index, n in zip(together, sizes, strict=True))


def test_ties_are_told_and_the_first_is_taken() -> None:
    found = choose(torch.tensor([[1.0, 3.0, 3.0], [2.0, 1.0, -torch.inf]]))
    assert found.index.tolist() == [1, 0] and found.tied.tolist() == [True, False]


def test_what_is_not_a_number_is_never_chosen() -> None:
    nan, inf = float("nan"), float("inf")
    found = choose(torch.tensor([[nan, -5.0, -9.0], [nan, nan, -inf], [inf, -1.0, -2.0]]))
    assert found.index.tolist() == [1, NONE, 1] and not found.tied.any()
    assert choose(torch.empty(2, 0)).index.tolist() == [NONE, NONE]


def test_neighbours_are_told_apart_in_half_precision_inputs() -> None:
    logits = torch.tensor([[20.0, 20.125, 3.0]], dtype=torch.bfloat16)
    found = choose(next_token_scores(logits, torch.tensor([[0, 1]])))
    assert found.index.tolist() == [1] and not found.tied.any()
