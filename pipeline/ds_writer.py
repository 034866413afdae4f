"""DeepSpeed's plain checkpoint writer, made to survive a disk that does not take the files.

DeepSpeed meets the other ranks after writing: an exception on one rank alone would leave them
waiting. So a failure is kept until all ranks are through, and raised then.
"""

from typing import Any

import torch
from deepspeed.runtime.checkpoint_engine import TorchCheckpointEngine


class PatientWriter(TorchCheckpointEngine):  # type: ignore[misc]
    """Writes with `torch.save`; the first OSError since `begin` is kept in `failure`."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.failure: OSError | None = None

    def begin(self) -> None:
        """Forgets the failure of the checkpoint before."""
        self.failure = None

    def makedirs(self, path: str, exist_ok: bool = False) -> None:
        """Makes a folder; see `failure`."""
        try:
            super().makedirs(path, exist_ok=exist_ok)
        except OSError as error:
            self.failure = self.failure or error

    def save(self, state_dict: Any, path: str) -> None:
        """Writes one file; see `failure`."""
        try:
            with open(path, "wb") as file:
                torch.save(state_dict, file)
        except OSError as error:
            self.failure = self.failure or error
        except RuntimeError as error:
            # torch's own error hides the one of the file, which is the context of it.
            if not isinstance(error.__context__, OSError):
                raise
            self.failure = self.failure or error.__context__


def install(engine: Any) -> PatientWriter:
    """The writer that a DeepSpeed engine uses from now on.

    Its recovery scripts are left out: copying them may fail between two barriers, and they read
    checkpoints by unpickling (`stages/export.py` does not).
    """
    writer = PatientWriter(engine._config)
    engine.checkpoint_engine = writer
    engine._copy_recovery_script = lambda folder: None
    return writer
