"""What job scripts ask (slurm/common.sh): are a run's shards whole, are its nodes well.

python stages/job.py shards [recipe=NAME] ...           are all shards there, by size
python stages/job.py health FOLDER GPUS TIME SCRATCH [recipe=NAME] ...    this node, into FOLDER
python stages/job.py meet SECONDS                       on all ranks: do they reach one another
"""

import sys
from pathlib import Path

from pipeline.errors import ConfigError, UserError
from pipeline.job import health, meet, shards_line
from pipeline.recipe import load_recipe
from pipeline.stage import leave_with_user_error


def main(arguments: list[str]) -> str:
    """The answer, one line."""
    match arguments:
        case ["shards", *recipe]:
            return shards_line(load_recipe(recipe))
        case ["health", folder, gpus, now, scratch, *recipe]:
            config = load_recipe(recipe)
            node = {"gpus": int(gpus), "now": float(now), "scratch": Path(scratch)}
            return health(Path(folder), config, **node)
        case ["meet", seconds, *_]:
            return meet(float(seconds))
    raise ConfigError(f"{' '.join(arguments) or 'no question'}: ask shards, health or meet")


if __name__ == "__main__":
    try:
        print(main(sys.argv[1:]))
    except UserError as error:
        leave_with_user_error(error, rank=0)
