"""The quickstart, pushed to a Hub on this machine while it trains, and loaded from there as a stranger would.

make hub-demo
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.hub.loopback_hub import LoopbackHub

REPO, OUTPUT_DIR = "me/flip-quickstart", Path("outputs/hub-demo")
TRAIN = ["-m", "accelerate.commands.launch", "train.py", "configuration/quickstart.yaml", "--license", "apache-2.0"]
PUSH = ["--push_to_hub", "--hub_model_id", REPO, "--output_dir", str(OUTPUT_DIR / "quickstart")]


def main(more_arguments: list[str]) -> None:
    shutil.rmtree(OUTPUT_DIR, ignore_errors=True)
    with LoopbackHub() as hub, tempfile.TemporaryDirectory() as home:
        print(
            f"A Hub on {hub.url}. Training, with a push at every save:\n\n  train.py {' '.join([*PUSH, *more_arguments])}\n"
        )
        env = hub.env(Path(home, "trainer"))
        subprocess.run([sys.executable, *TRAIN, *PUSH, *more_arguments], env=env, check=True)

        print(f"\n{REPO}, newest commit first:\n")
        for title in hub.commits(REPO):
            print(f"  {title}")
        print("\nIts files:\n")
        files = hub.files(REPO)
        for name, data in sorted(files.items()):
            print(f"  {len(data):>10,}  {name}")

        card = files["README.md"].decode()
        (code,) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
        print(f"\nThe code of its card, in a new process with an empty cache:\n\n{code}")
        subprocess.run([sys.executable, "-c", code], env=hub.env(Path(home, "stranger")), cwd=home, check=True)
        if sys.stdin.isatty():
            input(f"\nIts page, until you press Enter: {hub.url}/{REPO}\n")


if __name__ == "__main__":
    main(sys.argv[1:])
