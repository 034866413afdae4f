"""The plan of the report, which needs neither models nor DeepSpeed: it is there in a second."""

from pathlib import Path

from pipeline.config import BASELINE_SUFFIX, Config
from pipeline.explain.text import section


def explain_report(config: Config) -> str:
    """What `stages/report.py` would compare."""
    rows = []
    for name in (config.name, config.name + BASELINE_SUFFIX):
        folder = Path(config.runs) / name
        found = [*folder.glob("*/summary.json"), *folder.glob("evaluate/*/metrics.json")]
        there = ", ".join(str(each.relative_to(folder)) for each in sorted(found))
        rows.append((name, there or f"nothing yet in {folder}"))
    title = f"Plan of stages/report.py for recipe {config.recipe}: it reads, and writes nothing."
    return section(title, rows)
