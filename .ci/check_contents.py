"""Check what an sdist and the wheel built from it hold, file by file: check_contents.py FOLDER"""

import re
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

MOST_BYTES = 20_000_000  # of the wheel, unpacked
PACKAGES = ("friction_kernels/", "triton_kernels/")
FOR_THE_BUILD = {
    "CMakeLists.txt",
    "LICENSE",
    "MANIFEST.in",
    "README.md",
    "pyproject.toml",
    "setup.py",
}
MADE_BY_SETUPTOOLS = re.compile(r"PKG-INFO|setup\.cfg|friction_kernels\.egg-info/.*")

(sdist,) = Path(sys.argv[1]).glob("*.tar.gz")
(wheel,) = Path(sys.argv[1]).glob("*.whl")
listed = subprocess.run(["git", "ls-files"], check=True, capture_output=True, text=True).stdout
tracked = set(listed.splitlines())
packaged = {name for name in tracked if name.startswith(PACKAGES)}


def assert_same(what: str, found: set[str], wanted: set[str]) -> None:
    assert found == wanted, f"{what} lacks {wanted - found} and should not have {found - wanted}"


with tarfile.open(sdist) as archive:
    in_sdist = {file.name.partition("/")[2] for file in archive.getmembers() if file.isfile()}
in_sdist = {name for name in in_sdist if not MADE_BY_SETUPTOOLS.fullmatch(name)}
native = {name for name in tracked if name.startswith("csrc/")}
assert_same("the sdist", in_sdist, packaged | native | FOR_THE_BUILD)

with zipfile.ZipFile(wheel) as archive:
    in_wheel = {file.filename for file in archive.infolist() if not file.is_dir()}
    size = sum(file.file_size for file in archive.infolist())
metadata = {name for name in in_wheel if re.match(r"friction_kernels-[\d.]+\.dist-info/", name)}
libraries = {name for name in in_wheel if re.search(r"\.(so|pyd|dylib)$", name)}
assert len(libraries) == 1, f"one native library expected: {libraries}"
assert next(iter(libraries)).startswith("friction_kernels/_native."), libraries
assert any(name.endswith("licenses/LICENSE") for name in metadata), "the licence is missing"
assert_same(
    "the wheel",
    in_wheel - metadata - libraries,
    {name.removeprefix("triton_kernels/") for name in packaged},
)
assert size < MOST_BYTES, f"{size:,} bytes"
print(f"{sdist.name}: {len(in_sdist)} files; {wheel.name}: {len(in_wheel)} files, {size:,} bytes")
