"""Two small chat models in a second: a LaVIN with random weights, under two sets of adapters.

What they say is nonsense, but another nonsense for each question, each image and each model.
"""

from pathlib import Path

import torch
from omegaconf import OmegaConf
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from pipeline.assemble import build_caption_model
from pipeline.config import Config
from pipeline.dist import World
from pipeline.export_files import save_export
from pipeline.models.families import added_by
from pipeline.models.placement import Placement
from pipeline.progress import Progress
from pipeline.recipe import load_recipe
from tests import small, tiny

# Not drawn: whether a model says something else of another image must not be left to chance.
PICTURE = Image.radial_gradient("L").convert("RGB")
ALONE = World(0, 1, 0, 1, torch.device("cpu"))


def write_exports(folder: Path) -> tuple[Path, Path]:
    """Two exports below `folder`, of the runs `eim` and `baseline`."""
    made = tiny.question_recipe(folder, "lavin")
    made["make_missing"] = False
    made["data"]["task"] = "instruct"
    path = folder / "chat.yaml"
    path.write_text(OmegaConf.to_yaml(OmegaConf.create(made)), encoding="utf-8")
    config = load_recipe([f"recipe={path}"])
    small.weights(config, folder / "weights_lavin")
    _shake(folder / "weights_lavin" / "llm")
    _look(folder / "weights_lavin" / "clip" / "open_clip_model.safetensors")
    return _export(config, folder, "eim", 1), _export(config, folder, "baseline", 2)


def _shake(llm_folder: Path) -> None:
    """Weights so large that the likeliest token depends on what came before; it can be read."""
    llm = AutoModelForCausalLM.from_pretrained(llm_folder)
    tokenizer = AutoTokenizer.from_pretrained(llm_folder)
    torch.manual_seed(0)
    for parameter in llm.parameters():
        if parameter.dim() > 1:  # biases would make all answers alike
            torch.nn.init.normal_(parameter, std=0.4)
    texts = [tokenizer.decode([number]) for number in range(len(tokenizer))]
    mute = [number for number, each in enumerate(texts) if not each.strip().isalnum()]
    with torch.no_grad():
        llm.get_input_embeddings().weight[mute] = 0  # tied: the logit is 0, others are higher
    llm.save_pretrained(llm_folder)


def _look(file: Path) -> None:
    """Features that depend on the image alone: what is the same for all images is left out."""
    tensors = load_file(file)
    for name in ("visual.class_embedding", "visual.positional_embedding"):
        tensors[name] = torch.zeros_like(tensors[name])
    save_file(tensors, file)


def _export(config: Config, folder: Path, name: str, seed: int) -> Path:
    config = load_recipe([f"recipe={folder / 'chat.yaml'}", f"name={name}"])
    config.data.cache_features = False
    built = build_caption_model(
        config, {}, {}, dtype=torch.float32, placement=Placement(), world=ALONE
    )
    torch.manual_seed(seed)
    parts = {"st": built.model.st, "adapters": built.model.adapters}
    tensors = {
        f"{part}.{name}": torch.nn.init.normal_(parameter.detach(), std=0.5)
        for part, module in parts.items()
        for name, parameter in module.named_parameters()
    }
    export = folder / "runs" / name / "llm_tune" / "export"
    export.parent.mkdir(parents=True)
    details = {"fingerprint": name, "phase": "llm_tune", "family": added_by(config)}
    save_export(export, tensors, Progress(), details, config)
    return export
