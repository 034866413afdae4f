"""Where records come from, how they are read, and what is asked of them."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pipeline.config.fields import not_negative, one_of, path, positive

TASKS = ("captions", "scienceqa", "instruct", "mme")


def task_defaults(task: str, form: str) -> Mapping[str, Any]:
    """What a task wants where the recipe does not say; before the recipe, after the defaults below.

    Questions are answered greedily, as LLaMA-Adapter's; 64 tokens hold an answer and the beginning
    of what follows (LaVIN's --max_gen_len), 512 an explanation and the answer behind it (the
    benchmark's run_gpt3.py --max_tokens). MME's yes and no are in the first of 20 (LaVIN's
    eval_mme.py).

    Args:
        task: `data.task`; an unknown one has no defaults.
        form: `scienceqa.format`.
    """
    answers_first = form.partition("-")[2].startswith("A")
    lengths = {  # of a row, of an answer
        "scienceqa": (640, 64 if answers_first else 512),
        "instruct": (1024, 256),
        "mme": (256, 20),
    }
    if task not in lengths:
        return {}
    row, answer = lengths[task]
    generation = {"beams": 1, "max_new_tokens": answer}
    return {"data": {"max_tokens": row}, "evaluate": generation}


@dataclass
class MixConfig:
    """One set of a mixture."""

    shards: str = path()  # as data.shards
    split: str | None = None  # null = data.train_split
    weight: float = positive(1.0)  # how often an epoch has each record; 2.5: twice, half of them 3x
    name: str | None = None  # in TensorBoard and the summary; null = the last part of `shards`

    @property
    def label(self) -> str:
        """The set's name, given or taken from its place."""
        return self.name or self.shards.rstrip("/").rpartition("/")[2]


@dataclass
class RemoteConfig:
    """How shards are read that lie on a server: fetched whole into a folder of this machine."""

    cache: str | None = path(None)  # this folder, best on a local disk; null = ~/.cache/eim
    cache_gb: float = positive(100.0)  # the most that it holds, in 10^9 bytes
    schemes: list[str] = field(default_factory=list)  # fsspec's, allowed besides http(s) and s3


@dataclass
class DataConfig(RemoteConfig):
    """Where the records are and how they are read."""

    # what an LM learns of a record: its captions, to answer its question (see `scienceqa`), the
    # answers of its conversation (see `instruct`), or yes and no to MME's questions
    task: str = one_of("captions", *TASKS)
    shards: str = path()  # folder, or http(s):// or s3:// URL, with a sub-folder for each split
    mix: list[MixConfig] = field(default_factory=list)  # trained on instead of shards' train_split
    # a folder of each node's own disk, to which a shard is copied when the node first reads it;
    # null = shards are read where they lie
    stage: str | None = path(None)
    train_split: str = "train"
    val_split: str = "val"
    test_split: str = "test"
    # longest text in tokens, EOS included; the rest is cut, counted. Of questions and conversations
    # it counts all positions of a row, image slots too: 640 by default for scienceqa, 1024 for
    # instruct, 256 for mme
    max_tokens: int = positive(64)
    lanes: int = positive(64)  # the plan's parallel streams; part of the data order
    window: int = positive(1024)  # records shuffled together within a lane
    workers: int = not_negative(2)  # loading processes per rank; 0 loads in the training process
    max_pixels: int = positive(89_478_485)  # larger images are refused from their header
    max_image_bytes: int = positive(67_108_864)  # larger image files are refused unread
    max_bad_fraction: float = not_negative(0.01)  # of an epoch; more bad records stop the run
    strict: bool = False  # stop at the first bad record
    cache_features: bool = True  # encode each image once where the encoder is frozen


@dataclass
class ScienceQAConfig:
    """How ScienceQA's questions are put (`data.task: scienceqa`)."""

    # what is shown, and what is to be said, in order: Question, Context, Multiple choices, Lecture,
    # Explanation (the data's solution), Answer
    format: str = "QCM-ALE"
    wording: str = one_of("scienceqa", "scienceqa", "lavin")  # "Answer:", or LaVIN's "Response:"
    use_caption: bool = False  # a captioner's words on the image are part of the context
    answer_weight: float = positive(1.0)  # in the loss, of "The answer is A."; all else counts 1


@dataclass
class InstructConfig:
    """How conversations are put (`data.task: instruct` and `mme`)."""

    # "Instruction: ... Response: ..." of LaVIN, or the chat template that the LLM's tokenizer has
    template: str = one_of("lavin", "lavin", "tokenizer")
    # what the captions of a record without conversation answer, where a set of them is mixed in
    caption_question: str = "Describe this image in one sentence."


@dataclass
class PrepareConfig(RemoteConfig):
    """One data set to be written as shards, or shards of others to be indexed."""

    # coco, flickr8k, folder, instruct, mme, scenes, scienceqa, or webdataset (shards of others)
    source: str = ""
    out: str = path()  # folder; each split becomes a sub-folder
    # coco, flickr8k, folder: the image folder; scienceqa: the folder above train/, val/ and test/;
    # mme: the benchmark's folder, with the questions too; instruct: where image names start from
    images: str = path()
    # coco: annotation JSON files; instruct: files of conversations, .json or .jsonl
    annotations: list[str] = field(default_factory=list, metadata={"path": True})
    karpathy: str = path()  # coco: dataset_coco.json, whose splits (and sentences) are used
    # coco without karpathy and lists, folder without a column, instruct, webdataset
    split: str = "train"
    held_out: float = not_negative(0.0)  # instruct: share of the conversations that goes to `val`
    # flickr8k: captions.txt; folder: a .csv, .tsv, .jsonl or .json file; scienceqa: captions.json,
    # may be left out
    captions: str = path()
    # scienceqa: problems.json, or several files
    problems: list[str] = field(default_factory=list, metadata={"path": True})
    pid_splits: str = path()  # scienceqa: pid_splits.json; "" = each problem's own split
    splits: list[str] = field(default_factory=list)  # scienceqa: empty = train, val and test
    resplit: bool = False  # scienceqa: train, val, test anew by the pid's hash, for trials
    image_column: str = ""  # folder: "" = found by its usual names (image, file_name, path, ...)
    caption_column: str = ""  # folder: "" = found by its usual names (caption, text, ...)
    split_column: str = ""  # folder: "" = the column `split`, where there is one
    # webdataset: a folder of tars, or a pattern: [s3://b]/d/{00000..00331}.tar
    shards: str = path()
    hash: bool = False  # webdataset: also compute SHA-256 of each shard, which reads all of it
    # flickr8k: folder with Flickr_8k.{train,dev,test}Images.txt
    # coco with annotations: folder with karpathy_{val,test}_images.txt
    split_lists: str = path()
    style: str = one_of("general", "general", "target")  # scenes
    wording: str = one_of("style", "style", "both")  # scenes: a record is told in either wording
    counts: dict[str, int] = field(
        default_factory=lambda: {"train": 2000, "val": 200, "test": 200}
    )  # scenes: records of each split
    image_size: int = positive(64)  # scenes: pixels
    records_per_shard: int = positive(1000)
    seed: int = not_negative(0)
    workers: int = not_negative(2)
    # several machines at once: this one writes every shard whose number is `part` modulo `parts`; a
    # last run without them finds all shards there and writes the manifest
    part: int = not_negative(0)
    parts: int = positive(1)
