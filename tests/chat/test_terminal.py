"""Talking in a terminal, through pipes as through a keyboard."""

import io
import os
import threading
from dataclasses import replace
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
        "/set temperature=1e-40",
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
    assert "temperature is 1e-40; it can be 0, or 0.01 to 10" in asked
    assert "never read" not in asked


def test_the_home_of_nobody_and_bytes_that_are_no_text_do_not_end_the_talk(models) -> None:
    typed = io.TextIOWrapper(io.BytesIO(b"/image ~nobody-here/a.png\n/image \xff.png\nWho?\n"))
    written = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    Terminal(models[:1], written, typed, Presence()).run()
    written.seek(0)
    found = written.read().splitlines()
    assert "> ~nobody-here/a.png: there is no such home folder; name an image file." in found
    assert "> ?.png is no file; name an image file." in found
    assert "[cut" in found[-2]  # before the last prompt


def test_why_one_model_gives_no_answer_is_said_and_the_other_goes_on(models) -> None:
    short = replace(models[0], rows=replace(models[0].rows, max_tokens=45))
    found = talk([short, models[1]], "/set tokens=6", "Who is number seven?", "Who?")
    lines = [line for line in found.splitlines() if "[eim]" in line or "[baseline]" in line]
    assert "[eim] The message is too long for eim" in lines[0]
    assert len(lines) == 4 and all("[cut" in line for line in lines[1:])
    assert "under way" not in found


def test_an_image_that_one_model_cannot_see_is_shown_to_none(models, tmp_path: Path) -> None:
    PICTURE.save(tmp_path / "a.png")
    blind = replace(models[1], transform=None)
    command = f"/image {tmp_path}/a.png"
    seen = talk([models[0], blind], "/set tokens=6", "Who?", command, "/retry")
    assert "baseline sees no images" in seen and "try again; ask" not in seen
    said = [line.partition("[eim]")[2] for line in seen.splitlines() if "[eim]" in line]
    assert said[0] == said[1]  # about no image, as before


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
