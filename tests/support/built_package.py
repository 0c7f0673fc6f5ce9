"""Copies of the package whose library is built with other options than the one that is installed."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pybind11

SUPPORT = Path(__file__).parent
TESTS = SUPPORT.parent
ROOT = TESTS.parent


def build(folder: Path, build_folder: Path, **options: str) -> Path:
    """Have folder/friction_kernels with a library of these CMake options; return the folder."""
    package = folder / "friction_kernels"
    shutil.rmtree(package, ignore_errors=True)
    shutil.copytree(ROOT / "friction_kernels", package, ignore=shutil.ignore_patterns("_native*"))
    configure = [
        *("cmake", "-S", ROOT, "-B", build_folder, "-G", "Ninja"),
        *(f"-DPython_EXECUTABLE={sys.executable}", f"-Dpybind11_DIR={pybind11.get_cmake_dir()}"),
        f"-DCMAKE_LIBRARY_OUTPUT_DIRECTORY={package}",
        *(f"-D{name}={value}" for name, value in options.items()),
    ]
    for command in (configure, ["cmake", "--build", build_folder]):
        run = subprocess.run(command, capture_output=True, text=True)
        assert run.returncode == 0, run.stdout + run.stderr
    return folder


def host_for_gpu() -> Path:
    """The package whose library sends to the host what is meant for a GPU; built where sources changed."""
    folder = ROOT / "build" / "host_for_gpu"
    return build(folder / "packages", folder / "cmake", FRICTION_CUDA="host")


def run_python(folder: Path, *arguments: str | Path, **environment: str) -> tuple[int, str]:
    """Run Python with the package that lies there: exit status and output.

    In that folder: Python looks first into the one it runs in, and the project has the package, too.
    """
    path = os.pathsep.join(map(str, (folder, ROOT / "triton_kernels", SUPPORT, TESTS, ROOT)))
    run = subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": path, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    )
    return run.returncode, run.stdout


def run_pytest(folder: Path, *arguments: str | Path, **environment: str) -> tuple[int, str]:
    pytest = ("-m", "pytest", "-q", "-p", "no:cacheprovider", "-c", ROOT / "pyproject.toml")
    return run_python(folder, *pytest, *arguments, **environment)
