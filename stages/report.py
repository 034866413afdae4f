"""Compares runs: scores, what changed in each phase, where to look next.

python stages/report.py [recipe=NAME] [name=RUN]           a run beside its baseline
python stages/report.py runs=A,B[,...] [out=FILE.html]     any runs, named by name or by folder

The second form also writes a page with curves and plots: report.html here, or out=.
"""

import sys
from pathlib import Path

from pipeline.config import Config
from pipeline.durable import write_text
from pipeline.errors import ConfigError, UserError
from pipeline.evaluation.compare import compare
from pipeline.explain.report import explain_report
from pipeline.overrides import parse_overrides
from pipeline.recipe import load_recipe
from pipeline.stage import leave_with_user_error, say


def beside_baseline(arguments: list[str]) -> str:
    """The text for the run of a recipe."""
    recipe = load_recipe(arguments)
    if recipe.plan:
        return explain_report(recipe)
    if not (Path(recipe.runs) / recipe.name).is_dir():
        raise ConfigError(
            f"there is no run {Path(recipe.runs) / recipe.name}; train one, or give its name="
        )
    return compare(Path(recipe.runs), recipe.name, f"{recipe.name}-baseline")


def side_by_side(runs: list[str], out: Path) -> str:
    """The text for several runs; writes the page."""
    # Plots and event files take a second that the other form does without.
    from pipeline.evaluation.comparison import compare_runs, named_runs

    made = compare_runs(named_runs(runs, Path(Config().runs)))
    write_text(out, made.page)
    return f"{made.text}\n\nwith curves and plots: {out}"


if __name__ == "__main__":
    try:
        given = parse_overrides(sys.argv[1:])
        several = given.get("runs", "").split(",")
        if len(several) > 1:
            text = side_by_side(several, Path(given.get("out", "report.html")))
        else:
            text = beside_baseline(sys.argv[1:])
        say(f"{text}\n")
    except UserError as error:
        leave_with_user_error(error, rank=0)
