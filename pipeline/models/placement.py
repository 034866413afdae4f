"""How parameters come into being: whole on every rank, or, in a subclass, partitioned.

`fill` gives a skeleton its values module by module, so that no rank needs a full copy of the model
and a partitioned model starts from the same weights as a whole one. Nothing here assumes a
process group, a device or DeepSpeed; the engine's subclass of `Placement` brings them.
"""

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import Tensor, nn

from pipeline.errors import CheckpointError

TensorSource = Callable[[str], Tensor | None]
Initializer = Callable[[nn.Module], None]


class Placement:
    """Parameters are whole on every rank; subclasses partition them."""

    holds_values = True  # False: shapes are all there is, nothing is read or initialised

    def skeleton(self) -> AbstractContextManager[None]:
        """The context in which a model is constructed; its values come later, from `fill`."""
        return nullcontext()

    def writable(self, parameters: Sequence[nn.Parameter]) -> AbstractContextManager[bool]:
        """The context in which `parameters` have their full shape.

        Args:
            parameters: parameters of one module; every rank enters with the same ones.

        Returns:
            A context manager that yields True where this rank may write the full values.
        """
        return nullcontext(True)

    def shape(self, parameter: nn.Parameter) -> torch.Size:
        """The full shape of `parameter`, also while only a part of it is here."""
        return full_shape(parameter)


WHOLE = Placement()


def full_shape(parameter: nn.Parameter) -> torch.Size:
    """The full shape of a parameter, also while only a part of it is here."""
    # DeepSpeed leaves the full shape on the parameter; reading it needs no import of DeepSpeed.
    return torch.Size(getattr(parameter, "ds_shape", parameter.shape))


class Blueprint(Placement):
    """Parameters have shapes alone, on the meta device: models to be counted, not run."""

    holds_values = False

    def skeleton(self) -> AbstractContextManager[None]:
        """Whatever is constructed inside takes no memory."""
        return _on_meta()


@contextmanager
def _on_meta() -> Iterator[None]:
    with torch.device("meta"):
        yield


def reset_parameters(module: nn.Module) -> None:
    """The `init` of modules in torch's manner: calls the module's own `reset_parameters`.

    Raises:
        TypeError: the module has parameters of its own and no such method (our bug).
    """
    reset = getattr(module, "reset_parameters", None)
    if not callable(reset):
        raise TypeError(f"{type(module).__name__} has parameters but no reset_parameters()")
    reset()


def fill(
    module: nn.Module,
    tensors: TensorSource,
    placement: Placement,
    *,
    seed: int,
    init: Initializer | None,
) -> None:
    """Writes every parameter and persistent buffer of `module`, one submodule at a time.

    Args:
        module: the skeleton; parameters may be partitioned by `placement`.
        tensors: name -> value, or None where there is none. Asked for parameters only on ranks that
            write them, for buffers on every rank. A tied parameter is asked for by all its names.
        placement: how `module` was constructed.
        seed: of the initialisation; with the submodule's name it fixes the values.
        init: initialises the parameters that a submodule itself holds, for those without a value
            in `tensors`; None makes such a parameter an error.

    Raises:
        CheckpointError: a value has another shape, or there is none and no `init`.
    """
    if not placement.holds_values:
        return
    aliases = _aliases(module)
    done: set[int] = set()
    for name, part in module.named_modules():
        own = {k: p for k, p in part.named_parameters(recurse=False) if id(p) not in done}
        done.update(id(p) for p in own.values())
        buffers = {k: b for k, b in part.named_buffers(recurse=False) if _persistent(part, k)}
        if not own and not buffers:
            continue
        initial = _Initial(part, name, placement, seed, init)
        if own:
            with placement.writable(list(own.values())) as writes:
                for key, parameter in own.items() if writes else ():
                    value = _first(tensors, aliases[id(parameter)])
                    _write(parameter, initial(key) if value is None else value, _join(name, key))
        for key, buffer in buffers.items():
            value = tensors(_join(name, key))
            _write(buffer, initial(key) if value is None else value, _join(name, key))


def check_shapes(
    module: nn.Module, shapes: Mapping[str, Sequence[int]], placement: Placement
) -> None:
    """Compares the shapes in a file with those of `module`, before anything is written.

    `fill` sees a wrong shape only on the rank that writes, while the others would wait for it;
    this needs no collective and gives every rank the same answer.

    Raises:
        CheckpointError: the first tensor whose shape is another one.
    """
    for name, parameter in module.named_parameters(remove_duplicate=False):
        if name in shapes:
            _compare(name, tuple(placement.shape(parameter)), tuple(shapes[name]))


class _Initial:
    """The initial values of one submodule, computed on the CPU in float32 when first asked for.

    On the CPU because generators differ between devices, in float32 because draws differ between
    dtypes: a gathered bfloat16 parameter on a GPU must get what a float32 one on the CPU gets.
    """

    def __init__(
        self,
        module: nn.Module,
        name: str,
        placement: Placement,
        seed: int,
        init: Initializer | None,
    ) -> None:
        self._module, self._name, self._placement = module, name, placement
        self._seed, self._init = seed, init
        self._values: dict[str, Tensor] | None = None

    def __call__(self, key: str) -> Tensor:
        if self._values is None:
            if self._init is None:
                raise CheckpointError(
                    f"{_join(self._name, key)}: no such tensor in the weights; they are of another "
                    "model or incomplete: name the folder with this model's weights"
                )
            self._values = self._compute(self._init)
        return self._values[key]

    def _compute(self, init: Initializer) -> dict[str, Tensor]:
        module = self._module
        parameters = dict(module.named_parameters(recurse=False))
        buffers = dict(module.named_buffers(recurse=False))
        try:
            for key, parameter in parameters.items():
                empty = torch.empty(self._placement.shape(parameter), dtype=torch.float32)
                setattr(module, key, nn.Parameter(empty))
            for key, buffer in buffers.items():
                setattr(module, key, buffer.detach().to("cpu", copy=True))
            with torch.random.fork_rng(devices=[]), torch.no_grad():
                torch.default_generator.manual_seed(_seed(self._seed, self._name))
                init(module)
            return {key: getattr(module, key).detach() for key in (*parameters, *buffers)}
        finally:
            for key, original in (*parameters.items(), *buffers.items()):
                setattr(module, key, original)


def _seed(seed: int, name: str) -> int:
    """A seed that differs between submodules and is the same in every process."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{name}".encode()).digest()[:7], "little")


def _aliases(module: nn.Module) -> dict[int, list[str]]:
    """id of each parameter -> all its names; tied parameters have several."""
    names: dict[int, list[str]] = {}
    for name, parameter in module.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    return names


def _first(tensors: TensorSource, names: Sequence[str]) -> Tensor | None:
    values: Iterator[Tensor | None] = (tensors(name) for name in names)
    return next((value for value in values if value is not None), None)


def _write(target: Tensor, value: Tensor, name: str) -> None:
    _compare(name, tuple(target.shape), tuple(value.shape))
    with torch.no_grad():
        target.copy_(value)


def _compare(name: str, model: tuple[int, ...], weights: tuple[int, ...]) -> None:
    if model != weights:
        raise CheckpointError(
            f"{name}: the model's shape is {model}, the weights' is {weights}; "
            "use the weights of this configuration, or set its sizes to theirs"
        )


def _persistent(module: nn.Module, key: str) -> bool:
    return key not in module._non_persistent_buffers_set


def _join(prefix: str, key: str) -> str:
    return f"{prefix}.{key}" if prefix else key
