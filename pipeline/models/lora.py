"""LoRA adapters in a language model, through peft: made, named, told apart, folded in.

Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", 2021. The language model stays the
transformers model it was, with some of its linear layers wrapped in place, so that everything else
(generation, hooks on the head) need not know. Works on partitioned parameters and on the meta
device: peft makes the layers, `placement.fill` gives them their values, because peft's own
initialisation finds nothing in a partitioned tensor.
"""

import re
from collections.abc import Mapping
from typing import Any

from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from peft.utils import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING as DEFAULT_TARGETS
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from pipeline.config import LoRAConfig
from pipeline.errors import CheckpointError, ConfigError
from pipeline.models.linear import linear_maps
from pipeline.models.placement import Placement, fill, reset_parameters

ALL_LINEAR = "all-linear"

_ADAPTER = "default"  # peft's name for the only set of adapters


def add_adapters(llm: PreTrainedModel, cfg: LoRAConfig, *, placement: Placement, seed: int) -> None:
    """Wraps the target layers of `llm` in place; the model computes what it did before.

    Args:
        llm: a causal language model, its weights in place; may be partitioned or on meta.
        cfg: the recipe's `llm.lora`, with a rank above 0.
        placement: how the adapters come into being.
        seed: of A, which starts as any linear layer of torch does; B starts at zero.

    Raises:
        ConfigError: the model has no such layers, or peft has no choice for its architecture.
    """
    names = _target_names(llm, cfg)
    config = LoraConfig(
        r=cfg.rank,
        lora_alpha=cfg.alpha,
        lora_dropout=cfg.dropout,
        target_modules=names,
        init_lora_weights=False,
        fan_in_fan_out=isinstance(llm.get_submodule(names[0]), Conv1D),
    )
    with placement.skeleton():
        inject_adapter_in_model(config, llm)
    for matrix, init in (("lora_A", reset_parameters), ("lora_B", _zero)):
        found = {
            name.replace(".", "/"): getattr(layer, matrix)[_ADAPTER]
            for name, layer in _layers(llm).items()
        }
        adapters = nn.ModuleDict(found).to(
            llm.dtype
        )  # peft leaves them float32 on quantised weights
        fill(adapters, lambda name: None, placement, seed=seed, init=init)
    llm.train(False)


def trainable(module: nn.Module) -> list[nn.Parameter]:
    """What of a part trains when the part does: its adapters, or everything where it has none."""
    adapters = [each for name, each in module.named_parameters() if is_adapter(name)]
    return adapters or list(module.parameters())


def is_adapter(name: str) -> bool:
    """Whether a parameter's name, the module's or an exported one, is of an adapter."""
    return re.search(r"\.lora_[AB]\.", name) is not None


def stable_name(name: str) -> str:
    """A parameter's name in exports: the model's own, whether or not peft has wrapped its layer."""
    return re.sub(r"(\.lora_[AB])\.default\.", r"\1.", name).replace(".base_layer.", ".")


def merge(module: nn.Module) -> None:
    """Folds all adapters below `module` into the weights they adapt and removes them, in place.

    The same outputs up to rounding; do it in float32, where a small update is not lost. For models
    whose parameters are whole.
    """
    for name, layer in _layers(module).items():
        layer.merge()
        module.set_submodule(name, layer.get_base_layer())
    for each in module.modules():
        if isinstance(each, PreTrainedModel) and hasattr(each, "peft_config"):
            del each.peft_config


def check_settings(made_with: Mapping[str, Any] | None, cfg: LoRAConfig, where: object) -> None:
    """Compares the adapters in an export with the recipe's; shapes alone do not tell the scale.

    Args:
        made_with: the `lora` of the export's JSON; None where it holds no adapters.
        cfg: the recipe's `llm.lora`.
        where: the export, for the message.

    Raises:
        CheckpointError: another rank or alpha, or no adapters in the recipe.
    """
    if made_with is None:
        return
    theirs, ours = (made_with["rank"], made_with["alpha"]), (cfg.rank, cfg.alpha)
    if theirs != ours:
        raise CheckpointError(
            f"{where} holds adapters with llm.lora.rank={theirs[0]} and "
            f"llm.lora.alpha={theirs[1]}, the recipe says {ours[0]} and {ours[1]}; set them to "
            "the export's, or name another export"
        )


def _layers(module: nn.Module) -> dict[str, Any]:
    """The wrapped layers by name; peft leaves their methods untyped."""
    return {name: each for name, each in module.named_modules() if isinstance(each, LoraLayer)}


def _target_names(llm: PreTrainedModel, cfg: LoRAConfig) -> list[str]:
    linear = list(linear_maps(llm))
    there = ", ".join(sorted({name.rpartition(".")[2] for name in linear}))
    kind = llm.config.model_type
    if cfg.targets == [ALL_LINEAR]:
        return linear
    wanted = cfg.targets if cfg.targets is not None else DEFAULT_TARGETS.get(kind)
    if not isinstance(wanted, list):
        raise ConfigError(
            f"llm.lora.targets: peft chooses no layers for {kind}; name some of {there}, or "
            f"[{ALL_LINEAR}]"
        )
    missing = [each for each in wanted if not any(_ends(name, each) for name in linear)]
    if missing or not wanted:
        raise ConfigError(
            f"llm.lora.targets={wanted}: {kind} has no linear layer {', '.join(missing)}; name "
            f"some of {there}, or [{ALL_LINEAR}]"
        )
    return [name for name in linear if any(_ends(name, each) for each in wanted)]


def _ends(name: str, target: str) -> bool:
    return f".{name}".endswith(f".{target}")


def _zero(module: nn.Module) -> None:
    for each in module.parameters(recurse=False):
        nn.init.zeros_(each)
