"""The pieces of a run, phases and evaluation: how far it is, and which of them are surely done.

For job scripts (slurm/common.sh), which start no stage for a piece that is done. Reads folders and
recipes alone, so it answers at once: no shards, no weights, no libraries that take seconds to load.
"""

import json
from pathlib import Path

from omegaconf import DictConfig, ListConfig, OmegaConf

from pipeline.config import BASELINE_SUFFIX, PHASES, Config
from pipeline.exports import DETAILS, RECIPE, is_export

EVALUATE = "evaluate"

# Where copies of shards lie, and how many: often in a scratch folder, which is each job's own.
_OF_COPIES = {"data": {"stage": None, "cache": None, "cache_gb": 0}}


def run_folder(config: Config) -> Path:
    """Where the run of a recipe lies, or that of its baseline."""
    return Path(config.runs, config.name + (BASELINE_SUFFIX if config.baseline else ""))


def steps_done(config: Config) -> int:
    """Steps of all phases together, as far as checkpoints and exports hold them."""
    return sum(_steps_of(run_folder(config) / name) for name in PHASES)


def pieces_done(config: Config) -> list[str]:
    """What need not be started: off, or made by this very recipe, to the last key.

    Where copies of shards lie does not matter. What another recipe made may count as well, where
    only keys differ that change no result. Its stage knows that (`provenance.py`), or refuses it,
    so it is not listed here.
    """
    folder = run_folder(config)
    enabled = [name for name in PHASES if getattr(config, name).enabled]
    done = [name for name in PHASES if name not in enabled and not config.baseline]
    exports = [folder / name / "export" for name in enabled]
    made = [each for each in exports if is_export(each) and _is_of(config, each / RECIPE)]
    done += [each.parent.name for each in made]
    scored = [each for each in folder.glob(f"{EVALUATE}/*/{RECIPE}") if _is_of(config, each)]
    if len(made) == len(exports) and any(_is_newer(each, exports) for each in scored):
        done.append(EVALUATE)
    return done


def _is_of(config: Config, recipe: Path) -> bool:
    wanted = OmegaConf.structured(config)
    return recipe.is_file() and _compared(OmegaConf.load(recipe)) == _compared(wanted)


def _compared(recipe: DictConfig | ListConfig) -> object:
    return OmegaConf.to_container(OmegaConf.merge(recipe, _OF_COPIES))


def _is_newer(scored: Path, exports: list[Path]) -> bool:
    written = scored.stat().st_mtime
    return all(written >= (each / DETAILS).stat().st_mtime for each in exports)


def _steps_of(phase: Path) -> int:
    names = [each.name.partition("-")[2] for each in phase.glob("checkpoints/step-*")]
    found = [int(each) for each in names if each.isdigit()]
    if is_export(phase / "export"):
        details = json.loads((phase / "export" / DETAILS).read_text(encoding="utf-8"))
        found.append(int(details["progress"]["step"]))
    return max(found, default=0)
