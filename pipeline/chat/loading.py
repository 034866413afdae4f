"""From a recipe and an export to a model that talks: whole, on one device, adapters folded.

No shards and no DeepSpeed are needed. Opens weights; answers nothing.
"""

import logging
from dataclasses import replace
from pathlib import Path

from pipeline.assemble import CaptionModel, build_caption_model, check_adapters, check_stop
from pipeline.captioning import end_ids
from pipeline.chat.desk import Desk
from pipeline.chat.limits import Limits, Refused, Sampling
from pipeline.chat.model import ChatModel
from pipeline.config import Config
from pipeline.data.loader import DecodedImages
from pipeline.dist import World
from pipeline.engine import dtype_of, resolve_precision
from pipeline.errors import ConfigError
from pipeline.export_files import ExportTensors, check_has_st
from pipeline.exports import find_export, recipe_in
from pipeline.models.families import family
from pipeline.models.folded import folded_pair
from pipeline.models.lavin_model import Lavin
from pipeline.models.llm import context_length, restore_buffers
from pipeline.models.multimodal import MultimodalLM
from pipeline.models.placement import Placement
from pipeline.models.quantize import NONE
from pipeline.recipe import load_recipe
from pipeline.talks import conversation_rows

log = logging.getLogger("pipeline")


def load_chat_models(config: Config, world: World) -> list[ChatModel]:
    """The models of the recipe's `chat` section: `checkpoint`, and `beside` where it is set.

    Raises:
        ConfigError: started on several ranks; no such export, or one without its recipe.
        CheckpointError: the export cannot talk, or does not fit the recipe.
    """
    chat = config.chat
    if world.size > 1:
        raise ConfigError(
            f"chat: {world.size} processes were started and one is enough; start it with "
            "`python stages/chat.py`, without a launcher"
        )
    if not chat.checkpoint:
        raise ConfigError(
            "chat: checkpoint= is missing; give checkpoint=FOLDER (an export, a phase or a run)"
        )
    limits = Limits.of(chat)
    try:
        limits.check_sampling(Sampling.of(chat))
    except Refused as error:
        raise ConfigError(f"chat: {error}") from error
    chosen = {"checkpoint": (config, find_export(Path(chat.checkpoint), "checkpoint"))}
    if chat.beside:
        export = find_export(Path(chat.beside), "beside")
        own = load_recipe([f"recipe={recipe_in(chosen['checkpoint'][1], 'checkpoint')}"])
        recipe = load_recipe([f"recipe={recipe_in(export, 'beside')}"])
        chosen["beside"] = (_loaded_alike(recipe, config, own), export)
    names = [each.name for each, _ in chosen.values()]
    if len(set(names)) < len(names):  # two phases of one run, say
        names = [str(export) for _, export in chosen.values()]
    return [
        load_chat_model(name, recipe, export, limits, world)
        for name, (recipe, export) in zip(names, chosen.values(), strict=True)
    ]


def _loaded_alike(recipe: Config, config: Config, own: Config) -> Config:
    """The recipe of `beside`, with what was asked of `checkpoint`: precision, bits, base weights.

    Args:
        recipe: as the run of `beside` has left it.
        config: of `checkpoint`, with what the command line says.
        own: as the run of `checkpoint` has left it.
    """
    llm, encoder = recipe.llm, recipe.encoder
    if config.llm.path != own.llm.path:
        llm = replace(llm, path=config.llm.path)
    if config.llm.quantize != own.llm.quantize:
        llm = replace(llm, quantize=config.llm.quantize)
    if config.encoder.pretrained != own.encoder.pretrained:
        encoder = replace(encoder, pretrained=config.encoder.pretrained)
    return replace(recipe, precision=config.precision, llm=llm, encoder=encoder)


def load_chat_model(
    name: str, config: Config, export: Path, limits: Limits, world: World
) -> ChatModel:
    """A recipe's model with an export laid over it; raises what `load_chat_models` does."""
    if family(config.family).sees_images(config):
        check_has_st(export)
    check_adapters(config, export)
    check_stop(config, export)
    built = build_caption_model(
        replace(config, data=replace(config.data, cache_features=False)),
        ExportTensors(export),
        {},
        dtype=dtype_of(resolve_precision(config.precision, world.device)),
        placement=Placement(),
        world=world,
    )
    built.model.to(world.device).eval().requires_grad_(False)
    restore_buffers(built.model.llm)
    log.info("chat          %s: %s", name, export)
    source = built.decoded.source
    rows = conversation_rows(config, built.tokenizer)
    return ChatModel(
        name=name,
        models=_for_both_kinds(built.model, config),
        tokenizer=built.tokenizer,
        rows=replace(rows, max_tokens=_longest(config, built)),
        transform=source.transform if isinstance(source, DecodedImages) else None,
        ends=end_ids(built.tokenizer, config.evaluate.stop),
        limits=limits,
        desk=Desk(limits.config.waiting),
    )


def _for_both_kinds(model: MultimodalLM, config: Config) -> tuple[MultimodalLM, MultimodalLM]:
    """(for conversations without an image, for those about one)."""
    if not isinstance(model, Lavin):
        return model, model
    if config.llm.quantize != NONE:  # nothing can be folded into few bits
        model.settle()
        return model, model
    return folded_pair(model)


def _longest(config: Config, built: CaptionModel) -> int:
    """Tokens of a row, prompt and answer: as many as the model learnt from, if they fit."""
    limit = context_length(built.model.llm.config)
    wanted = config.data.max_tokens
    return wanted if limit is None else min(wanted, limit - 1)  # LaVIN's modality token comes first
