"""Writes data sets as WebDataset shards with a manifest and indexes, and checks shards.

python stages/prepare.py source=coco images=DIR annotations=[FILE,...] split=train out=DIR
python stages/prepare.py source=coco images=DIR karpathy=dataset_coco.json out=DIR
python stages/prepare.py source=flickr8k images=DIR captions=FILE split_lists=DIR out=DIR
python stages/prepare.py source=folder images=DIR captions=FILE out=DIR
python stages/prepare.py source=instruct annotations=[FILE,...] images=DIR held_out=0.01 out=DIR
python stages/prepare.py source=mme images=DIR out=DIR
python stages/prepare.py source=webdataset shards=DIR out=DIR    indexes shards that are there
python stages/prepare.py source=webdataset 'shards=s3://bucket/cc3m/{000..331}.tar' out=DIR
python stages/prepare.py source=scenes style=general out=DIR
python stages/prepare.py [recipe=NAME]          what the recipe's `prepare` section lists
...                                             part=0 parts=8: see slurm/prepare.sh
...                                             --plan: what it would do
python stages/prepare.py check out=DIR          verifies shards against their manifest
python stages/prepare.py check recipe=NAME      all splits of the recipe's data.shards
...                                             --plan: what it would do

Exits with 0 when all is well, 1 when the check found faults, 2 on an error of the user's.
"""

import sys
from dataclasses import replace
from pathlib import Path

from pipeline.config import DataConfig, PrepareConfig
from pipeline.data.check import check_folder
from pipeline.data.prepare import prepare
from pipeline.data.remote import is_remote
from pipeline.errors import ConfigError, UserError
from pipeline.explain.data import describe_check, describe_preparation
from pipeline.overrides import parse_overrides, without_plan
from pipeline.recipe import load_recipe, load_section
from pipeline.stage import leave_with_user_error

CHECK = "check"
FAULTS_FOUND = 1


def main(arguments: list[str]) -> int:
    """Prepare one data set from the arguments, or all that a recipe lists; or check them."""
    if arguments[:1] == [CHECK]:
        return check(arguments[1:])
    plan, arguments = without_plan(arguments)
    if "source" in parse_overrides(arguments):
        entries = [load_section(PrepareConfig, arguments)]
    else:
        entries = recipe_entries(arguments)
    if plan:
        print(describe_preparation(entries))
        return 0
    for entry in entries:
        prepare(entry, report=print)
    if not entries:
        print("this recipe prepares nothing: its data.shards are expected to be there")
    return 0


def recipe_entries(arguments: list[str]) -> list[PrepareConfig]:
    """What the recipe's `prepare` section lists; `part` and `parts` are for all of it."""
    shares = [each for each in arguments if each.partition("=")[0] in ("part", "parts")]
    recipe = load_recipe([each for each in arguments if each not in shares])
    share = load_section(PrepareConfig, shares)
    return [replace(each, part=share.part, parts=share.parts) for each in recipe.prepare.values()]


def check(arguments: list[str]) -> int:
    """Verify the shards of a folder or of a recipe."""
    plan, arguments = without_plan(arguments)
    if "out" in parse_overrides(arguments):
        entry = load_section(PrepareConfig, arguments)
        folder, workers, data = entry.out, entry.workers, DataConfig()
    else:
        data = load_recipe(arguments).data
        folder, workers = data.shards, data.workers
    if not folder:
        raise ConfigError("out='': is not set; set out to the folder of shards, or recipe=NAME")
    if is_remote(folder):
        raise ConfigError(f"{folder}: check reads local folders; copy it here, or check it there")
    where = Path(folder).expanduser()
    if plan:
        print(describe_check(where))
        return 0
    limits = {"max_pixels": data.max_pixels, "max_image_bytes": data.max_image_bytes}
    well = check_folder(where, workers=workers, **limits, report=print)
    return 0 if well else FAULTS_FOUND


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except UserError as error:
        leave_with_user_error(error, rank=0)
