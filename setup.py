"""Builds the native extension with CMake; everything else is in pyproject.toml.

Environment:
    FRICTION_CUDA: 1 (GPU kernels required), 0 (left out) or auto (where nvcc is found; the default).
    FRICTION_CUDA_ARCHITECTURES: what they are compiled for, as CMAKE_CUDA_ARCHITECTURES spells it
        (default 80-real;90-real;100-real;100-virtual).
"""

import os
import subprocess
import sys
from pathlib import Path

import pybind11
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext


class CMakeBuild(build_ext):
    """Drives CMakeLists.txt, the only build definition."""

    def build_extension(self, ext: Extension) -> None:
        source = Path(__file__).parent.resolve()
        library = Path(self.get_ext_fullpath(ext.name)).resolve()
        build = Path(self.build_temp).resolve() / ext.name
        options = [
            f"-D{name}={os.environ[name]}"
            for name in ("FRICTION_CUDA", "FRICTION_CUDA_ARCHITECTURES")
            if os.environ.get(name)
        ]
        subprocess.run(
            [
                "cmake",
                "-S",
                source,
                "-B",
                build,
                "-G",
                "Ninja",
                "-DCMAKE_BUILD_TYPE=Release",
                f"-DPython_EXECUTABLE={sys.executable}",
                f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
                f"-DCMAKE_LIBRARY_OUTPUT_DIRECTORY={library.parent}",
                *options,
            ],
            check=True,
        )
        subprocess.run(["cmake", "--build", build], check=True)


setup(
    ext_modules=[Extension("friction_kernels._native", sources=[])],
    cmdclass={"build_ext": CMakeBuild},
)
