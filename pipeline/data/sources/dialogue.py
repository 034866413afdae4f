"""Entries of instruction sets in their usual forms, as conversations.

Alpaca (instruction, input, output, also with system and history), LLaVA and ShareGPT (conversations
of from and value), and messages of role and content. What an entry says of images is read, not
looked for on disk. An entry that cannot be learnt from is a ContentFault with its reason.
"""

import posixpath
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.data.conversations import Conversation, Exchange
from pipeline.data.faults import ContentFault
from pipeline.data.sources.entries import is_unicode

IMAGE_MARK = "<image>"  # where an image belongs in a text of LLaVA's

_ROLES = {
    **dict.fromkeys(("human", "user"), "user"),
    **dict.fromkeys(("gpt", "assistant", "chatgpt", "bing", "bard", "model"), "assistant"),
    "system": "system",
}
_TALKS = ("conversations", "messages", "conversation")
_NAMES = (("from", "value"), ("role", "content"))
_IMAGES = ("image", "images")  # a name or a list of names, whichever

Turn = tuple[str, str]  # role, text


@dataclass(frozen=True)
class Dialogue:
    """A conversation and the name of the image that it is about, "" for none."""

    conversation: Conversation
    image: str


def read_dialogue(entry: Mapping[str, Any]) -> Dialogue:
    """Read one entry.

    Marks of the image are taken out of the user's texts: a family shows it where it always does,
    before the text. Questions behind the last answer, which nothing could be learnt from, and
    answers before the first question (of talks that were cut into pieces) are left out.

    Raises:
        ContentFault: in none of the forms; a turn that is empty, no text or of an unknown role;
            turns out of order; no answer; more than one image, or a mark without one.
    """
    turns = _turns(entry)
    images = _images(entry)
    if len(images) > 1:
        raise ContentFault("more than one image", detail=", ".join(images))
    if not images and any(IMAGE_MARK in text for role, text in turns if role == "user"):
        raise ContentFault("image mark without an image")
    plain = [(role, _unmarked(text) if role == "user" else text.strip()) for role, text in turns]
    if not all(is_unicode(text) for text in (*images, *(text for _, text in plain))):
        raise ContentFault("invalid UTF-8", detail="half a surrogate pair")
    return Dialogue(_conversation(plain), images[0] if images else "")


def _unmarked(text: str) -> str:
    return text.replace(IMAGE_MARK, "").strip()


def _turns(entry: Mapping[str, Any]) -> list[Turn]:
    """All that was said, in order."""
    for name in _TALKS:
        if isinstance(entry.get(name), list):
            turns = [_turn(each) for each in entry[name]]
            apart = entry.get("system")
            if isinstance(apart, str) and apart and turns[:1] and turns[0][0] != "system":
                turns.insert(0, ("system", apart))
            return turns
    if "instruction" not in entry or "output" not in entry:
        raise ContentFault("no conversation", detail=f"fields: {', '.join(map(str, entry))[:80]}")
    system, history = entry.get("system") or "", entry.get("history") or []
    asked, given = entry["instruction"], entry.get("input") or ""
    if not isinstance(history, list) or not all(
        isinstance(pair, list) and len(pair) == 2 for pair in history
    ):
        raise ContentFault("no conversation", detail="history is no list of pairs")
    texts = [system, *(text for pair in history for text in pair), asked, given, entry["output"]]
    if not all(isinstance(text, str) for text in texts):
        raise ContentFault("not text")
    turns = [("system", system)] if system else []
    for question, answer in history:
        turns += [("user", question), ("assistant", answer)]
    # (LaVIN, tools/data_processing.py, puts a space between instruction and input.)
    question = f"{asked}\n{given}" if given.strip() else asked
    return [*turns, ("user", question), ("assistant", entry["output"])]


def _turn(each: Any) -> Turn:
    for role_name, text_name in _NAMES:
        if isinstance(each, dict) and role_name in each and text_name in each:
            role, text = each[role_name], each[text_name]
            if not isinstance(text, str):
                raise ContentFault("not text", detail=f"of {str(role)[:80]}")
            if not isinstance(role, str) or role not in _ROLES:
                raise ContentFault("unknown role", detail=str(role)[:80])
            return _ROLES[role], text
    raise ContentFault("no conversation", detail="a turn without role and text")


def _conversation(turns: Sequence[Turn]) -> Conversation:
    """Checked turns as exchanges."""
    system, talk = "", list(turns)
    if talk and talk[0][0] == "system":
        system = talk.pop(0)[1]
    while talk and talk[0][0] == "assistant":
        talk.pop(0)
    while talk and talk[-1][0] == "user":
        talk.pop()
    if not talk:
        raise ContentFault("no answer")
    roles = [role for role, _ in talk]
    if roles != ["user", "assistant"] * (len(talk) // 2):
        raise ContentFault("turns out of order", detail=", ".join(roles)[:80])
    if not all(text for _, text in talk):
        raise ContentFault("empty turn")
    texts = [text for _, text in talk]
    pairs = zip(texts[::2], texts[1::2], strict=True)
    return Conversation(tuple(Exchange(question, answer) for question, answer in pairs), system)


def _images(entry: Mapping[str, Any]) -> list[str]:
    """The images that are named, each once and as it is spelt first: two turns may be about one."""
    found: dict[str, str] = {}
    for field in _IMAGES:
        named = entry.get(field)
        for each in filter(None, named if isinstance(named, list) else [named]):
            if not isinstance(each, str):
                raise ContentFault("not text", detail="an image's name")
            found.setdefault(posixpath.normpath(each), each)
    return list(found.values())
