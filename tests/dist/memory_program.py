"""Trains one step of a middling GPT-2 under each ZeRO stage and precision, and counts tensors.

Prints one JSON line a case from rank 0: parameters, and the bytes that this rank's tensors take
when the engine is built, before the step and after it. Started by test_memory.py.
"""

import gc
import json
import sys
import warnings

import torch
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel
from transformers.initialization import no_init_weights

from pipeline import dist
from pipeline.config import PhaseConfig
from pipeline.ds_config import read_ds_config
from pipeline.engine import Engine, dtype_of
from pipeline.models.placement import fill
from pipeline.phases import Group
from pipeline.zero import placement_for

WIDTH, LAYERS, VOCABULARY, TRAINED_LAYERS = 512, 6, 16000, 3


def model(placement, dtype: torch.dtype) -> GPT2LMHeadModel:
    """Half frozen: embeddings and the first layers; every weight the same small constant."""
    config = GPT2Config(
        vocab_size=VOCABULARY,
        n_positions=64,
        n_embd=WIDTH,
        n_layer=LAYERS,
        n_head=8,
        bos_token_id=0,
        eos_token_id=0,
    )
    with no_init_weights(), placement.skeleton():
        built = GPT2LMHeadModel(config).to(dtype)
    built.tie_weights()
    fill(built, lambda name: None, placement, seed=0, init=_initialise)
    built.requires_grad_(False)
    built.transformer.h[-TRAINED_LAYERS:].requires_grad_(True)
    return built


def _initialise(module: nn.Module) -> None:
    for parameter in module.parameters(recurse=False):
        nn.init.normal_(parameter, std=0.02)


def tensor_bytes(known: set[int]) -> dict[int, int]:
    """Address -> bytes of every storage that some tensor of this process uses, but for `known`."""
    gc.collect()
    found = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for each in gc.get_objects():
            if isinstance(each, torch.Tensor):
                for tensor in (each, each.grad if each.is_leaf else None):
                    if tensor is not None and tensor.device.type == "cpu":
                        storage = tensor.untyped_storage()
                        found[storage.data_ptr()] = storage.nbytes()
    return {address: size for address, size in found.items() if address not in known}


def measure(ds_config: str, precision: str, world: dist.World) -> dict[str, object]:
    """One case."""
    known = set(tensor_bytes(set()))
    loaded = read_ds_config("memory", ds_config)
    built = model(placement_for(loaded, precision, world), dtype_of(precision))
    groups = [Group("layers", [each for each in built.parameters() if each.requires_grad], 1.0)]
    phase = PhaseConfig(ds_config=ds_config)
    engine = Engine(built, groups, phase, name="memory", precision=precision, world=world)
    ids = torch.arange(64).reshape(2, 32)
    steps = []
    for _ in range(2):
        engine.backward(engine(input_ids=ids, labels=ids).loss)
        before = sum(tensor_bytes(known).values())
        assert not engine.step().skipped
        steps.append((before, sum(tensor_bytes(known).values())))
    trained, whole = engine.trained_parameters, engine.all_parameters
    engine.close()
    return {
        "ds_config": ds_config,
        "precision": precision,
        "ranks": world.size,
        "trained": trained,
        "frozen": whole - trained,
        "after_backward": steps[-1][0],
        "after_step": steps[-1][1],
    }


def main() -> None:
    """All cases of the command line: ds_config:precision."""
    world = dist.start()
    for case in (each for each in sys.argv[1:] if ":" in each):
        result = measure(*case.split(":"), world)
        if world.is_main:
            print("MEASURED " + json.dumps(result), flush=True)
    dist.stop()


if __name__ == "__main__":
    main()
