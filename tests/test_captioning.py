"""Where captions end: at EOS, or at the text that `evaluate.stop` names, which stays."""

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import nn
from transformers import PreTrainedTokenizerFast

from pipeline.captioning import caption_batches, continuations, end_ids
from pipeline.config import EvaluateConfig
from pipeline.data.collate import LanguageCollator, Sample
from pipeline.data.prompts import row_of
from pipeline.errors import ConfigError
from pipeline.models.multimodal import IMAGE_SLOT, MultimodalLM
from tests.models import tiny

WORDS = ("a", "cat", "dog", "on", "the", "mat", ".", "</s>")
CPU = torch.device("cpu")


@pytest.fixture
def tokenizer() -> PreTrainedTokenizerFast:
    backend = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, "a"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>", pad_token="</s>")


def captions(tokenizer: PreTrainedTokenizerFast, **settings: object) -> dict[str, str]:
    """Of 20 random features, by a random LM over eight words."""
    model: MultimodalLM = tiny.multimodal(
        tiny.gpt2(vocab_size=len(WORDS), bos_token_id=7, eos_token_id=7)
    )
    nn.init.normal_(model.st.up.weight, std=5.0)
    torch.manual_seed(3)
    prompt = row_of([IMAGE_SLOT] * tiny.PREFIX, [])
    samples = [Sample(str(i), i, (), torch.randn(tiny.FEATURE), (prompt,)) for i in range(20)]
    collate = LanguageCollator((tiny.FEATURE,), 7, prompt, left=True)
    chosen = EvaluateConfig(**{"beams": 1, "max_new_tokens": 12, **settings})
    return caption_batches(
        model, [collate(samples)], tokenizer, chosen, device=CPU, dtype=torch.float32
    )


def test_a_record_has_a_text_for_each_of_its_rows_and_a_dummy_none(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    model = tiny.multimodal(tiny.gpt2(vocab_size=len(WORDS), bos_token_id=7, eos_token_id=7))
    slots = [IMAGE_SLOT] * tiny.PREFIX
    rows = tuple(row_of([*slots, *words], []) for words in ([0], [1, 2, 3]))
    collate = LanguageCollator((tiny.FEATURE,), 7, row_of(slots, [7]), left=True)
    dummy = LanguageCollator((tiny.FEATURE,), 7, row_of([0], [7]), left=True)([])
    features = torch.randn(2, tiny.FEATURE)
    two = [Sample("a", 0, (), features[0], rows), Sample("b", 1, (), features[1], rows[:1])]
    chosen, how = EvaluateConfig(beams=1, max_new_tokens=5), {"device": CPU, "dtype": torch.float32}
    found = list(continuations(model, [collate(two), dummy], tokenizer, chosen, **how))
    assert [len(each.texts) for each in found] == [3, 0]
    assert found[0].by_record().keys() == {"a", "b"} and found[1].by_record() == {}
    for row, text in zip(rows, found[0].by_record()["a"], strict=True):
        alone = collate([Sample("a", 0, (), features[0], (row,))])
        (one,) = continuations(model, [alone], tokenizer, chosen, **how)
        assert one.texts == [text]


@pytest.mark.parametrize("stop", ["the", "mat"])
def test_a_stop_text_ends_a_greedy_caption_and_stays_in_it(
    tokenizer: PreTrainedTokenizerFast, stop: str
) -> None:
    free = captions(tokenizer)
    stopped = captions(tokenizer, stop=stop)
    longer = 0
    for key, text in free.items():
        words = text.split()
        kept = words[: words.index(stop) + 1] if stop in words else words
        assert stopped[key].split() == kept, key
        longer += len(words) > len(kept)
    assert longer > 2  # they would have gone on


def test_a_caption_ends_where_the_context_does(tokenizer: PreTrainedTokenizerFast) -> None:
    lengths = [len(text.split()) for text in captions(tokenizer, max_new_tokens=500).values()]
    assert 12 < max(lengths) <= 32 - tiny.PREFIX


def test_the_stop_text_is_one_token_or_refused(tokenizer: PreTrainedTokenizerFast) -> None:
    assert end_ids(tokenizer, None) == [7]
    assert end_ids(tokenizer, ".") == [7, 6]
    for text, tokens in (("the mat", 2), ("", 0)):
        with pytest.raises(ConfigError, match=rf"evaluate\.stop='{text}' is {tokens} tokens"):
            end_ids(tokenizer, text)
