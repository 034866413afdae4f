"""The page in a real browser: upload, ask, watch it grow, stop, retry, clear, compare."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

from tests.chat.conftest import Pace
from tests.chat.small import PICTURE
from tests.helpers import require_system

SECONDS = 30_000  # milliseconds: CI's cores are busy


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    require_system("chromium")
    with sync_playwright() as driver:
        started = driver.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox", "--disable-gpu"]
        )
        yield started
        started.close()


@pytest.fixture
def page(browser: Browser, url: str) -> Iterator[Page]:
    """A page of its own visitor; nothing of it may come from elsewhere."""
    opened = browser.new_page(viewport={"width": 1400, "height": 900})
    opened.set_default_timeout(SECONDS)
    hosts: set[str | None] = set()
    opened.on("request", lambda request: hosts.add(urlsplit(request.url).hostname))
    go(opened, url)
    yield opened
    assert hosts <= {"127.0.0.1", None, ""}
    opened.close()


def go(page: Page, url: str) -> None:
    page.goto(url)
    expect(page.locator("#send")).to_be_enabled(timeout=SECONDS)


def ask(page: Page, text: str) -> None:
    page.fill("#question textarea", text)
    page.click("#send")


def answer(page: Page, index: int, number: int = 0) -> str:
    """What a model said, "" for nothing yet."""
    found = page.locator(f"#talk{index} .bot.message").nth(number)
    return found.inner_text() if found.count() else ""


def whole_answer(page: Page, index: int) -> str:
    """The same, once the page has drawn all of it, which may be after the remark on it."""
    said = ""
    while said != (now := answer(page, index)):
        said = now
        page.wait_for_timeout(500)
    return said


def wait_for_answers(page: Page, number: int = 0) -> None:
    for index in (0, 1):
        expect(page.locator(f"#talk{index} .bot.message").nth(number)).not_to_be_empty(
            timeout=SECONDS
        )


def remark(page: Page) -> str:
    return page.input_value("#status textarea")


def wait_for_remark(page: Page, text: str) -> None:
    page.wait_for_function(
        "text => document.querySelector('#status textarea').value.includes(text)", arg=text
    )


def test_ask_watch_stop_retry_and_clear(page: Page, pace: Pace) -> None:
    pace.seconds = 0.15
    ask(page, "Who is <b>that</b>?")
    wait_for_answers(page)
    assert page.input_value("#question textarea") == ""
    assert "Who is <b>that</b>?" in page.inner_text("#talk0")  # as it is, no markup
    before = answer(page, 0)
    page.wait_for_function(
        "length => document.querySelector('#talk0 .bot.message').innerText.length > length",
        arg=len(before),
    )
    assert answer(page, 0).startswith(before.rstrip())
    page.click("#stop")
    page.wait_for_timeout(600)
    stopped = [answer(page, index) for index in (0, 1)]
    page.wait_for_timeout(600)
    assert [answer(page, index) for index in (0, 1)] == stopped
    assert stopped[0] != stopped[1]  # two models
    pace.seconds = 0.0
    page.click("#retry")
    wait_for_remark(page, "cut at the most tokens")
    whole = whole_answer(page, 0)
    assert whole.startswith(stopped[0].rstrip()) and len(whole) > len(stopped[0])
    ask(page, "Why?")
    wait_for_answers(page, 1)
    assert answer(page, 0) == whole
    wait_for_remark(page, "cut at the most tokens")
    page.click("#clear")
    expect(page.locator("#talk0 .message")).to_have_count(0, timeout=SECONDS)


def test_what_is_copied_is_what_was_said(page: Page) -> None:
    said = "<b>&</b> &lt;\n   x  *c*\t$$x$$ <img src=x onerror='document.title=1'>"
    title = page.title()
    ask(page, said)
    wait_for_remark(page, "cut at the most tokens")
    for index in (0, 1):
        whole_answer(page, index)  # until then the page draws anew what is marked
        # As a mouse would mark it; a button that copies would bypass this.
        marked = page.locator(f"#talk{index} .user.message").evaluate(
            "node => { getSelection().selectAllChildren(node); return getSelection().toString(); }"
        )
        assert marked == said
        assert page.locator(f"#talk{index} button[aria-label*=Copy]").count() == 0
        assert page.locator(f"#talk{index} .user.message :is(b, img)").count() == 0
    assert page.title() == title


def test_an_image_is_shown_and_asked_about_and_a_wrong_file_is_named(
    page: Page, tmp_path: Path
) -> None:
    ask(page, "Who?")
    wait_for_remark(page, "cut at the most tokens")
    blind = whole_answer(page, 0)
    PICTURE.save(tmp_path / "picture.png")
    (tmp_path / "text.png").write_text("no image at all")
    (tmp_path / "large.png").write_bytes(bytes(300_000))
    page.set_input_files("input[type=file]", tmp_path / "picture.png")
    expect(page.locator("#image img")).to_be_visible(timeout=SECONDS)
    expect(page.locator("#talk0 .message")).to_have_count(0, timeout=SECONDS)
    ask(page, "Who?")
    wait_for_remark(page, "cut at the most tokens")
    assert whole_answer(page, 0) != blind
    page.set_input_files("input[type=file]", tmp_path / "text.png")
    wait_for_remark(page, "undecodable image")
    expect(page.locator("#image img")).to_have_count(0, timeout=SECONDS)
    with page.expect_event("dialog") as shown:
        page.once("dialog", lambda dialog: dialog.accept())
        page.set_input_files("input[type=file]", tmp_path / "large.png")
    assert "300000 bytes, more than 200000" in shown.value.message
    ask(page, "Who?")
    wait_for_remark(page, "cut at the most tokens")
    assert whole_answer(page, 0) == blind


def test_what_cannot_be_answered_is_said_and_stays_to_be_corrected(page: Page) -> None:
    page.click("#send")
    wait_for_remark(page, "The message is empty")
    ask(page, "x" * 400)
    wait_for_remark(page, "400 characters; up to 300")
    assert page.input_value("#question textarea") == "x" * 400
    page.click("#retry")
    wait_for_remark(page, "ask something first")
    long = "\N{PILE OF POO}" * 200  # for the model, not for the page
    ask(page, long)
    wait_for_remark(page, "eim: The message is too long")
    wait_for_remark(page, "baseline: The message is too long")
    page.wait_for_function(
        "text => document.querySelector('#question textarea').value === text", arg=long
    )
    ask(page, "Who?")
    wait_for_answers(page)


def test_what_is_typed_while_an_answer_grows_stays(page: Page, pace: Pace) -> None:
    pace.seconds = 0.1
    ask(page, "Who?")
    wait_for_answers(page)
    page.fill("#question textarea", "And then")
    before = answer(page, 0)
    pace.seconds = 0.0
    wait_for_remark(page, "cut at the most tokens")
    assert whole_answer(page, 0) != before
    assert page.input_value("#question textarea") == "And then"


def test_visitors_do_not_see_each_other(page: Page, browser: Browser, url: str) -> None:
    ask(page, "Who?")
    wait_for_answers(page)
    other = browser.new_page(viewport={"width": 400, "height": 900})
    other.set_default_timeout(SECONDS)
    go(other, url)
    assert other.locator("#talk0 .message").count() == 0
    ask(other, "Why?")
    wait_for_answers(other)
    assert "Why?" not in page.inner_text("#talk0")
    assert other.locator("button:visible", has_text="Run").count() == 0  # nothing of Gradio's own
    width = other.evaluate("[document.documentElement.scrollWidth, innerWidth]")
    assert width[0] <= width[1] == 400
    other.close()


@pytest.mark.slow
def test_ten_visitors_at_once_each_get_their_own_answer(browser: Browser, url: str) -> None:
    pages = [browser.new_page() for _ in range(10)]
    for number, each in enumerate(pages):
        each.set_default_timeout(SECONDS)
        go(each, url)
        each.fill("#question textarea", f"Who is number {number}?")
    for each in pages:
        each.evaluate("document.querySelector('#send').click()")
    for number, each in enumerate(pages):
        wait_for_answers(each)
        assert f"number {number}?" in each.inner_text("#talk0")
        assert each.locator("#talk0 .bot.message").count() == 1
        each.close()
