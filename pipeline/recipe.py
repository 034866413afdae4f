"""Loads a recipe: YAML and `key=value` overrides become a checked `Config`.

Precedence: the defaults of `pipeline/config/`, those of the task, then the recipe file, then the
command line. What can be checked without loading a model is checked here. Assumes an editable
install: recipes lie in the repository's `stages/recipes/`.
"""

import dataclasses
import difflib
import math
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, get_args, get_origin

from omegaconf import DictConfig, ListConfig, Node, OmegaConf
from omegaconf.errors import InterpolationKeyError, OmegaConfBaseException

from pipeline.config import (
    PARTS,
    PHASES,
    Config,
    EncoderAdaptConfig,
    EvaluateConfig,
    LLMTuneConfig,
    PhaseConfig,
    PrepareConfig,
    ScienceQAConfig,
    task_defaults,
)
from pipeline.ds_config import check_ds_config, check_inference_config, check_unpartitioned
from pipeline.durable import write_text
from pipeline.errors import ConfigError
from pipeline.exports import find_export, recipe_in
from pipeline.overrides import dotlist_of, entries, expand, expand_paths, one_line, parse_overrides
from pipeline.retention import check_retention

HOME = Path(__file__).resolve().parents[1]
RECIPES = HOME / "stages" / "recipes"

_SHORTEST_TIMEOUT = 5.0  # ranks give a sign of life every second
_LAST_PORT = 65535


def load_recipe(arguments: Sequence[str], section: str | None = None) -> Config:
    """The resolved and checked recipe of a stage.

    arguments: the command line without the program: `recipe=NAME|FILE`, `key=value` overrides, and
    `--local_rank=N`, which the deepspeed launcher appends. section: the stage's own part of the
    recipe, whose keys may be given without its name; its `checkpoint` brings a recipe along, which
    is used where `recipe=` is not given. Raises ConfigError in one line.
    """
    overrides = parse_overrides(arguments)
    if section is not None:
        own = {each.name for each in dataclasses.fields(getattr(Config(), section))}
        overrides = {f"{section}.{k}" if k in own else k: v for k, v in overrides.items()}
    name = overrides.get("recipe")
    if name is None and (checkpoint := overrides.get(f"{section}.checkpoint")):
        name = str(
            recipe_in(
                find_export(Path(expand("checkpoint", checkpoint)), "checkpoint"), "checkpoint"
            )
        )
    name = expand("recipe", name or Config.recipe)
    recipe = OmegaConf.create({"name": Path(name).stem})
    recipe.merge_with(_read_yaml(_recipe_file(name)))
    dotlist = dotlist_of(overrides, Config)
    _check_keys(recipe, Config, where=f"recipe {name}")
    _check_keys(dotlist, Config, where="command line")
    sources = (_task_defaults(recipe, dotlist), recipe, _another_task(recipe, dotlist), dotlist)
    config = _merge(Config, *sources)
    assert isinstance(config, Config)
    expand_paths(config, prefix="")
    validate(config)
    return config


def load_section(section: type[PrepareConfig], arguments: Sequence[str]) -> PrepareConfig:
    """One dataclass straight from `key=value` arguments, without a recipe."""
    overrides = parse_overrides(arguments)
    dotlist = dotlist_of(overrides, section)
    _check_keys(dotlist, section, where="command line")
    loaded = _merge(section, dotlist)
    assert isinstance(loaded, PrepareConfig)
    expand_paths(loaded, prefix="")
    _check_fields(loaded, prefix="")
    return loaded


def save_recipe(config: Config, path: Path) -> None:
    """Writes the resolved recipe as YAML, by atomic rename."""
    write_text(path, OmegaConf.to_yaml(OmegaConf.structured(config)))


def validate(config: Config) -> None:
    """Raises ConfigError for values that cannot work, before any model is loaded."""
    _check_fields(config, prefix="")
    if config.name != Path(config.name).name:
        raise ConfigError(f"name={config.name!r} must be one folder name; set runs= for its place")
    for key, value in (
        ("plan_ranks", config.plan_ranks),
        ("evaluate.records", config.evaluate.records),
    ):
        if value is not None and value < 1:
            raise ConfigError(f"{key}={value} must be 1 or more; leave it null for no limit")
    if config.timeout is not None and config.timeout < _SHORTEST_TIMEOUT:
        raise ConfigError(
            f"timeout={config.timeout:g} must be {_SHORTEST_TIMEOUT:g} seconds or more; leave "
            "it null to wait for ever"
        )
    if config.chat.top_p > 1:
        raise ConfigError(f"chat.top_p={config.chat.top_p:g} must be in (0, 1]; 1 leaves none out")
    if config.chat.port > _LAST_PORT:
        raise ConfigError(f"chat.port={config.chat.port} must be {_LAST_PORT} or less")
    _check_mix(config)
    if config.llm.lora.dropout >= 1:
        raise ConfigError(f"llm.lora.dropout={config.llm.lora.dropout} must be in [0, 1)")
    for name, phase in phase_configs(config):
        _check_phase(name, phase)
    _check_adapted_tower(config)
    _check_segments(config)
    if config.evaluate.ds_config is not None:
        check_inference_config("evaluate", config.evaluate.ds_config)
    check_unpartitioned(config)


def phase_configs(config: Config) -> Iterator[tuple[str, PhaseConfig]]:
    """The phases of a recipe with their dotted names, in training order, pre-training included."""
    yield "pretrain.clip", config.pretrain.clip
    yield "pretrain.llm", config.pretrain.llm
    for name in PHASES:
        yield name, getattr(config, name)


def nearest(word: str, known: Sequence[str]) -> str:
    """'did you mean X?' for the known word nearest to `word`, else what there is to choose."""
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    return f"did you mean '{close[0]}'?" if close else f"known: {', '.join(sorted(known))}"


def _recipe_file(name: str) -> Path:
    path = Path(name)
    if path.suffix in (".yaml", ".yml"):
        if not path.is_file():
            raise ConfigError(f"recipe={name}: no such file; give a path or a name of {RECIPES}")
        return path
    path = RECIPES / f"{name}.yaml"
    if not path.is_file():
        known = [file.stem for file in RECIPES.glob("*.yaml")]
        raise ConfigError(f"recipe={name} is unknown; {nearest(name, known)}")
    return path


def _read_yaml(path: Path) -> DictConfig:
    try:
        loaded = OmegaConf.load(path)
    except (OSError, ValueError, OmegaConfBaseException) as error:
        raise ConfigError(f"recipe file {path} cannot be read: {one_line(error)}") from error
    except Exception as error:
        raise ConfigError(f"recipe file {path} is not valid YAML: {one_line(error)}") from error
    if not isinstance(loaded, DictConfig):
        raise ConfigError(f"recipe file {path} must hold key: value pairs, not a list")
    return loaded


def _merge(section: type[Any], *sources: DictConfig | ListConfig) -> Any:
    try:
        merged = OmegaConf.merge(OmegaConf.structured(section), *sources)
        OmegaConf.resolve(merged)
        return OmegaConf.to_object(merged)
    except (OmegaConfBaseException, TypeError, ValueError) as error:
        key = getattr(error, "full_key", None) or "a value of the recipe"
        if isinstance(error, InterpolationKeyError):
            raise ConfigError(
                f"{key}: {one_line(error)}; braces name a key of the recipe (${{paths.x}}), a "
                "variable of the environment has none ($HOME)"
            ) from error
        raise ConfigError(f"{key}: {one_line(error)}; see pipeline/config/ for its type") from error


def _task_defaults(*sources: DictConfig) -> DictConfig:
    """What the tasks want where nobody says otherwise; an unknown one is found later.

    Evaluation follows `evaluate.task` where that is another than what is learnt, `data.task`.
    """
    merged = OmegaConf.merge(*sources)
    learnt = OmegaConf.select(merged, "data.task", default="captions")
    asked = OmegaConf.select(merged, "evaluate.task") or learnt
    form = OmegaConf.select(merged, "scienceqa.format", default=ScienceQAConfig.format)
    wants = dict(task_defaults(str(learnt), str(form)))
    if asked != learnt:
        wants["evaluate"] = task_defaults(str(asked), str(form)).get("evaluate", {})
    return OmegaConf.create(wants)


def _another_task(recipe: DictConfig, dotlist: DictConfig) -> DictConfig:
    """What the recipe says of scoring that holds for its own task only: the split of its shards."""
    asked = OmegaConf.select(dotlist, "evaluate.task")
    learnt = OmegaConf.select(OmegaConf.merge(recipe, dotlist), "data.task", default="captions")
    if asked in (None, learnt):
        return OmegaConf.create()
    return OmegaConf.create({"evaluate": {"split": EvaluateConfig().split}})


def _check_keys(node: Any, schema: Any, *, where: str, prefix: str = "") -> None:
    """Refuses keys that `schema` (a dataclass) does not have, at any depth."""
    known = {field.name: field for field in dataclasses.fields(schema)}
    if not isinstance(node, DictConfig):
        raise ConfigError(f"{prefix.rstrip('.')} ({where}) must hold key: value pairs")
    for key in node:
        name = str(key)
        if name not in known:
            hint = nearest(name, list(known))
            raise ConfigError(f"unknown key '{prefix}{name}' ({where}); {hint}")
        kind = known[name].type
        child = node._get_node(key)
        for below, entry, inner in _inside(kind, child, f"{prefix}{name}"):
            _check_keys(entry, inner, where=where, prefix=f"{below}.")


def _inside(kind: Any, node: Any, key: str) -> Iterator[tuple[str, Any, Any]]:
    """(dotted name, node, dataclass) of what a field of type `kind` holds."""
    if dataclasses.is_dataclass(kind):
        yield key, node, kind
        return
    if isinstance(node, Node) and node._is_interpolation():
        return
    if type(None) in get_args(kind):  # list[str] | None
        if node is None or node._is_none():
            return
        kind = get_args(kind)[0]
    container, inner = get_origin(kind), get_args(kind)[-1:]
    if container is list and not isinstance(node, ListConfig):
        raise ConfigError(f"{key} must be a list: [...]")
    if not inner or not dataclasses.is_dataclass(inner[0]):
        return
    if container is list:
        yield from ((f"{key}[{i}]", node._get_node(i), inner[0]) for i in range(len(node)))
    elif isinstance(node, DictConfig):
        yield from ((f"{key}.{each}", node._get_node(each), inner[0]) for each in map(str, node))


def _check_fields(section: Any, prefix: str) -> None:
    """Choices and signs, as the fields' metadata states them, at any depth."""
    for field in dataclasses.fields(section):
        value = getattr(section, field.name)
        key = f"{prefix}{field.name}"
        for name, entry in entries(value):
            _check_fields(entry, prefix=f"{key}{name}.")
        choices = field.metadata.get("choices")
        if choices and value is not None and value not in choices:
            raise ConfigError(f"{key}={value!r} is unknown; {nearest(str(value), choices)}")
        if isinstance(value, float) and not math.isfinite(value):
            raise ConfigError(f"{key}={value} must be a finite number")
        if field.metadata.get("positive") and not value > 0:
            raise ConfigError(f"{key}={value} must be above zero")
        if field.metadata.get("not_negative") and value is not None and value < 0:
            raise ConfigError(f"{key}={value} must not be negative")


def _check_mix(config: Config) -> None:
    labels = [each.label for each in config.data.mix]
    for i, label in enumerate(labels):
        if not label:
            raise ConfigError(f"data.mix[{i}].shards is empty: name its folder or URL")
        if label in labels[:i]:
            raise ConfigError(
                f"data.mix[{i}]: another set is called {label!r} too; give each its own name"
            )


def _check_phase(name: str, phase: PhaseConfig) -> None:
    for key in ("max_steps", "stop_after", "val_records", "keep_every"):
        value = getattr(phase, key)
        if value is not None and value < 1:
            raise ConfigError(f"{name}.{key}={value} must be 1 or more; leave it null for no limit")
    if len(phase.betas) != 2 or not all(0 <= beta < 1 for beta in phase.betas):
        raise ConfigError(f"{name}.betas={phase.betas} must be two numbers in [0, 1)")
    if phase.ema >= 1:
        raise ConfigError(
            f"{name}.ema={phase.ema} must be in [0, 1): 0.99 averages over about 100 steps"
        )
    if isinstance(phase, EncoderAdaptConfig):
        _check_adaptation(name, phase)
    if isinstance(phase, LLMTuneConfig) and not 0 <= phase.label_smoothing < 1:
        raise ConfigError(f"{name}.label_smoothing={phase.label_smoothing} must be in [0, 1)")
    check_retention(name, phase)
    check_ds_config(name, phase)


def _check_adaptation(name: str, phase: EncoderAdaptConfig) -> None:
    if not re.fullmatch(r"all|last:[1-9]\d*|adapters", phase.train):
        raise ConfigError(
            f"{name}.train={phase.train!r} is unknown: use 'all', 'last:N' or 'adapters'"
        )
    if phase.merge_alpha > 1:
        raise ConfigError(
            f"{name}.merge_alpha={phase.merge_alpha} must be in [0, 1], from the original to the "
            "trained weights"
        )


def _check_adapted_tower(config: Config) -> None:
    """Adapters in the tower are of one family, have no depth, and are no part of a small CLIP."""
    for name, phase in (
        ("pretrain.clip", config.pretrain.clip),
        ("encoder_adapt", config.encoder_adapt),
    ):
        if phase.train != "adapters":
            continue
        if config.family != "lavin" or name == "pretrain.clip":
            raise ConfigError(
                f"{name}.train=adapters: only the tower of family=lavin has adapters, and only in "
                "encoder_adapt; use 'all' or 'last:N'"
            )
        if phase.layer_decay != 1:
            raise ConfigError(
                f"{name}.layer_decay={phase.layer_decay} is for the tower's own blocks; set it to "
                "1.0 with train=adapters"
            )


def _check_segments(config: Config) -> None:
    known = PARTS[config.family]
    if config.llm_tune.encoder_lr is not None and "encoder_adapters" not in known:
        raise ConfigError(
            f"llm_tune.encoder_lr={config.llm_tune.encoder_lr}: family={config.family} trains "
            "nothing of the tower in llm_tune; leave it null, or use family=lavin"
        )
    for index, segment in enumerate(config.llm_tune.segments):
        if segment.train is None:
            continue
        unknown = [part for part in segment.train if part not in known]
        if unknown or not segment.train or len(set(segment.train)) < len(segment.train):
            raise ConfigError(
                f"llm_tune.segments[{index}].train={segment.train}: name at least one of "
                f"{', '.join(known)}, each once"
            )
