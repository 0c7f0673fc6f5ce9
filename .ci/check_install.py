"""Install a wheel where nothing else is, and use it as on a first day: check_install.py FILE.whl"""

import re
import subprocess
import sys
import tempfile
import venv
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).parents[1]
TYPED_PROGRAM = ROOT / "tests" / "support" / "typed_program.py"
# torch by name: a range may take a build of several GB. The same that is tested.
TORCH = f"torch=={version('torch').partition('+')[0]}"
A_STEP = """
import torch
from friction_kernels import SigSignAdamW, count_launches

param = torch.nn.Parameter(torch.ones(1000))
opt = SigSignAdamW([param], lr=0.1, backend="native")
param.square().sum().backward()
with count_launches() as launches:
    opt.step()
assert launches.total == 1 and bool((param < 1).all())
"""

wheel = Path(sys.argv[1]).resolve()
with tempfile.TemporaryDirectory() as folder:
    venv.create(folder, with_pip=True)
    python = Path(folder) / "bin" / "python"

    def run(*command: object) -> str:
        done = subprocess.run(
            [python, "-I", *command], cwd=folder, stdout=subprocess.PIPE, text=True
        )
        assert done.returncode == 0, f"{command} failed:\n{done.stdout}"
        return done.stdout

    run("-m", "pip", "install", "--quiet", TORCH)
    run("-m", "pip", "install", "--quiet", wheel)
    report = run("-m", "friction_kernels")
    print(report, end="")
    assert re.search(rf"^friction_kernels +{wheel.name.split('-')[1]}$", report, re.MULTILINE)
    assert re.search(r"^backend native, CPU +active$", report, re.MULTILINE)
    run("-c", A_STEP)
    run("-m", "pip", "check")
    run("-m", "pip", "install", "--quiet", f"mypy=={version('mypy')}")
    # Tensor.backward, for one, has no types.
    strictly = ["--strict", "--untyped-calls-exclude=torch"]
    print(run("-m", "mypy", *strictly, TYPED_PROGRAM), end="")
