"""Talking to a model: which, where it listens, and what one question may cost."""

from dataclasses import dataclass

from pipeline.config.fields import not_negative, one_of, path, positive


@dataclass
class ChatConfig:
    """The keys of `stages/chat.py`."""

    checkpoint: str = path()  # an export, phase or run, which brings its recipe along
    # a second one that answers the same questions beside it: the baseline beside EIM
    beside: str = path()
    ui: str = one_of("terminal", "terminal", "web")
    host: str = "127.0.0.1"  # web: 0.0.0.0 lets other machines in, without a password
    port: int = positive(7860)  # web
    # what users start from; each can choose otherwise, up to max_new_tokens
    temperature: float = not_negative(0.0)  # 0 = the likeliest token, always
    top_p: float = positive(1.0)  # the likeliest tokens that together have this probability
    seed: int = not_negative(0)  # of what is drawn where the temperature is above 0
    max_new_tokens: int = positive(256)  # of an answer
    max_seconds: float = positive(120.0)  # of an answer, once it has begun
    max_characters: int = positive(8000)  # of a question; of a whole conversation ten times as many
    max_image_bytes: int = positive(10_485_760)  # of an uploaded file
    max_pixels: int = positive(40_000_000)
    waiting: int = positive(16)  # questions that wait for a model; more are refused
    # conversations whose keys and values a model keeps for their next turn; of LLaMA-7B half a MB
    # for each of their tokens
    cached: int = positive(4)
