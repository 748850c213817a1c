"""Which single-line mutants of a module its tests leave alive: `python tests/mutants.py MODULE TESTS...`.

    .venv/bin/python tests/mutants.py rsprune_dagster/evaluation/intervals.py tests/test_evaluation_fidelity.py

cosmic-ray, which uv runs from an environment of its own, changes a copy of the last commit. Each mutant takes one run
of the tests. A survivor is a formula that no test pins, or a change that no result shows.
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[1]
TIMEOUT_S = 240
CONFIG = """
[cosmic-ray]
module-path = "{module}"
timeout = {timeout}
excluded-modules = []
test-command = "{python} -m pytest -x -q -n 0 -p no:cacheprovider -m 'not slow and not gpu' {tests}"
[cosmic-ray.distributor]
name = "local"
"""


def main(module: str, *tests: str) -> None:
    """Print the report of cosmic-ray, with the difference of each survivor."""
    with tempfile.TemporaryDirectory(prefix="rsprune_mutants_") as folder:
        archive = subprocess.run(["git", "archive", "HEAD"], cwd=CHECKOUT, stdout=subprocess.PIPE, check=True).stdout
        subprocess.run(["tar", "-x"], cwd=folder, input=archive, check=True)
        text = CONFIG.format(module=module, timeout=TIMEOUT_S, python=sys.executable, tests=" ".join(tests))
        Path(folder, "mutants.toml").write_text(text)
        for command in (
            ("cosmic-ray", "init", "mutants.toml", "mutants.sqlite"),
            ("cosmic-ray", "baseline", "mutants.toml"),
            ("cosmic-ray", "exec", "mutants.toml", "mutants.sqlite"),
            ("cr-report", "--surviving-only", "--show-diff", "mutants.sqlite"),
        ):
            environment = {**os.environ, "PYTHONPATH": folder, "OMP_NUM_THREADS": "1"}
            run = [CHECKOUT / ".venv-uv" / "bin" / "uv", "tool", "run", "--from", "cosmic-ray", *command]
            subprocess.run(run, cwd=folder, env=environment, check=True)


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    main(*sys.argv[1:])
