"""Where the splits lie that a recipe reads. Strings alone; opens nothing."""

from pipeline.config import DataConfig


def below(place: str, name: str) -> str:
    """A split's folder or URL."""
    return f"{place.rstrip('/')}/{name}"


def training_places(data: DataConfig) -> list[str]:
    """What the phases train on: the sets of `data.mix`, or the train split of `data.shards`."""
    if data.mix:
        return [below(each.shards, each.split or data.train_split) for each in data.mix]
    return [below(data.shards, data.train_split)] if data.shards else []


def split_places(data: DataConfig) -> list[str]:
    """All that training and evaluation read, each once."""
    others = (data.val_split, data.test_split) if data.shards else ()
    return list(dict.fromkeys([*training_places(data), *(below(data.shards, e) for e in others)]))
