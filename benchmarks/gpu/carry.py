"""Fills the folder that goes to a bare machine: wheels of what this project needs beside PyTorch, raw data, and a text tower.

    python -m benchmarks.gpu.carry --raw_dir data/movielens-1m [--text_model DIR] [--python 3.12] [--there NAME …]
        [--output_dir outputs/carry]

The wheels are of the versions that are installed here, those of constraints.txt among them. `--there` names packages that the
machine has, which stay behind with all that they need (README.md has the sizes). Without `--text_model` the text tower has
TinyBERT's size, random weights (of 16 bits, to weigh less), and a WordPiece vocabulary of the training sentences. `carried.json`
says of which commit the folder is, since the machine has no git.
"""

from __future__ import annotations

import argparse
import configparser
import json
import shutil
import subprocess
import sys
from collections.abc import Collection, Sequence
from importlib.metadata import distribution
from pathlib import Path

import torch
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from transformers import AutoModel

from benchmarks.small_text_model import TINYBERT, make
from modeling_flip.training import manifest

ROOT = Path(__file__).resolve().parents[2]
MIB = 2**20
# pip takes each name as it is: a machine that runs wheels of one runs those of the older ones.
PLATFORMS = [f"manylinux_2_{version}_x86_64" for version in (28, 27, 24, 17, 12)] + ["manylinux2014_x86_64"]


def requirements() -> list[str]:
    """What this project needs, as setup.cfg says it."""
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    return setup["options"]["install_requires"].split("\n")[1:]


def pinned(there: Collection[str], python: str) -> list[str]:
    """`NAME==VERSION` of all that is needed, directly or not, but for the packages that are there, and what these need."""
    left = {canonicalize_name(name) for name in there}
    seen: set[tuple[str, str]] = set()  # with an extra, or ""
    versions: dict[str, str] = {}

    def add(requirement: Requirement) -> None:
        name = canonicalize_name(requirement.name)
        if name in left:
            return
        found = distribution(requirement.name)
        versions[name] = found.version
        for extra in {"", *requirement.extras} - {extra for known, extra in seen if known == name}:
            seen.add((name, extra))
            where = {"python_version": python, "python_full_version": f"{python}.0", "extra": extra}
            for line in found.requires or []:
                needed = Requirement(line)
                if needed.marker is None or needed.marker.evaluate(where):
                    add(needed)

    for line in requirements():
        add(Requirement(line))
    return [f"{name}=={version}" for name, version in sorted(versions.items())]


def download(packages: Sequence[str], python: str, folder: Path) -> None:
    """Wheels for Linux on x86-64.

    Raises:
        subprocess.CalledProcessError: there is no wheel of a package; pip says which.
    """
    target = ["--only-binary=:all:", "--python-version", python, "--implementation", "cp"]
    for platform in PLATFORMS:
        target += ["--platform", platform]
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", *target, "-d", str(folder), *packages]
    subprocess.run(command, check=True)


def fill(folder: Path, raw_dir: Path, text_model: Path | None, packages: Sequence[str], python: str) -> None:
    """What was in the folder is deleted."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(raw_dir, folder / "raw")
    if text_model is None:
        make(str(raw_dir), folder / "text-model", sizes=TINYBERT)
        half = AutoModel.from_pretrained(folder / "text-model", dtype=torch.float16)  # training reads them as fp32
        half.save_pretrained(folder / "text-model")
    else:
        shutil.copytree(text_model, folder / "text-model")
    (folder / "wheels").mkdir()
    if packages:
        download(packages, python, folder / "wheels")
    facts = {"commit": manifest.commit(), "python": python, "packages": list(packages)}
    (folder / "carried.json").write_text(json.dumps(facts, indent=2) + "\n")


def size_of(path: Path) -> float:
    """MiB of a file, or of a folder's files."""
    return sum(file.stat().st_size for file in (path, *path.rglob("*")) if file.is_file()) / MIB


def main(given: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--raw_dir", type=Path, required=True)
    parser.add_argument("--text_model", type=Path)
    parser.add_argument("--python", default="3.12", help="the machine's (default: %(default)s)")
    parser.add_argument("--there", nargs="+", default=[], metavar="NAME", help="packages that the machine has")
    parser.add_argument("--most_mib", type=float, default=64, help="what may be carried (default: %(default)s)")
    parser.add_argument("--output_dir", type=Path, default=Path("outputs/carry"))
    options = parser.parse_args(given)
    folder = options.output_dir
    fill(folder, options.raw_dir, options.text_model, pinned(["torch", *options.there], options.python), options.python)
    wheels = sorted((folder / "wheels").iterdir(), key=size_of, reverse=True)
    for path in (folder / "raw", folder / "text-model", folder / "wheels", *wheels[:8]):
        print(f"{size_of(path):7.1f} MiB  {path.relative_to(folder)}")
    print(f"{size_of(folder):7.1f} MiB  {folder}, {len(wheels)} wheels")
    if size_of(folder) > options.most_mib:
        sys.exit(f"{folder} has more than {options.most_mib:g} MiB: name with --there what the machine has")


if __name__ == "__main__":
    main()
