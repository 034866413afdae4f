"""Code that makes a file where it runs, and the files it is hidden in."""

import json
import os
from pathlib import Path


class Trap:
    """Makes a file where it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (f"touch '{self.mark}'",)


def change_json(file: Path, **values: object) -> None:
    content = json.loads(file.read_text()) if file.is_file() else {}
    file.write_text(json.dumps(content | values))


def code_that_springs(mark: Path) -> str:
    return f"from pathlib import Path\nPath({str(mark)!r}).touch()\n"
