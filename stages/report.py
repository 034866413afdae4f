"""Compares runs: scores, what changed in each phase, where to look next.

python stages/report.py [recipe=NAME] [name=RUN]           a run beside its baseline
python stages/report.py runs=A,B[,...] [out=FILE.html]     any runs, named by name or by folder

The second form also writes a page with curves and plots: report.html here, or out=. With --plan
either says what it would do.
"""

import os
import sys
from pathlib import Path

from pipeline.config import BASELINE_SUFFIX, Config
from pipeline.durable import write_text
from pipeline.errors import ConfigError, UserError
from pipeline.evaluation.compare import compare
from pipeline.explain.report import explain_report
from pipeline.overrides import expand, parse_overrides, without_plan
from pipeline.recipe import load_recipe, nearest
from pipeline.stage import leave_with_user_error, say

PAGE = "report.html"


def report(arguments: list[str]) -> str:
    """The text that the command line asks for.

    Raises:
        UserError: an argument is wrong, or a run cannot be read.
    """
    given = parse_overrides(arguments)
    if "out" in given or "," in given.get("runs", ""):
        return side_by_side(arguments)
    return beside_baseline(arguments)


def beside_baseline(arguments: list[str]) -> str:
    """The text for the run of a recipe; raises UserError."""
    recipe = load_recipe(arguments)
    if recipe.plan:
        return explain_report(recipe)
    if not (Path(recipe.runs) / recipe.name).is_dir():
        raise ConfigError(
            f"there is no run {Path(recipe.runs) / recipe.name}; train one, or give its name=, or "
            "put runs side by side with two or more of them: runs=A,B"
        )
    return compare(Path(recipe.runs), recipe.name, recipe.name + BASELINE_SUFFIX)


def side_by_side(arguments: list[str]) -> str:
    """The text for several runs; writes the page, but for a plan. Raises UserError."""
    # Plots and event files take a second that the other form does without.
    from pipeline.evaluation.comparison import compare_runs, named_runs, planned_comparison

    plan, arguments = without_plan(arguments)
    given = {"runs": "", "out": PAGE, **parse_overrides(arguments)}
    for key in given:
        if key not in ("runs", "out"):
            hint = nearest(key, ["runs", "out", "plan"])
            raise ConfigError(f"unknown key '{key}' (command line, with runs=A,B); {hint}")
    folders = named_runs(given["runs"].split(","), Path(Config().runs))
    out = page_file(given["out"])
    if plan:
        return f"{planned_comparison(folders)} and write {out}; nothing is written now."
    made = compare_runs(folders)
    try:
        write_text(out, made.page)
    except OSError as error:
        raise ConfigError(
            f"out={out} cannot be written ({error.strerror}); name a file elsewhere"
        ) from error
    return f"{made.text}\n\nwith curves and plots: {out}"


def page_file(named: str) -> Path:
    """The file that `out` names; ConfigError where none can be written."""
    path = Path(expand("out", named))
    if os.path.isdir(path):  # a name that is too long is none; writing it says so
        raise ConfigError(f"out={named} is a folder; name a file in it, as {path / PAGE}")
    if not path.parent.is_dir():
        raise ConfigError(f"out={named}: there is no folder {path.parent}; make it first")
    if not os.access(path.parent, os.W_OK):
        raise ConfigError(f"out={named}: {path.parent} is read-only; name a file elsewhere")
    return path


if __name__ == "__main__":
    try:
        say(f"{report(sys.argv[1:])}\n")
    except UserError as error:
        leave_with_user_error(error, rank=0)
