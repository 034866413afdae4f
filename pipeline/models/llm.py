"""Causal language models of transformers, built skeleton first and filled tensor by tensor.

Any causal language model of transformers, from a folder or a hub name, or LLaMA from a folder as
Meta publishes it (`official_meta.py`), equal to what `from_pretrained` gives (a test holds this)
but never whole on a rank that keeps only a part. Exceptions are a checkpoint that transformers
converts as it loads (stacked experts) and quantised weights (`quantize.py`): these are read whole.
No code of a model repository is run.
"""

import copy
import functools
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.initialization import no_init_weights

from pipeline.config import LLMConfig
from pipeline.errors import ConfigError
from pipeline.models.lora import add_adapters
from pipeline.models.official_meta import MetaWeights, is_meta_folder
from pipeline.models.placement import Blueprint, Placement, check_shapes, fill
from pipeline.models.quantize import NONE, load_quantized
from pipeline.models.weights import TensorFiles, weight_files
from pipeline.models.whole import load_whole

# transformers leaves these untyped.
_AutoModel: Any = AutoModelForCausalLM
_GenerationConfig: Any = GenerationConfig


def load_llm(
    cfg: LLMConfig, *, dtype: torch.dtype, placement: Placement, seed: int
) -> PreTrainedModel:
    """The language model of a recipe, with its weights and, if it has them, fresh adapters.

    Args:
        cfg: the recipe's `llm`.
        dtype: of all parameters, but of those that the recipe quantises.
        placement: how the parameters come into being; a `Blueprint` looks for no weights and
            quantises nothing, a partition cannot be quantised.
        seed: of the adapters; all other weights are in files, or it fails.

    Returns:
        The model in eval mode, with the attention that transformers picks (SDPA wherever the model
        has it) and empty generation settings: the recipe says how to decode, not the checkpoint.

    Raises:
        ConfigError: no such folder or hub model, no causal language model, no weights.
        CheckpointError: the weights are damaged or of another model.
    """
    config = load_llm_config(cfg)
    quantized = cfg.quantize != NONE and placement.holds_values
    model = _skeleton(cfg, config, dtype, Blueprint() if quantized else placement)
    if quantized:
        model = load_quantized(cfg, model)
    elif placement.holds_values:
        _read_weights(model, cfg, placement, seed=seed)
    model.generation_config = _GenerationConfig()
    model.train(False)
    if cfg.lora.rank:
        add_adapters(model, cfg.lora, placement=placement, seed=seed)
    return model


def _skeleton(
    cfg: LLMConfig, config: PretrainedConfig, dtype: torch.dtype, placement: Placement
) -> PreTrainedModel:
    """The model without values. Raises ConfigError where it is no causal language model."""
    try:
        with no_init_weights(), placement.skeleton():
            model: PreTrainedModel = _AutoModel.from_config(
                config, dtype=dtype, trust_remote_code=False
            )
    except ValueError as error:
        raise ConfigError(
            f"llm.path: {cfg.path} is a {config.model_type}, no causal language model; name one"
        ) from error
    model.tie_weights()  # skipped together with the initialisation
    return model


def _read_weights(
    model: PreTrainedModel, cfg: LLMConfig, placement: Placement, *, seed: int
) -> None:
    """Fills the skeleton from its files."""
    restore_buffers(model)
    if is_meta_folder(cfg.path):
        meta = MetaWeights(Path(cfg.path))
        check_shapes(model, meta.shapes, placement)
        fill(model, meta, placement, seed=seed, init=None)
    else:
        _fill_from_files(model, cfg, placement, seed=seed)


def load_llm_config(cfg: LLMConfig) -> PretrainedConfig:
    """The model's own configuration, with the recipe's dropout in it.

    Raises:
        ConfigError: there is no such folder or hub model, or it is no model of transformers.
    """
    _check_path(cfg.path)
    if is_meta_folder(cfg.path):
        config: PretrainedConfig = MetaWeights(Path(cfg.path)).config
    else:
        found = _read_config(cfg.path) if Path(cfg.path).is_dir() else _config_on_hub(cfg.path)
        if isinstance(found, ConfigError):
            raise found
        config = copy.deepcopy(found)
    if cfg.dropout is not None:
        for key, value in config.to_dict().items():
            is_number = isinstance(value, int | float) and not isinstance(value, bool)
            if is_number and key.endswith(("dropout", "pdrop")):
                setattr(config, key, cfg.dropout)
    return config


def check_adapters(cfg: LLMConfig, config: PretrainedConfig) -> None:
    """Makes the adapters on the meta device, where they cost nothing.

    Raises:
        ConfigError: as `lora.add_adapters`.
    """
    if cfg.lora.rank:
        with torch.device("meta"), no_init_weights():
            model: PreTrainedModel = _AutoModel.from_config(config)
            add_adapters(model, cfg.lora, placement=Placement(), seed=0)


def load_tokenizer(cfg: LLMConfig) -> PreTrainedTokenizerBase:
    """The model's tokenizer; the pad token is EOS where it has none of its own.

    Padding is masked out everywhere, so its id only has to be a valid one.

    Raises:
        ConfigError: it cannot be loaded, has no vocabulary, or has no EOS token.
    """
    _check_path(cfg.path)
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            cfg.path, trust_remote_code=False
        )
    except (OSError, ValueError) as error:
        if not Path(cfg.path).is_dir():
            raise _unreachable(cfg.path, error) from error
        raise ConfigError(
            f"llm.path: {cfg.path} has no tokenizer that can be loaded; put the model's "
            "tokenizer.json and tokenizer_config.json beside the weights (Meta's tokenizer.model "
            "is not read: take them from the same LLaMA in transformers' format)"
        ) from error
    if len(tokenizer.get_vocab()) <= len(tokenizer.all_special_ids):
        # transformers makes an empty tokenizer where the files are missing.
        raise ConfigError(
            f"llm.path: {cfg.path} has no tokenizer files; "
            "put tokenizer.json and tokenizer_config.json beside the weights"
        )
    if tokenizer.eos_token_id is None:
        raise ConfigError(
            f"llm.path: the tokenizer of {cfg.path} has no EOS token, so no text could end; "
            "set eos_token in its tokenizer_config.json"
        )
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def check_weights(cfg: LLMConfig) -> None:
    """Raises ConfigError where a folder lacks the weights; names on the hub are not looked up.

    Meta's folders are complete where `load_llm_config` has read one: most sizes are in the shards.
    """
    if Path(cfg.path).is_dir() and not is_meta_folder(cfg.path):
        weight_files(cfg.path, lambda name: _locate(cfg.path, name))


def check_vocabulary(
    cfg: LLMConfig, config: PretrainedConfig, tokenizer: PreTrainedTokenizerBase
) -> None:
    """Raises ConfigError where the tokenizer has tokens that the model has no embedding for."""
    rows = int(config.get_text_config().vocab_size)
    eos = int(tokenizer.eos_token_id)
    if len(tokenizer) > rows or eos >= rows:
        which = f"EOS is token {eos}" if eos >= rows else f"it has {len(tokenizer)} tokens"
        raise ConfigError(
            f"llm.path: the tokenizer of {cfg.path} does not belong to the model: {which}, the "
            f"model embeds {rows}; put the model's own tokenizer files there, or resize its "
            "embeddings"
        )


def context_length(config: PretrainedConfig) -> int | None:
    """The longest sequence of the model in embeddings; None where its config does not say."""
    length = getattr(config.get_text_config(), "max_position_embeddings", None)
    return None if length is None else int(length)


def llm_width(config: PretrainedConfig) -> int:
    """D, the width of the model's input embeddings."""
    text = config.get_text_config()
    # Few models (OPT) embed in another width than they compute in.
    return int(getattr(text, "word_embed_proj_dim", None) or text.hidden_size)


def restore_buffers(model: PreTrainedModel) -> None:
    """Computes the buffers that no file holds (rotary frequencies) again, in their own dtype.

    A construction under DeepSpeed's zero.Init rounds them to its dtype, and so does a cast of the
    whole module (`model.to(torch.bfloat16)`), which shifts every position: call this after either.
    """
    with torch.device("meta"), no_init_weights():
        twin = _AutoModel.from_config(model.config, dtype=model.dtype)
    initialise: Any = model._init_weights
    dtypes = {name: buffer.dtype for name, buffer in twin.named_buffers()}
    for name, module in model.named_modules():
        own = module._non_persistent_buffers_set
        if not own or next(module.parameters(), None) is not None:
            continue
        for key, buffer in module.named_buffers(recurse=False):
            if key in own:
                dtype = dtypes[f"{name}.{key}"]
                setattr(module, key, torch.empty_like(buffer, dtype=dtype))
        with torch.no_grad():
            initialise(module)


def _fill_from_files(
    model: PreTrainedModel, cfg: LLMConfig, placement: Placement, *, seed: int
) -> None:
    files = TensorFiles(
        weight_files(cfg.path, lambda name: _locate(cfg.path, name)), model.base_model_prefix
    )
    names = [name for name, _ in model.named_parameters()]
    aliases = model.named_parameters(remove_duplicate=False)
    present = {id(each) for name, each in aliases if files.source(name) is not None}
    if all(id(model.get_parameter(name)) in present for name in names):
        shapes = {name: files.shapes[source] for name in names if (source := files.source(name))}
        check_shapes(model, shapes, placement)
        fill(model, files, placement, seed=seed, init=None)
    else:
        whole = load_whole(cfg, model)
        converted: dict[str, Tensor] = dict(nn.Module.state_dict(whole))
        fill(model, converted.get, placement, seed=seed, init=None)


@functools.cache
def _config_on_hub(path: str) -> PretrainedConfig | ConfigError:
    """Asked once: where there is no network every attempt takes half a minute."""
    return _read_config(path)


def _read_config(path: str) -> PretrainedConfig | ConfigError:
    try:
        config: PretrainedConfig = AutoConfig.from_pretrained(path, trust_remote_code=False)
    except (OSError, ValueError) as error:
        return _unreachable(path, error)
    for part in (config, config.get_text_config()):
        named = str(part._attn_implementation)
        if "/" in named:
            return ConfigError(
                f"llm.path: the config.json of {path} names attention code of the hub ({named}), "
                "which would be fetched and run; remove attn_implementation there"
            )
    return config


def _check_path(path: str) -> None:
    """Raises ConfigError for a path that is meant as a folder and is no model folder."""
    folder = Path(path)
    meant = folder.is_absolute() or path.startswith((".", "~")) or path.count("/") > 1
    if folder.exists() or meant:
        if not folder.is_dir():
            raise ConfigError(
                f"llm.path: there is no folder {path}; name a folder with a model of transformers, "
                "or its name on the hub"
            )
        if not (folder / "config.json").is_file() and not is_meta_folder(path):
            raise ConfigError(
                f"llm.path: {path} has no config.json, so it is no model of transformers; name the "
                "folder that holds config.json and the weights (or Meta's params.json and theirs)"
            )


def _locate(path: str, name: str) -> Path | None:
    if Path(path).is_dir():
        file = Path(path) / name
        return file if file.is_file() else None
    try:
        return Path(hf_hub_download(path, name))
    except EntryNotFoundError:  # also when it is not in the cache and there is no network
        return None
    except OSError as error:
        raise _unreachable(path, error) from error


def _unreachable(path: str, error: Exception) -> ConfigError:
    reason = str(error).strip().splitlines()[0][:200]
    return ConfigError(
        f"llm.path: {path} cannot be loaded ({reason}); fetch it once where there is network "
        f"(hf download {path} --local-dir FOLDER) and set llm.path to that folder"
    )
