"""Check what a wheel holds, then install it aside and let it say what it is: check_wheel.py FILE.whl"""

import os
import re
import subprocess
import sys
import tempfile
import zipfile

MOST_BYTES = 20_000_000

wheel = sys.argv[1]
with zipfile.ZipFile(wheel) as archive:
    files = archive.infolist()
names = {file.filename for file in files}
packages = {name.split("/")[0] for name in names}
libraries = {name for name in names if re.search(r"\.(so|pyd|dylib)$", name)}
expected = re.compile(r"friction_kernels|friction_triton|friction_kernels-[\d.]+\.dist-info")
assert all(expected.fullmatch(package) for package in packages), f"foreign contents: {packages}"
assert len(libraries) == 1, f"one native library expected: {libraries}"
assert next(iter(libraries)).startswith("friction_kernels/_native."), libraries
assert "friction_kernels/py.typed" in names
assert any(name.endswith("licenses/LICENSE") for name in names), "the licence is missing"
assert not any(name.endswith((".h", ".cpp", ".o")) for name in names), "sources in the wheel"
assert sum(file.file_size for file in files) < MOST_BYTES

with tempfile.TemporaryDirectory() as target:
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", target]
    subprocess.run([*install, wheel], check=True)
    report = subprocess.run(
        [
            sys.executable,
            "-c",
            "import friction_kernels as f, friction_kernels.__main__ as m; print(f.__file__); m.main()",
        ],
        env={**os.environ, "PYTHONPATH": target},
        cwd=target,
        check=True,
        capture_output=True,
        text=True,
    ).stdout
assert report.startswith(target), f"not the wheel's package: {report}"
assert re.search(r"backend native, CPU +active", report), report
print(
    f"{os.path.basename(wheel)}: {len(names)} files, {os.path.getsize(wheel):,} bytes, native active"
)
