"""A recipe small enough for tests: scenes, a tiny CLIP and LM, all three phases.

`write_recipe` gives a YAML file whose every path lies below one folder.
"""

from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

# What makes ZeRO-3 partition small models too; with the defaults they stay gathered.
TIGHT_ZERO3 = {
    "zero_optimization": {
        "stage": 3,
        "contiguous_gradients": True,
        "stage3_param_persistence_threshold": 0,
        "stage3_max_live_parameters": 1,
        "stage3_max_reuse_distance": 0,
        "stage3_prefetch_bucket_size": 0,
    }
}


def recipe(folder: Path, *, ds_config: str = "zero3") -> dict[str, Any]:
    """The recipe as a dictionary; `folder` holds data, weights and runs."""
    phase = {
        "ds_config": ds_config,
        "global_batch": 12,
        "micro_batch": 4,
        "epochs": 1,
        "warmup_steps": 2,
        "log_every": 1,
        "sample_images": 2,
        "weight_decay": 0.1,
    }
    return {
        "make_missing": True,
        "runs": str(folder / "runs"),
        "precision": "fp32",
        "prepare": {
            "scenes": {
                "source": "scenes",
                "style": "target",
                "out": str(folder / "data"),
                "counts": {"train": 40, "val": 10, "test": 10},
                "image_size": 32,
                "records_per_shard": 16,
                "workers": 0,
            }
        },
        "pretrain": {
            "out": str(folder / "weights"),
            "scratch": {
                "vocab_size": 300,
                "context_length": 128,
                "image_size": 32,
                "patch_size": 16,
                "vision_width": 32,
                "vision_layers": 2,
                "text_width": 32,
                "text_layers": 1,
                "embed_dim": 16,
                "llm_width": 32,
                "llm_layers": 2,
                "heads": 2,
            },
            "clip": {**phase, "max_steps": 2},
            "llm": {**phase, "max_steps": 2, "sample_images": 0},
        },
        "encoder": {"arch": f"local-dir:{folder / 'weights' / 'clip'}", "pretrained": None},
        "st": {"kind": "mlp", "prefix_length": 4, "hidden": 24},
        "llm": {"path": str(folder / "weights" / "llm")},
        "data": {"shards": str(folder / "data"), "max_tokens": 100, "workers": 0, "lanes": 4},
        "encoder_adapt": {**phase, "layer_decay": 0.8, "lr": 1e-3},
        "st_align": {**phase, "align_weight": 0.1, "lr": 1e-3},
        "llm_tune": {
            **phase,
            "lr": 1e-3,
            "st_lr": 2e-3,
            "label_smoothing": 0.1,
            "caption_records": 4,
            "segments": [{"train": ["st"], "epochs": 0.5}, {"train": ["st", "llm"], "epochs": 1}],
        },
        "evaluate": {"max_new_tokens": 8, "beams": 2, "batch": 4},
    }


def write_recipe(folder: Path, *, ds_config: str = "zero3", **changes: Any) -> Path:
    """Writes the recipe as `folder`/tiny.yaml, with dotted `changes` such as st_align__lr=1."""
    made = OmegaConf.create(recipe(folder, ds_config=ds_config))
    for key, value in changes.items():
        OmegaConf.update(made, key.replace("__", "."), value)
    path = folder / "tiny.yaml"
    path.write_text(OmegaConf.to_yaml(made), encoding="utf-8")
    return path
