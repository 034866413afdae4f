"""SPICE through the Java program that comes with pycocoevalcap, where its models are present.

The models (Stanford CoreNLP 3.6.0, two jars of 0.4 GB) come neither with pycocoevalcap nor from a
package index; whoever has them puts them into one folder. pycocoevalcap's own wrapper downloads
them unasked, writes into the installed package and fails on Java 9 and newer; this one does not.
"""

import json
import math
import os
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.errors import DataError
from pipeline.evaluation.java import Id, package_folder

MODELS = ("stanford-corenlp-3.6.0.jar", "stanford-corenlp-3.6.0-models.jar")
# Its serialiser looks into java.lang's private fields, which Java 9 closed. Java 8 knows neither
# the option nor this variable, so it stays out of the command line.
_OPENED = ("java.lang", "java.math", "java.text", "java.util", "java.net")
_JAVA_OPTIONS = " ".join(f"--add-opens java.base/{name}=ALL-UNNAMED" for name in _OPENED)


def spice_models(folder: str | None) -> Path | None:
    """The folder that holds SPICE's models, or None.

    folder: the user's (`evaluate.spice_models`); None looks into pycocoevalcap's own, where its
    download script puts them.
    """
    place = package_folder("spice") / "lib" if folder is None else Path(folder).expanduser()
    return place if all((place / name).is_file() for name in MODELS) else None


def how_to_get_spice(folder: str | None) -> str:
    """One line for whoever misses SPICE."""
    place = "no folder is named" if folder is None else f"they are not in {folder}"
    return (
        f"SPICE is left out: its models must be fetched by hand and {place}; put "
        f"{' and '.join(MODELS)} (of stanford-corenlp-full-2015-12-09.zip) into one folder and set "
        "evaluate.spice_models to it"
    )


def spice(
    predictions: Mapping[Id, str], references: Mapping[Id, Sequence[str]], models: Path
) -> dict[Id, float]:
    """The F-score of scene-graph tuples of each image, 0 to 1.

    An image whose captions have no tuple at all has no score.

    Args:
        predictions: one tokenised caption for each image id.
        references: the tokenised captions of the same ids.
        models: what `spice_models` found.

    Raises:
        DataError: Java failed or left no scores.

    Source: Anderson et al., "SPICE", 2016; pycocoevalcap/spice/spice.py (same jar and options).
    """
    entries = [
        {"image_id": number, "test": predictions[key], "refs": list(references[key])}
        for number, key in enumerate(predictions)
    ]
    with tempfile.TemporaryDirectory() as folder:
        asked, answered = Path(folder) / "captions.json", Path(folder) / "scores.json"
        asked.write_text(json.dumps(entries), encoding="utf-8")
        _run(asked, answered, models)
        try:
            scored: list[dict[str, Any]] = json.loads(answered.read_bytes())
            keys = list(predictions)
            found = {keys[e["image_id"]]: float(e["scores"]["All"]["f"]) for e in scored}
        except (OSError, ValueError, LookupError, TypeError) as error:
            raise DataError(f"SPICE left no readable scores ({error}); leave it out") from error
    return {key: each for key, each in found.items() if not math.isnan(each)}


def _run(asked: Path, answered: Path, models: Path) -> None:
    own = package_folder("spice")
    jars = [own / "spice-1.0.jar", *(models / name for name in MODELS), own / "lib" / "*"]
    command = ["java", "-Xmx8G", "-cp", os.pathsep.join(map(str, jars))]
    command += ["edu.anu.spice.SpiceScorer", str(asked), "-out", str(answered)]
    done = subprocess.run(
        [*command, "-subset", "-silent"],
        env={**os.environ, "JDK_JAVA_OPTIONS": _JAVA_OPTIONS},
        capture_output=True,
    )
    if done.returncode != 0:
        said = done.stderr.decode(errors="replace").strip().splitlines()
        causes = [line for line in said if not line.startswith("NOTE:")]
        raise DataError(
            f"SPICE failed in Java: {causes[0] if causes else 'it said nothing'}; check that 8 GB "
            "of memory are free, or leave it out of evaluate.metrics"
        )
