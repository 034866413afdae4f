"""Compares a run with its baseline: scores, what changed in each phase, where to look next.

python stages/report.py [recipe=NAME] [name=RUN]
"""

import sys
from pathlib import Path

from pipeline.errors import ConfigError, UserError
from pipeline.evaluation.compare import compare
from pipeline.explain.report import explain_report
from pipeline.recipe import load_recipe
from pipeline.stage import leave_with_user_error, say

if __name__ == "__main__":
    try:
        recipe = load_recipe(sys.argv[1:])
        if not recipe.plan and not (Path(recipe.runs) / recipe.name).is_dir():
            raise ConfigError(
                f"there is no run {Path(recipe.runs) / recipe.name}; train one, or give its name="
            )
        if recipe.plan:
            say(explain_report(recipe) + "\n")
        else:
            say(compare(Path(recipe.runs), recipe.name, f"{recipe.name}-baseline") + "\n")
    except UserError as error:
        leave_with_user_error(error, rank=0)
