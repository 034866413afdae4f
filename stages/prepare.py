"""Writes a raw data set as WebDataset shards with a manifest and indexes.

python stages/prepare.py source=coco images=DIR annotations=[FILE,...] split=train out=DIR
python stages/prepare.py source=coco images=DIR karpathy=dataset_coco.json out=DIR
python stages/prepare.py source=flickr8k images=DIR captions=FILE split_lists=DIR out=DIR
python stages/prepare.py source=scenes style=general out=DIR
python stages/prepare.py [recipe=NAME]          what the recipe's `prepare` section lists
...                                             --plan: what it would do
"""

import sys

from pipeline.config import PrepareConfig
from pipeline.data.prepare import prepare
from pipeline.errors import UserError
from pipeline.explain.data import describe_preparation
from pipeline.overrides import parse_overrides, without_plan
from pipeline.recipe import load_recipe, load_section
from pipeline.stage import leave_with_user_error


def main(arguments: list[str]) -> None:
    """One data set from the arguments, or all that a recipe lists."""
    plan, arguments = without_plan(arguments)
    if "source" in parse_overrides(arguments):
        entries = [load_section(PrepareConfig, arguments)]
    else:
        entries = list(load_recipe(arguments).prepare.values())
    if plan:
        print(describe_preparation(entries))
        return
    for entry in entries:
        prepare(entry, report=print)
    if not entries:
        print("this recipe prepares nothing: its data.shards are expected to be there")


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except UserError as error:
        leave_with_user_error(error, rank=0)
