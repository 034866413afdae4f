"""Are the nodes of a job well (slurm/health.sh); what is wrong with one is left in FOLDER/<node>.

python stages/health.py look FOLDER GPUS SCRATCH SECONDS [recipe=NAME] ...     on every node
python stages/health.py meet FOLDER NODE,NODE,... SECONDS                      on all ranks
python stages/health.py judge FOLDER NODE,NODE,...             once, after a meeting that failed
"""

import sys
from pathlib import Path

from pipeline.errors import ConfigError, UserError
from pipeline.health import judge, look, meet
from pipeline.recipe import load_recipe
from pipeline.stage import leave_with_user_error
from pipeline.watch.causes import WELL
from pipeline.watch.watcher import leave


def main(arguments: list[str]) -> str:
    """What was found, one line."""
    match arguments:
        case ["look", folder, gpus, scratch, seconds, *recipe]:
            return look(
                Path(folder),
                load_recipe(recipe),
                gpus=int(gpus),
                scratch=Path(scratch),
                seconds=float(seconds),
            )
        case ["meet", folder, nodes, seconds]:
            return meet(Path(folder), nodes.split(","), float(seconds))
        case ["judge", folder, nodes]:
            return judge(Path(folder), nodes.split(","))
    raise ConfigError(f"{' '.join(arguments) or 'no question'}: ask look, meet or judge")


if __name__ == "__main__":
    try:
        print(main(sys.argv[1:]))
        leave(WELL)  # Python's own way out may abort while threads of communication are about
    except UserError as error:
        leave_with_user_error(error, rank=0)
