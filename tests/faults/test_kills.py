"""A run that is killed again and again ends where it would have ended.

Five kills here, at moments that follow from a seed, which is printed; `EIM_KILL_SEED` repeats them.
Fifty, by hand, with a log: `python -m tests.faults.fifty_kills`.
"""

import os
import random
from dataclasses import asdict
from pathlib import Path

import pytest

from tests.faults.kills import differences, killed_until_finished, prepare, undisturbed

pytestmark = [pytest.mark.faults, pytest.mark.slow, pytest.mark.timeout(1500)]
KILLS = 5


def test_killed_at_random_moments_it_ends_bit_for_bit_where_it_would_have_ended(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    seed = int(os.environ.get("EIM_KILL_SEED") or random.SystemRandom().randrange(2**32))
    with capsys.disabled():
        print(f"\nEIM_KILL_SEED={seed}")
    recipe = prepare(tmp_path, epochs=2)
    whole, position = undisturbed(tmp_path, recipe)
    done = list(killed_until_finished(tmp_path, recipe, position, kills=KILLS, seed=seed))
    for kill in done:
        print(asdict(kill))
    assert all(kill.killed for kill in done)
    assert differences(whole, tmp_path / "killed" / "run") == []
