"""The two Java programs that come with pycocoevalcap, run as well-behaved child processes.

pycocoevalcap's own wrappers write a temporary file into the installed package (often read-only on
a cluster), let a line break inside a caption shift all captions after it, and wait for ever on
their own lock when Java dies. The jars are the same here, so the scores are. Assumes nothing about
the locale: text travels as UTF-8.
"""

import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import IO, Self, TypeVar

from pipeline.errors import ConfigError

Id = TypeVar("Id")

JAVA_METRICS = ("bleu", "meteor", "rouge_l", "cider", "spice")


def require_java(metrics: Sequence[str] = JAVA_METRICS) -> None:
    """Refuse to go on where Java is missing and a metric needs it.

    Args:
        metrics: names as in `evaluate.metrics`.

    Raises:
        ConfigError: `java` is not on PATH, and at least one of `metrics` needs it.
    """
    wanted = [metric for metric in metrics if metric in JAVA_METRICS]
    if wanted and shutil.which("java") is None:
        raise ConfigError(
            f"evaluate.metrics=[{','.join(wanted)}] needs Java (all of them read text from the "
            "Java PTB tokenizer, and METEOR is itself Java), but no `java` is on PATH: install one "
            "(apt install default-jre-headless, or module load java), or leave these metrics out "
            "with evaluate.metrics=[quick_cider] or evaluate.metrics=[]"
        )


def ptb_tokenize(lines: Sequence[str]) -> list[str]:
    """Tokenise as the COCO caption server does: PTB tokens, lower case, without punctuation.

    Args:
        lines: N captions; white space of any kind within one counts as a space.

    Returns:
        N strings of tokens joined by single spaces, empty where a caption has no words.

    Raises:
        ConfigError: Java is missing or failed.

    Source: pycocoevalcap/tokenizer/ptbtokenizer.py (same jar, options and punctuation list).
    """
    from pycocoevalcap.tokenizer.ptbtokenizer import PUNCTUATIONS, STANFORD_CORENLP_3_4_1_JAR

    require_java()
    jar = package_folder("tokenizer") / STANFORD_CORENLP_3_4_1_JAR
    command = ["java", "-cp", str(jar), "edu.stanford.nlp.process.PTBTokenizer"]
    command += ["-preserveLines", "-lowerCase", "-encoding", "UTF-8"]
    # One caption must stay one line; the tokenizer would break lines at \r and others, too.
    text = "".join(" ".join(line.split()) + "\n" for line in lines)
    # "replace": a lone surrogate (a damaged caption) becomes a question mark, not a crash.
    done = subprocess.run(command, input=text.encode(errors="replace"), capture_output=True)
    tokenised = done.stdout.decode(errors="replace").split("\n")[:-1]
    if done.returncode != 0 or len(tokenised) != len(lines):
        raise _java_failed("the PTB tokenizer", done.stderr)
    return [
        " ".join(word for word in line.split() if word not in PUNCTUATIONS) for line in tokenised
    ]


class Meteor:
    """METEOR 1.5 for English as a context manager: the Java process never outlives it.

    Source: pycocoevalcap/meteor/meteor.py (same jar, options and protocol).
    """

    def __enter__(self) -> Self:
        """Start Java.

        Raises:
            ConfigError: Java is missing.
        """
        require_java(["meteor"])
        folder = package_folder("meteor")
        command = [
            "java",
            "-Xmx2G",
            "-Dfile.encoding=UTF-8",
            "-jar",
            str(folder / "meteor-1.5.jar"),
        ]
        command += ["-", "-", "-stdio", "-l", "en", "-norm"]
        # A file, not a pipe: nobody reads it meanwhile, and a full pipe would stop Java.
        self._messages: IO[bytes] = tempfile.TemporaryFile()
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._messages
        )
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """End Java and reap it, whatever happened inside."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                try:
                    pipe.close()
                except BrokenPipeError:
                    continue  # unsent text of a process that died: the cause is already raised
        self._messages.close()

    def score(self, predictions: Mapping[Id, str], references: Mapping[Id, Sequence[str]]) -> float:
        """The corpus score of tokenised captions.

        Args:
            predictions: one tokenised caption for each id.
            references: the tokenised references of the same ids.

        Returns:
            METEOR, 0 to 1.

        Raises:
            ConfigError: Java died.
        """
        return self.total(self.statistics(predictions, references))

    def statistics(
        self, predictions: Mapping[Id, str], references: Mapping[Id, Sequence[str]]
    ) -> dict[Id, str]:
        """METEOR's own line of counts for each caption; as `score`."""
        found = {}
        for key, prediction in predictions.items():
            fields = [*references[key], prediction]
            # "|||" is the protocol's own separator.
            fields = [" ".join(field.replace("|||", " ").split()) for field in fields]
            self._send(" ||| ".join(["SCORE", *fields]))
            found[key] = self._receive()
        return found

    def total(self, statistics: Mapping[Id, str]) -> float:
        """The corpus score of what `statistics` returned; raises what it does."""
        self._send(" ||| ".join(["EVAL", *statistics.values()]))
        # The answer is one line for each caption, then the corpus score.
        return [float(self._receive()) for _ in range(len(statistics) + 1)][-1]

    def _send(self, line: str) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(f"{line}\n".encode(errors="replace"))
            self._process.stdin.flush()
        except BrokenPipeError as error:
            raise self._died() from error

    def _receive(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise self._died()
        return line.decode().strip()

    def _died(self) -> ConfigError:
        self._process.wait()
        self._messages.seek(0)
        return _java_failed("METEOR", self._messages.read())


def package_folder(part: str) -> Path:
    """Where pycocoevalcap keeps the jars of one of its parts (it has no `__file__` of its own)."""
    spec = find_spec(f"pycocoevalcap.{part}")
    assert spec is not None and spec.submodule_search_locations
    return Path(next(iter(spec.submodule_search_locations)))


def _java_failed(what: str, messages: bytes) -> ConfigError:
    """One line about a Java process that failed, with its own first words."""
    said = messages.decode(errors="replace").strip().splitlines() or ["it said nothing"]
    return ConfigError(
        f"evaluate.metrics: {what} failed in Java: {said[0]}: check that `java -version` works and "
        "that 2 GB of memory are free, or leave it out with evaluate.metrics=[quick_cider]"
    )
