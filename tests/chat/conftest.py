"""Two small chat models and one server of both, for all tests of this folder."""

import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from pipeline.chat.limits import Sampling
from pipeline.chat.loading import load_chat_models
from pipeline.chat.model import ChatModel
from pipeline.chat.server import serving
from pipeline.config import ChatConfig
from pipeline.recipe import load_recipe
from tests.chat.small import ALONE, write_exports

GREEDY = Sampling(temperature=0.0, top_p=1.0, max_new_tokens=12, seed=0)


@dataclass
class Pace:
    """Seconds that a token takes beyond the model's own time."""

    seconds: float = 0.0

    def wait(self, *_: object) -> None:
        """A hook."""
        time.sleep(self.seconds)


@pytest.fixture(scope="session")
def whole_pace() -> Pace:
    return Pace()


@pytest.fixture
def pace(whole_pace: Pace) -> Iterator[Pace]:
    """The models' pace, which a test may change."""
    yield whole_pace
    whole_pace.seconds = 0.0


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory, whole_pace: Pace) -> Iterator[list[ChatModel]]:
    """`eim` and `baseline`."""
    eim, baseline = write_exports(tmp_path_factory.mktemp("chat"))
    settings = ["max_new_tokens=48", "max_characters=300", "max_image_bytes=200000"]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    config = load_recipe(
        [f"checkpoint={eim}", f"beside={baseline}", f"port={port}", *settings], "chat"
    )
    loaded = load_chat_models(config, ALONE)
    for model in loaded:
        for each in model.models:
            each.llm.register_forward_pre_hook(whole_pace.wait)
    yield loaded


@pytest.fixture(scope="session")
def url(models: list[ChatModel]) -> Iterator[str]:
    """Of a server of both models."""
    config: ChatConfig = models[0].limits.config
    with serving(models, config) as server:
        while not server.started:
            time.sleep(0.05)
        yield f"http://127.0.0.1:{config.port}"
