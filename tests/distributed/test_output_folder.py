"""Processes whose output folders are not the same one, as on machines that share none."""

from __future__ import annotations

import re
import shutil
import socket
import sys
from pathlib import Path

import pytest
import yaml

from tests.processes import finish

# Each in a folder of its own, with the recipe there. Nobody ends the others when one fails; one that hangs is ended by its alarm.
APART = """
import os, signal, sys
from functools import partial
from pathlib import Path
from tests.attack.forks import fork, prepare_to_fork
from tests.attack.scenarios import Scenario, train_py

port, *folders = sys.argv[1:]
prepare_to_fork()
from modeling_flip.training import stages
stages.SECONDS_TO_SEE = 0.5
alarm = lambda rank: signal.alarm(200)
ranks = [partial(train_py, Path(f), Scenario(2), rank, int(port), None, alarm) for rank, f in enumerate(folders)]
pids = [fork(rank) for rank in ranks]
print(*(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids))
"""


def run_apart(folders: list[Path]) -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    return finish([sys.executable, "-c", APART, str(port), *map(str, folders)])


@pytest.mark.slow
def test_a_folder_that_the_machines_do_not_share_is_refused_before_rows_are_prepared(
    recipe_file: Path, tmp_path: Path
) -> None:
    recipe = yaml.safe_load(recipe_file.read_text()) | {"output_dir": "run", "cache_dir": str(tmp_path / "cache")}
    folders = [tmp_path / "first", tmp_path / "second"]
    for folder in folders:
        folder.mkdir()
        (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    # What an earlier attempt has left on the second: it would be taken for the run's own.
    (folders[1] / "run").mkdir()
    shutil.copy(folders[1] / "recipe.yaml", folders[1] / "run" / "recipe.yaml")
    assert run_apart(folders).split() == ["1", "1"]
    for rank, folder in enumerate(folders):
        (log,) = folder.glob(f"*/{rank}.err")
        told = re.findall(r"^train\.py: error: .*", log.read_text(), re.MULTILINE)
        assert told == [
            "train.py: error: output_dir is 'run', and process 1 does not see what the first one writes there: output_dir must "
            "be a folder that all machines share"
        ], log.read_text()
    assert not [*(folders[0] / "run").iterdir()] and not (tmp_path / "cache").exists()
