"""Chat templates and tokenizers for conversations, in the manner of well-known models."""

from transformers import PreTrainedTokenizerFast

from tests.data.questions import byte_level, sentence_piece

# Marks its answers itself, so that transformers' own mask of them can be compared.
CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' }}"
    "{% if m['role'] == 'assistant' %}"
    "{% generation %}{{ m['content'] + '<|im_end|>' }}{% endgeneration %}"
    "{% else %}{{ m['content'] + '<|im_end|>' }}{% endif %}{{ '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# As Llama 2: BOS and EOS around each exchange, nothing between the cue and the answer.
LLAMA = (
    "{% for m in messages %}{% if m['role'] == 'user' %}"
    "{{ bos_token + '[INST] ' + m['content'] + ' [/INST]' }}"
    "{% elif m['role'] == 'assistant' %}"
    "{% generation %}{{ ' ' + m['content'] + ' ' + eos_token }}{% endgeneration %}"
    "{% else %}{{ raise_exception('no system') }}{% endif %}{% endfor %}"
)
# Shows only the last answer with its thoughts, as some reasoning models' templates.
FORGETS = (
    "{% for m in messages %}{{ m['role'] + ': ' }}"
    "{% if m['role'] == 'assistant' and loop.last %}{{ '<think></think>' }}{% endif %}"
    "{{ m['content'] + eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
)


def chatml() -> PreTrainedTokenizerFast:
    """Byte level; an answer ends in <|im_end|>, which is EOS."""
    tokenizer = byte_level()
    tokenizer.add_special_tokens(
        {"eos_token": "<|im_end|>", "additional_special_tokens": ["<|im_start|>"]}
    )
    tokenizer.chat_template = CHATML
    return tokenizer


def llama() -> PreTrainedTokenizerFast:
    """Sentence pieces, BOS and EOS."""
    tokenizer = sentence_piece()
    tokenizer.add_special_tokens({"bos_token": "<s>"})
    tokenizer.chat_template = LLAMA
    return tokenizer
