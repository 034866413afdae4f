"""Which export a user means, and the recipe that lies in it. Paths alone; opens no weights.

An export is a folder of its own that holds all one needs beside the base weights: the tensors that
differ from them, `export.json` and the resolved recipe (`config.yaml`). A run's phases leave theirs
in runs/<name>/<phase>/export.
"""

from pathlib import Path

from pipeline.config import PHASES
from pipeline.errors import ConfigError

WEIGHTS = "weights.safetensors"
DETAILS = "export.json"
RECIPE = "config.yaml"


def is_export(folder: Path) -> bool:
    """True for a complete export."""
    return (folder / DETAILS).is_file() and (folder / WEIGHTS).is_file()


def find_export(folder: Path, key: str) -> Path:
    """The export in `folder`, which may also be a phase's folder or a run's.

    Args:
        folder: an export; runs/<name>/<phase>; or runs/<name>, whose last finished phase counts.
        key: that the user set to it, for the message.

    Raises:
        ConfigError: there is no finished export.
    """
    places = [folder, folder / "export", *(folder / each / "export" for each in PHASES[::-1])]
    found = next((each for each in places if is_export(each)), None)
    if found is None:
        raise ConfigError(
            f"{key}={folder} holds no finished export ({DETAILS} beside {WEIGHTS}); name an "
            "export's folder, or a run that has finished a phase"
        )
    return found


def recipe_in(export: Path, key: str) -> Path:
    """The recipe that made an export; raises ConfigError for an export without one."""
    path = export / RECIPE
    if not path.is_file():
        raise ConfigError(
            f"{key}: {export} holds no {RECIPE}; name the recipe that made it with recipe="
        )
    return path
