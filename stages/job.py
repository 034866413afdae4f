"""What job scripts ask (slurm/common.sh): are a run's shards whole.

python stages/job.py shards [recipe=NAME] ...           are all shards there, by size
"""

import sys

from pipeline.errors import ConfigError, UserError
from pipeline.job import shards_line
from pipeline.recipe import load_recipe
from pipeline.stage import leave_with_user_error


def main(arguments: list[str]) -> str:
    """The answer, one line."""
    match arguments:
        case ["shards", *recipe]:
            return shards_line(load_recipe(recipe))
    raise ConfigError(f"{' '.join(arguments) or 'no question'}: ask shards")


if __name__ == "__main__":
    try:
        print(main(sys.argv[1:]))
    except UserError as error:
        leave_with_user_error(error, rank=0)
