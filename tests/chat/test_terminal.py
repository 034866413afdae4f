"""Talking in a terminal, through pipes as through a keyboard."""

import io
import os
import threading
from pathlib import Path

from pipeline.chat.terminal import Terminal
from pipeline.presence import Presence
from tests.chat.conftest import Pace
from tests.chat.small import PICTURE


def talk(models, *lines: str) -> str:
    out = io.StringIO()
    Terminal(models, out, io.StringIO("".join(f"{each}\n" for each in lines)), Presence()).run()
    return out.getvalue()


def test_questions_are_answered_and_mistakes_are_named(models, tmp_path: Path) -> None:
    PICTURE.save(tmp_path / "a picture.png")
    (tmp_path / "text.png").write_text("no image")
    asked = talk(
        models,
        "/set tokens=6",
        "Who?",
        f"/image {tmp_path}/text.png",
        "/set heat=2",
        f"/image {tmp_path}/a picture.png",
        "Who?",
        "/retry",
        "/quit",
        "never read",
    )
    assert asked.count("[eim] ") == asked.count("[baseline] ") == 3
    said = [line for line in asked.splitlines() if "[eim]" in line]
    assert said[0].split("[eim]")[1] != said[1].split("[eim]")[1] == said[2].split("[eim]")[1]
    assert "undecodable image" in asked and "heat=2: set temperature, top_p" in asked
    assert "never read" not in asked


def test_enter_stops_an_answer_and_a_wish_to_stop_ends_it(models, pace: Pace) -> None:
    pace.seconds = 0.05
    read, write = os.pipe()
    presence, out = Presence(), io.StringIO()
    with os.fdopen(read) as lines, os.fdopen(write, "w") as keyboard:
        terminal = Terminal(models[:1], out, lines, presence)
        running = threading.Thread(target=terminal.run)
        running.start()
        keyboard.write("Who?\n")
        keyboard.flush()
        threading.Event().wait(0.6)
        keyboard.write("\n")
        keyboard.flush()
        for _ in range(100):
            if "[stopped]" in out.getvalue():
                break
            threading.Event().wait(0.05)
        presence.asked = "a test"
        running.join(10)
        assert "[stopped]" in out.getvalue() and not running.is_alive()
    assert presence.beats > 0
