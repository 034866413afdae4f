"""The plan of an evaluation of questions: how they are answered, and about what that takes."""

import re
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.config import Config
from pipeline.data.prepare import prepare
from pipeline.explain.answers import describe_answers
from pipeline.recipe import load_recipe
from tests.small import weights
from tests.tiny import write_questions


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Config:
    folder = tmp_path_factory.mktemp("answers")
    made = load_recipe([f"recipe={write_questions(folder, 'lavin', make_missing=False)}"])
    for entry in made.prepare.values():
        prepare(entry, report=lambda line: None)
    weights(made, Path(made.pretrain.out))
    return made


def told(config: Config, **evaluate: object) -> dict[str, str]:
    chosen = replace(config, evaluate=replace(config.evaluate, **evaluate))
    return dict(describe_answers(chosen, 10, "3 calls"))


def numbers(text: str) -> list[int]:
    return [int(each.replace(",", "")) for each in re.findall(r"\d[\d,]*", text)]


def test_a_likelihood_takes_one_pass_and_each_question_once(config: Config) -> None:
    plan = told(config)
    assert plan["questions"].startswith("3 calls: the likeliest option; QCM-ALE")
    passes, each, total, tokens, more, generated = numbers(plan["of the LLM"])
    assert (passes, tokens, more) == (1, 64, 64)
    assert abs(total - 10 * each) <= 5 and abs(generated - each - 63) <= 1


def test_generation_takes_a_pass_for_each_token_and_its_beams(config: Config) -> None:
    compared = numbers(told(config)["of the LLM"])[1]
    plan = told(config, answers="generate", beams=2, max_new_tokens=20)
    assert "generated, 2 beams, at most 20 tokens" in plan["questions"]
    passes, each, _ = numbers(plan["of the LLM"])
    assert passes == 20 and abs(each - 2 * (compared + 19)) <= 2


def test_what_is_not_there_is_not_counted(config: Config) -> None:
    assert "positions ?" in told(config, split="nowhere")["of the LLM"]
