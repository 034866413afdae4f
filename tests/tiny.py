"""Recipes small enough for tests: scenes or questions, a tiny CLIP and LM, all three phases.

`write_recipe` and `write_questions` give a YAML file whose every path lies below one folder.
"""

from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from tests.data.questions import problem, put_scienceqa

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
    return _write(recipe(folder, ds_config=ds_config), folder, "tiny", changes)


def question_recipe(folder: Path, family: str, *, ds_config: str = "zero3") -> dict[str, Any]:
    """The recipe of a family on questions of `put_questions`."""
    made = recipe(folder, ds_config=ds_config)
    made["family"] = family
    made["prepare"] = {
        "questions": {
            "source": "scienceqa",
            "problems": [str(folder / "raw" / "problems.json")],
            "images": str(folder / "raw" / "images"),
            "out": str(folder / "data"),
            "records_per_shard": 16,
            "workers": 0,
        }
    }
    weights = folder / f"weights_{family}"  # families ask in other words
    made["pretrain"]["out"] = str(weights)
    made["encoder"]["arch"] = f"local-dir:{weights / 'clip'}"
    made["llm"]["path"] = str(weights / "llm")
    made["pretrain"]["scratch"] |= {"context_length": 161, "text_context_length": 64}
    made["data"] |= {"task": "scienceqa", "max_tokens": 160}
    made["scienceqa"] = {"format": "QCM-ALE", "answer_weight": 2.0}
    first, second = {"lavin": (["st", "adapters"], None), "llama_adapter": (["prompts"], None)}[
        family
    ]
    made["llm_tune"] |= {
        "segments": [{"train": first, "epochs": 0.5}, {"train": second, "epochs": 1}],
        "caption_records": 0,
        "question_records": 5,  # an odd number: two ranks have unequal shares
    }
    if family == "lavin":
        made["scienceqa"]["wording"] = "lavin"
        made["encoder_adapt"] |= {"train": "adapters", "layer_decay": 1.0}
        adapter = {"hidden": 4, "dropout": 0.0}  # dropout would differ between ranks
        made["lavin"] = {"adapter": adapter, "image_layers": [1, 2], "visual_hidden": 8}
    else:
        made["st"] = {"kind": "mlp", "prefix_length": 1, "hidden": 8}
        made["llama_adapter"] = {"layers": 2, "prompt_length": 3}
        made["encoder"] |= {"scales": [1, 2]}
    return made


def put_questions(folder: Path) -> None:
    """Writes `folder`/raw: questions, every second one with an image, which makes it longer.

    So the micro-batches of a step, which are of similar length, are of one kind often.
    """
    problems = {}
    for number, split in enumerate(["train"] * 40 + ["val"] * 10 + ["test"] * 10):
        seen = number % 2 == 0
        problems[str(number + 1)] = problem(
            question=f"Which of the two is number {number % 7}?",
            choices=["this one", "that one", "none"][: 2 + number % 2],
            answer=number % 2,
            hint="It is to be seen in the picture beside this text." if seen else "",
            image="image.png" if seen else None,
            lecture="Look and count.",
            solution=f"It is so because of {number % 5}.",
            split=split,
        )
    put_scienceqa(folder / "raw", problems)


def write_questions(folder: Path, family: str, *, ds_config: str = "zero3", **changes: Any) -> Path:
    """Writes the family's recipe as `folder`/FAMILY.yaml, with dotted `changes`, and its data."""
    if not (folder / "raw").is_dir():
        put_questions(folder)
    return _write(question_recipe(folder, family, ds_config=ds_config), folder, family, changes)


def _write(made: dict[str, Any], folder: Path, name: str, changes: dict[str, Any]) -> Path:
    written = OmegaConf.create(made)
    for key, value in changes.items():
        OmegaConf.update(written, key.replace("__", "."), value)
    path = folder / f"{name}.yaml"
    path.write_text(OmegaConf.to_yaml(written), encoding="utf-8")
    return path
