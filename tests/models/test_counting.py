"""Passes and positions of a language model, by whomever it is called."""

import torch
from transformers import GenerationConfig

from pipeline.models.counting import counting
from tests.models import tiny


def test_a_forward_pass_counts_its_rows_without_padding() -> None:
    llm = tiny.gpt2()
    ids = torch.ones(2, 5, dtype=torch.long)
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0]])
    with counting(llm) as counter:
        llm(input_ids=ids, attention_mask=mask)
        assert counter.take() == (1, 7)
        llm(inputs_embeds=llm.get_input_embeddings()(ids))
        llm(input_ids=ids)
        assert counter.take() == (2, 20)
        assert counter.take() == (0, 0)
    llm(input_ids=ids)
    assert counter.take() == (0, 0)


def test_generation_with_a_cache_counts_each_prompt_once_and_each_new_token_but_the_last() -> None:
    llm = tiny.gpt2()
    embeds = llm.get_input_embeddings()(torch.ones(2, 5, dtype=torch.long))
    mask = torch.tensor([[1, 1, 1, 1, 1], [0, 0, 0, 1, 1]])
    config = GenerationConfig(max_new_tokens=4, min_new_tokens=4, do_sample=False, pad_token_id=0)
    with counting(llm) as counter:
        llm.generate(inputs_embeds=embeds, attention_mask=mask, generation_config=config)
        assert counter.take() == (4, 7 + 2 * 3)
