"""What captioning own images, talking, and moving models in and out would do."""

from pathlib import Path

from pipeline.config import Config
from pipeline.data.image_files import find_images
from pipeline.dist import World
from pipeline.errors import UserError
from pipeline.explain.text import UNKNOWN, plural, section
from pipeline.exports import find_export


def explain_caption(config: Config, world: World) -> str:
    """What `stages/caption.py` would do."""
    settings = config.caption
    out = settings.out or str(Path(config.runs) / config.name / "captions")
    try:
        found = find_images(settings.images)
        images = f"{plural(len(found.names), 'file')} of {found.root}"
    except UserError as error:
        images = f"{UNKNOWN}: {error}"
    rows = [
        ("model", _model(settings.checkpoint)),
        ("images", f"{images}; {plural(world.size, 'rank')} share them"),
        ("captions", f"{plural(config.evaluate.beams, 'beam')}, recipe {config.recipe}"),
        ("writes", f"captions.jsonl and captions.html in or below {out}"),
    ]
    return section("Plan of stages/caption.py. Nothing is written.", rows) + "\n"


def explain_export(config: Config, world: World) -> str:
    """What `stages/export.py` would do."""
    settings = config.export
    rows = [("model", _model(settings.checkpoint))]
    if settings.official:
        there = "" if Path(settings.official).is_file() else " (no such file)"
        rows = [("checkpoint", f"{settings.official}{there}, of the reference")]
    out = Path(settings.out)
    full = bool(settings.out) and out.is_dir() and any(out.iterdir())
    taken = " (is not empty: refused)" if full else ""
    rows.append(("writes", f"{settings.out or UNKNOWN}{taken}"))
    return section("Plan of stages/export.py. Nothing is written.", rows) + "\n"


def explain_chat(config: Config, world: World) -> str:
    """What `stages/chat.py` would do."""
    settings = config.chat
    rows = [("model", _model(settings.checkpoint))]
    if settings.beside:
        rows.append(("beside it", _model(settings.beside)))
    where = "this terminal"
    if settings.ui == "web":
        where = f"http://{settings.host}:{settings.port}, the page and /v1 (OpenAI's API)"
    drawn = f"temperature {settings.temperature:g}" if settings.temperature else "greedy"
    rows.append(("talks in", where))
    rows.append(("answers", f"{drawn}, {settings.max_new_tokens} tokens at most"))
    return section("Plan of stages/chat.py. Nothing is written.", rows) + "\n"


def _model(checkpoint: str) -> str:
    try:
        return str(find_export(Path(checkpoint), "checkpoint"))
    except UserError as error:
        return f"{UNKNOWN}: {error}"
