"""Talks with a trained model: in the terminal, or with ui=web on a page and as OpenAI's API.

Takes: an export, a phase's folder or a run's, which bring their recipe along; beside= a second one.
Leaves: nothing.

    python stages/chat.py checkpoint=runs/lavin_chat_small
    python stages/chat.py checkpoint=runs/eim beside=runs/baseline ui=web [key=value ...]
"""

import sys

from pipeline.chat.loading import load_chat_models
from pipeline.chat.terminal import Terminal
from pipeline.config import Config
from pipeline.dist import World
from pipeline.errors import ConfigError
from pipeline.explain.handover import explain_chat
from pipeline.stage import run_stage


def main(config: Config, world: World) -> None:
    """One process does it; the models answer in threads of their own."""
    if config.chat.ui == "web":
        try:
            from pipeline.chat.server import serve
        except ImportError as error:
            raise ConfigError(
                f"ui=web: the page needs {error.name}; install it with pip install -e '.[chat]'"
            ) from error
        serve(load_chat_models(config, world), config.chat, world.presence)
    else:
        Terminal(load_chat_models(config, world), sys.stdout, sys.stdin, world.presence).run()


if __name__ == "__main__":
    run_stage(main, section="chat", explain=explain_chat)
