"""Two hosts without Slurm: `deepspeed --hostfile`, which reaches the other one over ssh."""

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.dist.launch import BIN
from tests.helpers import REPOSITORY, require_system
from tests.slurm.cluster import Cluster
from tests.slurm.jobs import align_recipe

pytestmark = pytest.mark.slurm

HOSTS = ("n1", "n2")


@pytest.fixture
def keys(cluster: Cluster, tmp_path: Path) -> Iterator[Path]:
    """An ssh key that both hosts accept; each runs a server, and nothing of this machine's."""
    for tool in ("sshd", "ssh", "pdsh"):
        require_system(tool)
    for name in ("key", "host"):
        command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(tmp_path / name)]
        subprocess.run(command, check=True)
    options = (
        *("-o", f"HostKey={tmp_path}/host", "-o", f"AuthorizedKeysFile={tmp_path}/key.pub"),
        *("-o", "StrictModes=no", "-o", "PermitRootLogin=yes", "-o", "PidFile=none"),
    )
    cluster.run("mkdir", "-p", "/run/sshd")  # the box has a /run of its own
    servers = [
        subprocess.Popen(cluster.inside(name, "/usr/sbin/sshd", "-D", "-f", "/dev/null", *options))
        for name in HOSTS
    ]
    yield tmp_path / "key"
    for server in servers:
        server.terminate()
        server.wait()


def test_deepspeed_starts_the_ranks_of_two_hosts_over_ssh(
    cluster: Cluster, keys: Path, tmp_path: Path
) -> None:
    recipe = align_recipe(tmp_path, 4)
    hosts = tmp_path / "hosts"
    hosts.write_text("".join(f"{name} slots=1\n" for name in HOSTS))
    ssh = f"-i {keys} -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null -o LogLevel=ERROR"
    options = (f"--hostfile={hosts}", "--no_ssh_check", "--master_addr=n1", "--master_port=29511")
    arguments = (f"recipe={recipe}", f"runs={tmp_path}/runs")
    said = cluster.run(
        *(str(BIN / "deepspeed"), *options, "stages/st_align.py", *arguments),
        on="n1",
        timeout=300,
        PDSH_SSH_ARGS_APPEND=ssh,
        PYTHONPATH=str(REPOSITORY),
    )
    summary = json.loads((tmp_path / "runs/tiny/st_align/summary.json").read_text())
    assert summary["state"] == "finished" and summary["ranks"] == len(HOSTS), said[-3000:]
    assert "n2: " in said  # pdsh's own mark of the other host
