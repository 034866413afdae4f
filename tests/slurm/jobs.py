"""What the tests of jobs share: submitting one, waiting for its end, reading what it left.

The recipes start from shards and weights that are there, and run on CPUs without health checks.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file

from tests.slurm.cluster import Cluster
from tests.small import build

ON_CPUS = {"GPUS_PER_NODE": "0", "HEALTH": "0", "EIM_THREADS": "1", "OMP_NUM_THREADS": "1"}
OVER = {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL"}
END_SECONDS = 600.0  # of a machine that is busy with other things


@dataclass
class Job:
    """A job of the scripts in slurm/."""

    cluster: Cluster
    number: str

    @classmethod
    def submit(
        cls,
        cluster: Cluster,
        script: str,
        *arguments: str,
        flags: tuple[str, ...] = (),
        **env: str,
    ) -> "Job":
        """Of CPU nodes; its log lies in the cluster's folder."""
        given = ("--parsable", "--gpus-per-node=0", f"--output={cluster.folder}/job-%j.out", *flags)
        command = ("sbatch", *given, f"slurm/{script}", *arguments)
        return cls(cluster, cluster.run(*command, **{**ON_CPUS, **env}).strip())

    @classmethod
    def submit_chain(cls, cluster: Cluster, *arguments: str, **env: str) -> list["Job"]:
        """The jobs of slurm/submit.sh, in their order."""
        flags = f"--output={cluster.folder}/job-%j.out"
        env = {**ON_CPUS, "SBATCH_FLAGS": flags, **env}
        said = cluster.run("bash", "slurm/submit.sh", *arguments, **env)
        return [cls(cluster, each) for each in re.findall(r"^(\d+)  \w+$", said, re.MULTILINE)]

    def signal(self, name: str) -> None:
        """To the script alone, as Slurm does near the end of the time."""
        self.cluster.run("scancel", f"--signal={name}", "--batch", self.number)

    @property
    def comment(self) -> str:
        found = re.search(
            r"^ +Comment=(.*)$", self.cluster.run("scontrol", "show", "job", self.number), re.M
        )
        return found[1].strip() if found else ""

    @property
    def fields(self) -> dict[str, str]:
        """As scontrol shows them."""
        return self.cluster.job(self.number)

    @property
    def log(self) -> str:
        """All that all attempts have said."""
        path = self.cluster.folder / f"job-{self.number}.out"
        return path.read_text(errors="replace") if path.is_file() else ""

    @property
    def last_line(self) -> str:
        return self.log.rstrip().splitlines()[-1]

    @property
    def attempt(self) -> int:
        """How often it was started again."""
        return int(self.fields["Restarts"])

    def words_of(self, attempt: int) -> str:
        """What an attempt has said, and the stages that it started."""
        _, _, rest = self.log.partition(f" [{self.number}.{attempt}] ")
        return rest.partition(f" [{self.number}.{attempt + 1}] ")[0]

    def step(self, attempt: int) -> int:
        """The last step that an attempt has done; 0 before its first."""
        return max(self._steps(attempt), default=0)

    def first_step(self, attempt: int) -> int:
        """The first step that an attempt has done."""
        return self._steps(attempt)[0]

    def _steps(self, attempt: int) -> list[int]:
        return [int(each) for each in re.findall(r" step +(\d+)/", self.words_of(attempt))]

    def wait_for_step(self, step: int, attempt: int = 0) -> None:
        """Until an attempt has done that step."""
        self.wait_for(f"step {step} of attempt {attempt}", lambda: self.step(attempt) >= step)

    def wait_for_attempt(self, attempt: int) -> None:
        """Until it was started again so often, and has said so."""
        self.wait_for_words(f" [{self.number}.{attempt}] ")

    def wait_for_words(self, words: str) -> None:
        """Until they are in the log."""
        self.wait_for(repr(words), lambda: words in self.log)

    def wait_for(self, what: str, holds: Callable[[], bool], seconds: float = END_SECONDS) -> None:
        """Until it holds; fails with the log's end when the time is up, or the job over before."""

        def holds_or_never() -> bool:
            return holds() or self.fields["JobState"] in OVER

        try:
            self.cluster.wait_for(f"job {self.number}: {what}", holds_or_never, seconds)
            assert holds(), f"job {self.number} was over before {what}"
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.log[-6000:]}") from error

    def end(self) -> str:
        """Waits for the job to be over; its last state."""
        self.wait_for("its end", lambda: self.fields["JobState"] in OVER)
        return self.fields["JobState"]

    def succeeded(self) -> str:
        """Waits for an end that must be a good one; the log."""
        state = self.end()
        assert state == "COMPLETED", f"{state}\n{self.log[-6000:]}"
        return self.log


def align_recipe(folder: Path, steps: int, **changes: object) -> str:
    """A recipe of ST alignment alone, from shards and base weights that are there already."""
    off = {"encoder_adapt__enabled": False, "llm_tune__enabled": False}
    few = {"sample_images": 0, "checkpoint_every": 10, "eval_every": 10**6}
    phase = {f"st_align__{key}": value for key, value in few.items()}
    epochs = {"st_align__epochs": steps / 4, "st_align__warmup_steps": 2}
    return str(build(folder, **{**off, **phase, **epochs, **changes}))


def same_weights(run: Path, other: Path, phase: str = "st_align") -> bool:
    """Whether two runs have left the same bits."""
    ours, theirs = (
        load_file(each / phase / "export" / "weights.safetensors") for each in (run, other)
    )
    return ours.keys() == theirs.keys() and all(torch.equal(ours[k], theirs[k]) for k in ours)
