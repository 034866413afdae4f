"""Captions a split, or answers its questions, with the trained model and scores it, on all ranks.

Leaves in runs/<name>/evaluate/<split>: report.html to look at, metrics.json, samples.jsonl (what
each sample is worth), samples.png, and predictions.jsonl of captions or results.json of answers.
With task=mme, in .../evaluate/mme-test, the benchmark's result files.
Keys of `evaluate` may be given without its name.

    deepspeed stages/evaluate.py [recipe=NAME] [baseline=true] [split=test] [key=value ...]
    deepspeed stages/evaluate.py recipe=NAME task=mme [shards=DIR]
"""

from typing import Any

from pipeline.config import Config
from pipeline.dist import World
from pipeline.evaluation.finishing import output_folder
from pipeline.evaluation.mme_runner import answer_mme
from pipeline.evaluation.questions import answer_questions
from pipeline.evaluation.runner import evaluate
from pipeline.explain.stages import explain_evaluate
from pipeline.exports import RECIPE
from pipeline.prerequisites import ensure
from pipeline.recipe import save_recipe
from pipeline.run import effective
from pipeline.stage import run_stage
from pipeline.talks import MME
from pipeline.tasks import QUESTIONS, scored


def main(config: Config, world: World) -> bool:
    """What every rank does; False: a phase was stopped, and the same command goes on."""
    if not ensure(config, world, until="evaluate"):
        return False
    config = effective(config)
    answer = {QUESTIONS: answer_questions, MME: answer_mme}.get(scored(config).data.task)
    if answer is not None:
        result = answer(config, world)
        if world.is_main:
            print(result["table"])
            print(f"answers, metrics and report.html to look at: {output_folder(config)}")
    else:
        result = evaluate(config, world)
        if world.is_main:
            tell_scores(result)
            print(f"predictions, metrics and report.html to look at: {output_folder(config)}")
    if world.is_main:
        save_recipe(config, output_folder(config) / RECIPE)
    return True


def tell_scores(result: dict[str, Any]) -> None:
    """What captions are worth, in one line, and what was skipped."""
    flat = {"loss": result["loss"], **result["scores"], **(result["retrieval"] or {})}
    print("  ".join(f"{name} {value:.4f}" for name, value in flat.items()))
    if result["skipped"]:
        counts = ", ".join(f"{n} {reason}" for reason, n in sorted(result["skipped"].items()))
        print(f"records skipped: {counts}")


if __name__ == "__main__":
    run_stage(main, section="evaluate", explain=explain_evaluate)
