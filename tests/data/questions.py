"""ScienceQA problems, files and tokenizers that several tests share; all made here."""

import json
from pathlib import Path
from typing import Any

from PIL import Image
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from tests.data.samples import encode

LETTERS = "ABCDE"


def problem(**changes: Any) -> dict[str, Any]:
    """A problem in the form of problems.json."""
    return {
        "question": "Which of these states is farthest north?",
        "choices": ["West Virginia", "Louisiana", "Arizona"],
        "answer": 0,
        "hint": "",
        "image": None,
        "task": "closed choice",
        "grade": "grade2",
        "subject": "social science",
        "topic": "geography",
        "category": "Geography",
        "skill": "Read a map: cardinal directions",
        "lecture": "Maps have four cardinal directions.\nA compass rose shows them.",
        "solution": "Look at the map.\nWest Virginia is farthest north.",
        "split": "train",
        **changes,
    }


def put_scienceqa(folder: Path, problems: dict[str, dict[str, Any]], **files: Any) -> Path:
    """Write the benchmark's layout: problems.json, further JSON files, and every image named."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in {"problems": problems, **files}.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    for pid, each in problems.items():
        if each.get("image") and each.get("split"):
            image = folder / "images" / each["split"] / pid / each["image"]
            image.parent.mkdir(parents=True, exist_ok=True)
            colour = (int(pid) % 256, 80, 80)
            image.write_bytes(encode(Image.new("RGB", (12, 8), colour), "PNG"))
    return folder


def _corpus() -> list[str]:
    lines = ["Question: Which one?\nContext: N/A\nOptions: (A) one (B) two\nAnswer:"]
    lines += [f"Response: The answer is {letter}. BECAUSE: it is so." for letter in LETTERS]
    return [*lines, *problem()["choices"], problem()["lecture"], problem()["solution"]] * 4


def byte_level() -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer, as GPT-2's: a space belongs to the word after it."""
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    inner.train_from_iterator(
        _corpus(),
        trainers.BpeTrainer(
            vocab_size=400, show_progress=False, special_tokens=["<eos>"], initial_alphabet=alphabet
        ),
    )
    inner.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<eos>")


def sentence_piece() -> PreTrainedTokenizerFast:
    """A tokenizer in LLaMA's manner: a space is put before every text and belongs to its word."""
    inner = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    inner.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    bytes_ = [f"<0x{i:02X}>" for i in range(256)]
    trainer = trainers.BpeTrainer(
        vocab_size=600, show_progress=False, special_tokens=["<unk>", "</s>", *bytes_]
    )
    inner.train_from_iterator(_corpus(), trainer)
    inner.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    return PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="</s>")
