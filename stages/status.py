"""How far a run is, in one line of tabs for job scripts: its folder, steps done, pieces done.

python stages/status.py [recipe=NAME] [key=value ...]
"""

import sys

from pipeline.errors import UserError
from pipeline.pieces import pieces_done, run_folder, steps_done
from pipeline.recipe import load_recipe

USER_ERROR = 2

if __name__ == "__main__":
    try:
        recipe = load_recipe(sys.argv[1:])
        done = " ".join(pieces_done(recipe))
        print(run_folder(recipe), steps_done(recipe), f" {done} ", sep="\t")
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(USER_ERROR)
