"""A Slurm cluster on this machine for the tests: real daemons in namespaces of their own.

Every node has its own network, host name, processes and /dev/shm, as on a real cluster, so that
`localhost` as a master address fails here too. All of it lies in one folder and ends with one
process. Needs root and Debian's slurm-wlm, munge, iproute2 and util-linux.

    python -m tests.slurm.cluster NODES [COMMAND ...]     a cluster to try things on by hand
"""

import os
import re
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from stat import S_IFCHR

TOOLS = ("slurmctld", "slurmd", "munged", "ip")
NETWORK = "10.12.0"
PARTITION = "cpu-main"
_SLURM_CONF = """\
ClusterName=eim
SlurmctldHost=head({network}.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.sock,cred_expire=5
CredType=cred/munge
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
DefMemPerCPU=100
GresTypes=gpu
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool/%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.%n.pid
SlurmctldLogFile={folder}/log/slurmctld.log
SlurmdLogFile={folder}/log/slurmd.%n.log
SlurmdParameters=config_overrides
SchedulerParameters=sched_interval=2,bf_interval=2,sched_min_interval=100000,batch_sched_delay=0
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
MailProg=/bin/true
ReturnToService=2
JobRequeue=1
SlurmdTimeout=10
KillWait=10
NodeName=n[1-{nodes}] NodeAddr={network}.[11-{last}] CPUs=8 RealMemory=16000 Gres=gpu:{gpus}
PartitionName={main} Nodes=ALL Default=YES MaxTime=INFINITE State=UP PriorityTier=1 GraceTime=60
PartitionName=urgent Nodes=ALL MaxTime=INFINITE State=UP PriorityTier=10
"""
# Process 1 of the cluster: its end is the end of everything.
_HEAD = """\
set -e
export PATH=$PATH:/usr/sbin:/sbin SLURM_CONF={folder}/slurm.conf
hostname head
mount --bind {folder}/hosts /etc/hosts
mount -t tmpfs tmpfs /run
mkdir -p /run/netns
ip link set lo up
ip link add br0 type bridge
ip addr add {network}.1/24 dev br0
ip link set br0 up
cd {folder}
munged --foreground --key-file=$PWD/munge.key --socket=$PWD/munge.sock --num-threads=4 \
    --pid-file=$PWD/munged.pid --log-file=$PWD/log/munged.log --seed-file=$PWD/munge.seed &
cd /
until [ -S {folder}/munge.sock ]; do sleep 0.05; done
slurmctld -D -c &
touch {folder}/ready
while :; do wait || :; sleep 3600 & wait $! || :; done
"""
# Process 1 of a node.
_NODE = """\
export PATH=$PATH:/usr/sbin:/sbin SLURM_CONF={folder}/slurm.conf
hostname {name}
mount -t tmpfs tmpfs /dev/shm
slurmd -D -N {name} &
while :; do wait || :; sleep 3600 & wait $! || :; done
"""


def forbidden() -> str | None:
    """Why this process may not make namespaces with networks of their own; None where it may."""
    spaces = ["--mount", "--net", "--uts", "--ipc", "--pid", "--fork", "--mount-proc"]
    trial = "ip link add br0 type bridge && mount -t tmpfs tmpfs /run"
    path = f"{os.environ['PATH']}:/usr/sbin:/sbin"
    done = subprocess.run(
        ["unshare", *spaces, "sh", "-c", trial],
        env={**os.environ, "PATH": path},
        capture_output=True,
        text=True,
    )
    return None if done.returncode == 0 else done.stderr.strip()


class Cluster:
    """`nodes` nodes n1, n2, ... and a head, until `down`."""

    def __init__(self, nodes: int, *, gpus: int = 0) -> None:
        # Not below /run or /dev/shm, which every node has anew.
        self.folder = Path(tempfile.mkdtemp(prefix="eim-slurm-"))
        self.names = [f"n{number}" for number in range(1, nodes + 1)]
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._gpus = gpus
        self._write_files()
        try:
            self._start()
        except BaseException:
            self.down()
            raise

    def run(self, *command: str, on: str = "head", timeout: float = 60.0, **env: str) -> str:
        """What a command prints that is run on the head (the login node), or on a node."""
        done = subprocess.run(
            self.inside(on, *command),
            env={**self.environment, **env},
            text=True,
            timeout=timeout,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        assert done.returncode == 0, f"{' '.join(command)}: {done.returncode}\n{done.stdout}"
        return done.stdout

    @property
    def environment(self) -> dict[str, str]:
        """Of commands on the head; nothing of a launch that the tests themselves are part of."""
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM", "SBATCH"))}
        path = f"{kept['PATH']}:/usr/sbin:/sbin"
        return {**kept, "PATH": path, "SLURM_CONF": str(self.folder / "slurm.conf")}

    def inside(self, name: str, *command: str) -> list[str]:
        """A command line that runs `command` in the namespaces of the head or a node."""
        pid = self._pid_inside(name)
        spaces = [f"--{each}=/proc/{pid}/ns/{each[:3]}" for each in ("mount", "net", "uts", "ipc")]
        spaces[0] = f"--mount=/proc/{pid}/ns/mnt"
        spaces.append(f"--pid=/proc/{pid}/ns/pid_for_children")
        # Another mount namespace starts at its root.
        there = ["bash", "-c", 'cd "$0" && exec "$@"', str(Path.cwd())]
        return ["nsenter", *spaces, *there, *command]

    def _pid_inside(self, name: str) -> int:
        """A process that is in all namespaces; a node's first one only enters those of the head."""
        pid = self._processes[name].pid
        return pid if name == "head" else int(Path(f"/proc/{pid}/task/{pid}/children").read_text())

    def job(self, number: str) -> dict[str, str]:
        """A job's fields as scontrol shows them."""
        line = self.run("scontrol", "-o", "show", "job", number)
        return dict(word.partition("=")[::2] for word in line.split() if "=" in word)

    def crash(self, name: str) -> None:
        """A power cut: the link is down, every process of the node is gone."""
        self.link(name, "down")
        self._kill(name)

    def boot(self, name: str) -> None:
        """Starts a node, new or crashed."""
        number = int(name[1:])
        script = f"""
            if ! [ -e /run/netns/{name} ]; then
                ip netns add {name}
                ip link add v-{name} type veth peer name eth0 netns {name}
                ip link set v-{name} master br0
                ip -n {name} link set lo up
                ip -n {name} addr add {NETWORK}.{10 + number}/24 dev eth0
                ip -n {name} link set eth0 up
            fi
            ip link set v-{name} up"""
        self.run("bash", "-ec", script)
        (self.folder / "spool" / name).mkdir(parents=True, exist_ok=True)
        node = _NODE.format(folder=self.folder, name=name)
        unshare = ["unshare", "--mount", "--uts", "--ipc", "--pid", "--fork", "--kill-child"]
        netns = f"--net=/run/netns/{name}"
        command = ["nsenter", netns, *unshare, "--mount-proc", "bash", "-c", node]
        self._processes[name] = self._spawn(name, self.inside("head", *command))

    def revive(self, name: str) -> None:
        """Back to a node that Slurm gives jobs to, whatever happened to it."""
        self.crash(name)
        self.boot(name)
        self.wait_for(f"{name} idle", lambda: self.state(name) == "idle")

    def state(self, name: str) -> str:
        """A node's state as sinfo has it; an asterisk means that it does not answer."""
        return self.run("sinfo", "-h", "-n", name, "-p", PARTITION, "-o", "%t").strip()

    def kill_slurmd(self, name: str) -> None:
        """Ends the daemon of a node and nothing else there."""
        self.run("bash", "-c", f"kill -9 $(< {self.folder}/slurmd.{name}.pid)", on=name)

    def slurmd_timeout(self, seconds: int) -> None:
        """How long Slurm waits for a node that does not answer."""
        path = self.folder / "slurm.conf"
        path.write_text(re.sub(r"SlurmdTimeout=\d+", f"SlurmdTimeout={seconds}", path.read_text()))
        self.run("scontrol", "reconfigure")

    def restart_controller(self, seconds: float) -> None:
        """Kills slurmctld, and starts it anew after that time with what it had saved."""
        self.run("bash", "-c", f"kill -9 $(< {self.folder}/slurmctld.pid)")
        time.sleep(seconds)
        self._processes["controller"] = self._spawn(
            "controller", self.inside("head", "slurmctld", "-D")
        )
        self.wait_for("the controller", lambda: self._idle() >= 0)

    def link(self, name: str, state: str) -> None:
        """Takes a node's network "down" or "up"."""
        self.run("ip", "link", "set", f"v-{name}", state)

    def wait_for(self, what: str, holds: Callable[[], bool], seconds: float = 60.0) -> None:
        """Returns as soon as it holds; AssertionError with the logs' ends when the time is up."""
        end = time.monotonic() + seconds
        while not holds():
            assert time.monotonic() < end, f"{what}: not within {seconds:.0f} s\n{self.logs()}"
            time.sleep(0.2)

    def logs(self) -> str:
        """The last lines of all daemons."""
        files = sorted((self.folder / "log").iterdir())
        return "\n".join(f"{f.name}: {f.read_text(errors='replace')[-500:]}" for f in files)

    def down(self) -> None:
        """Ends every process of the cluster and removes its folder."""
        for name in [*reversed(self._processes)]:
            self._kill(name)
        shutil.rmtree(self.folder, ignore_errors=True)

    def _write_files(self) -> None:
        for each in ("log", "state", "spool", "gpu"):
            (self.folder / each).mkdir()
        self.folder.chmod(0o755)
        for number in range(self._gpus):
            os.mknod(self.folder / "gpu" / f"nvidia{number}", S_IFCHR | 0o666, os.makedev(1, 3))
        nodes = len(self.names)
        text = _SLURM_CONF.format(
            folder=self.folder,
            network=NETWORK,
            nodes=nodes,
            last=10 + nodes,
            gpus=self._gpus,
            main=PARTITION,
        )
        if not self._gpus:
            text = text.replace(" Gres=gpu:0", "")
        (self.folder / "slurm.conf").write_text(text)
        devices = f"{self.folder}/gpu/nvidia[0-{self._gpus - 1}]"
        gres = f"AutoDetect=off\nName=gpu File={devices}\n" if self._gpus else "AutoDetect=off\n"
        (self.folder / "gres.conf").write_text(gres)
        hosts = ["127.0.0.1 localhost", f"{NETWORK}.1 head"]
        hosts += [f"{NETWORK}.{10 + number} n{number}" for number in range(1, nodes + 1)]
        (self.folder / "hosts").write_text("\n".join([*hosts, ""]))
        key = self.folder / "munge.key"
        key.touch(mode=0o600)
        key.write_bytes(secrets.token_bytes(128))

    def _start(self) -> None:
        spaces = ["--mount", "--net", "--uts", "--ipc", "--pid", "--propagation", "private"]
        head = _HEAD.format(folder=self.folder, network=NETWORK)
        # Ends with this process, however that ends.
        unshare = ("setpriv", "--pdeathsig", "KILL", "unshare", *spaces, "--fork", "--kill-child")
        self._processes["head"] = self._spawn(
            "head", [*unshare, "--mount-proc", "bash", "-c", head]
        )
        self.wait_for("the head", (self.folder / "ready").exists)
        for name in self.names:
            self.boot(name)
        self.wait_for("all nodes idle", lambda: self._idle() == len(self.names))

    def _idle(self) -> int:
        with suppress(AssertionError):
            return int(
                self.run("sinfo", "-h", "-p", PARTITION, "-t", "idle", "-o", "%D").strip() or 0
            )
        return -1  # the controller does not answer

    def _spawn(self, name: str, command: Sequence[str]) -> subprocess.Popen[bytes]:
        with (self.folder / "log" / f"{name}.log").open("ab") as log:
            return subprocess.Popen(
                command,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def _kill(self, name: str) -> None:
        process = self._processes.pop(name, None)
        if process is None:
            return
        # Process 1 of its process ids is among them, and with that one all that lives inside dies.
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


if __name__ == "__main__":
    cluster = Cluster(int(sys.argv[1]))
    try:
        subprocess.run(cluster.inside("head", *(sys.argv[2:] or ["bash"])), env=cluster.environment)
    finally:
        cluster.down()
