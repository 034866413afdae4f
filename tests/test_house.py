"""The house rules of DESIGN: which way imports run, who may touch what, and what is not written.

Reads the source with `ast`, so it sees imports inside functions too and runs nothing.
"""

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.helpers import REPOSITORY

PIPELINE = REPOSITORY / "pipeline"

# A module imports from its own layer and from those above it in this table, never from those
# below. A name is a module, or a package and all in it; the longest fitting name counts.
LAYERS: dict[int, tuple[str, ...]] = {
    0: ("errors",),
    1: (
        "attempts",
        "config",
        "ds_config",
        "durable",
        "exports",
        "export_files",
        "hashes",
        "malloc",
        "outcome",
        "overrides",
        "ownership",
        "pages",
        "presence",
        "progress",
        "recipe",
        "recipe_values",
        "determinism",
        "retention",
        "dist",
        "stopping",
        "watch",
    ),
    2: (  # pure scores
        "evaluation.captions",
        "evaluation.corpus_scores",
        "evaluation.cost",
        "evaluation.intervals",
        "evaluation.java",
        "evaluation.mme",
        "evaluation.mme_files",
        "evaluation.options",
        "evaluation.retrieval",
        "evaluation.samples",
        "evaluation.scienceqa",
        "evaluation.spice",
    ),
    3: ("data", "models"),
    4: ("losses", "phases", "averages", "talks", "tasks"),
    5: (
        "zero",
        "ds_writer",
        "slices",
        "optimizer",
        "engine",
        "identity",
        "checkpoint_files",
        "checkpoint_state",
        "checkpoint",
        "saving",
        "staging",
        "repartition",
        "resume",
        "memory",
    ),
    6: ("objectives", "validation", "captioning", "answering"),
    7: ("trainer", "callbacks", "splits", "provenance", "assemble"),
    8: ("evaluation", "chat", "interchange", "conversion", "model_card"),
    9: (
        "health",
        "job",
        "pieces",
        "setup",
        "explain",
        "segment",
        "pretrain",
        "run",
        "preflight",
        "prerequisites",
        "stage",
        "probing",
        "summary",
        "evaluation.finishing",
        "evaluation.loading",
        "evaluation.mme_results",
        "evaluation.mme_runner",
        "evaluation.question_results",
        "evaluation.questions",
        "evaluation.results",
        "evaluation.runner",
    ),
}

# Exceptions: these import nothing of ours but what is named (and each other, for the scores).
_SCORES = LAYERS[2]
ONLY: dict[str, tuple[str, ...]] = {
    "evaluation.captions": ("errors", "config", *_SCORES),
    "evaluation.corpus_scores": ("errors", "config", *_SCORES),
    "evaluation.cost": ("errors", "config", *_SCORES),
    "evaluation.intervals": ("errors", "config", *_SCORES),
    "evaluation.java": ("errors", "config", *_SCORES),
    "evaluation.mme": ("errors", "config", *_SCORES),
    "evaluation.mme_files": ("errors", "config", *_SCORES),
    "evaluation.options": ("errors", "config", *_SCORES),
    "evaluation.retrieval": ("errors", "config", *_SCORES),
    "evaluation.samples": ("errors", "config", *_SCORES),
    "evaluation.spice": ("errors", "config", *_SCORES),
    "evaluation.scienceqa": ("errors", "config", *_SCORES),
}

# Neighbours of one layer that know nothing of each other.
STRANGERS = (("data", "models"), ("models", "data"))

# Libraries that only these modules import, so that each can be replaced in one place.
OWNERS: dict[str, tuple[str, ...]] = {
    "deepspeed": ("engine", "zero", "ds_writer"),
    "tensorboard": ("callbacks.board", "evaluation.curves"),
    "torch.utils.tensorboard": ("callbacks.board", "evaluation.curves"),
    "webdataset": ("data",),
    "fsspec": ("data.remote",),
    "aiohttp": ("data.remote",),
    "pickle": (),
}
# Numbers from the process's own generators, which each rank seeds for itself (segment.py). Nothing
# but dropout may depend on them, or other ranks would see other data.
DRAWS = re.compile(
    r"random\.(?!Random$)\w+|(np|numpy)\.random\.(?!default_rng$|SeedSequence$)\w+"
    r"|torch\.(rand|randn|randint|randperm|bernoulli|multinomial|normal)(_like)?"
)
# What torch.load(weights_only=True) raises: an error to catch, not a way to unpickle.
HARMLESS = ("pickle.UnpicklingError",)


@dataclass(frozen=True)
class Module:
    """One source file: its name below `pipeline`, and its syntax tree."""

    name: str  # "" for pipeline/__init__.py
    is_package: bool
    tree: ast.Module


def load(path: Path) -> Module:
    parts = path.relative_to(PIPELINE).with_suffix("").parts
    is_package = parts[-1] == "__init__"
    name = ".".join(parts[:-1] if is_package else parts)
    return Module(name, is_package, ast.parse(path.read_text(encoding="utf-8")))


MODULES = {module.name: module for module in map(load, sorted(PIPELINE.rglob("*.py")))}
every_module = pytest.mark.parametrize("module", MODULES.values(), ids=lambda m: m.name or "init")


def within(name: str, package: str) -> bool:
    """True for the package itself and all in it."""
    return name == package or name.startswith(f"{package}.")


def layer(name: str) -> int | None:
    """The layer of a module below `pipeline`, None where the table does not place it."""
    fitting = [
        (len(entry), number)
        for number, entries in LAYERS.items()
        for entry in entries
        if within(name, entry)
    ]
    return max(fitting)[1] if fitting else None


def imports(module: Module) -> Iterator[str]:
    """Full names of all that a module imports; `from a import b` gives a.b."""
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            source = node.module or ""
            if node.level:
                here = ["pipeline", *filter(None, module.name.split("."))]
                up = node.level - 1 if module.is_package else node.level
                source = ".".join([*here[: len(here) - up], *filter(None, [source])])
            yield from (f"{source}.{alias.name}" for alias in node.names)


def own_imports(module: Module) -> Iterator[str]:
    """Modules below `pipeline` that a module imports, without the names taken from them."""
    for full in imports(module):
        if within(full, "pipeline"):
            name = full.removeprefix("pipeline").removeprefix(".")
            # pipeline.config.Config is a name of pipeline.config
            while name not in MODULES:
                name = name.rpartition(".")[0]
            if name:  # pipeline itself holds a version and nothing else
                yield name


def import_faults(module: Module) -> Iterator[str]:
    """One line for each import of ours that breaks a rule."""
    own_layer = layer(module.name)
    for target in own_imports(module):
        target_layer = layer(target)
        allowed = ONLY.get(module.name)
        if allowed is not None and not any(within(target, entry) for entry in allowed):
            yield f"{module.name} imports {target}: it may import only {', '.join(allowed)}"
        elif own_layer is None or target_layer is None:
            continue  # test_every_module_has_its_place tells
        elif target_layer > own_layer:
            yield f"{module.name} (layer {own_layer}) imports {target} (layer {target_layer})"
        elif any(within(module.name, a) and within(target, b) for a, b in STRANGERS):
            yield f"{module.name} imports {target}: these two know nothing of each other"


def library_faults(module: Module) -> Iterator[str]:
    """One line for each import of a library that belongs to others, and of stages and tests."""
    for full in imports(module):
        if within(full, "stages") or within(full, "tests"):
            yield f"{module.name} imports {full}: the library knows nothing of its users"
        for library, owners in OWNERS.items():
            if full in HARMLESS:
                continue
            if within(full, library) and not any(within(module.name, owner) for owner in owners):
                yield f"{module.name} imports {full}: only {owners or 'nobody'} may"


def call_faults(module: Module) -> Iterator[str]:
    """One line for each call that the house does not want."""
    for node in ast.walk(module.tree):
        if not isinstance(node, ast.Call):
            continue
        called = ast.unparse(node.func)
        if called == "print":
            yield f"{module.name}:{node.lineno}: print: use logging"
        if called == "torch.load":
            weights_only = [key.value for key in node.keywords if key.arg == "weights_only"]
            if not any(isinstance(v, ast.Constant) and v.value is True for v in weights_only):
                yield f"{module.name}:{node.lineno}: torch.load without weights_only=True"
        own_generator = any(key.arg == "generator" for key in node.keywords)
        if DRAWS.fullmatch(called) and not own_generator and module.name != "segment":
            yield f"{module.name}:{node.lineno}: {called} depends on the rank: draw by the sample"


@every_module
def test_every_module_has_its_place(module: Module) -> None:
    assert module.name == "" or layer(module.name) is not None, (
        f"pipeline.{module.name} is new: place it in LAYERS of {Path(__file__).name}"
    )


@every_module
def test_imports_run_one_way(module: Module) -> None:
    assert not list(import_faults(module))


@every_module
def test_libraries_stay_with_their_owners(module: Module) -> None:
    assert not list(library_faults(module))


@every_module
def test_what_is_not_written(module: Module) -> None:
    assert not list(call_faults(module))


@every_module
def test_every_module_says_what_it_is_for(module: Module) -> None:
    assert ast.get_docstring(module.tree), f"pipeline.{module.name} has no docstring"


def test_the_evaluation_package_imports_nothing() -> None:
    # Importing a pure score runs this file; anything here would come along.
    assert not list(imports(MODULES["evaluation"]))


@pytest.mark.parametrize(
    ("name", "source", "fault"),
    [
        ("errors", "from pipeline import config", "errors (layer 0) imports config (layer 1)"),
        ("config", "import pipeline.evaluation.captions", "imports evaluation.captions"),
        ("models.st", "from pipeline import data", "know nothing of each other"),
        ("data.plan", "from pipeline.models import st", "know nothing of each other"),
        ("losses", "def f():\n    from .evaluation import compare", "imports evaluation.compare"),
        ("evaluation.retrieval", "from ..evaluation import compare", "may import only"),
        ("evaluation.retrieval", "from pipeline.errors import UserError", None),
        ("trainer", "from pipeline.evaluation.captions import score", None),
        ("trainer", "from pipeline.evaluation import compare", "layer 7) imports evaluation.com"),
        ("run", "from pipeline.evaluation.compare import compare", None),
        ("losses", "import deepspeed.comm", "only ('engine', 'zero', 'ds_writer') may"),
        ("engine", "import deepspeed.comm", None),
        ("trainer", "from torch.utils import tensorboard", "callbacks.board"),
        ("data.reader", "import webdataset as wds", None),
        ("models.st", "import webdataset", "only ('data',) may"),
        ("run", "from stages import prepare", "knows nothing of its users"),
        ("dist", "from pickle import loads", "only nobody may"),
        ("dist", "from pickle import UnpicklingError", None),
        ("dist", "print(1)", "print"),
        ("checkpoint", "torch.load(path)", "without weights_only=True"),
        ("checkpoint", "torch.load(path, weights_only=False)", "without weights_only=True"),
        ("checkpoint", "torch.load(path, weights_only=True)", None),
        ("data.reader", "noise = torch.randn(3)", "depends on the rank"),
        ("data.reader", "flip = random.random() < 0.5", "depends on the rank"),
        ("data.reader", "noise = torch.randn(3, generator=of_the_sample)", None),
        ("data.plan", "np.random.default_rng(words)", None),
    ],
)
def test_the_rules_themselves(name: str, source: str, fault: str | None) -> None:
    module = Module(name, False, ast.parse(source))
    faults = [*import_faults(module), *library_faults(module), *call_faults(module)]
    if fault is None:
        assert not faults
    else:
        assert len(faults) == 1
        assert fault in faults[0]
