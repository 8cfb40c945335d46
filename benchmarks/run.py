"""``make bench``: every benchmark, into one JSON file that says what machine and commit it came from."""

from __future__ import annotations

import datetime
import re
import subprocess
import sys
from pathlib import Path

from tilewright.bench.environment import cpu_name


def main() -> int:
    here = Path(__file__).parent
    results = here / "results"
    results.mkdir(exist_ok=True)
    machine = re.sub(r"[^a-z0-9]+", "-", cpu_name().lower()).strip("-")
    file = results / f"{datetime.date.today().isoformat()}-{machine}.json"
    command = [sys.executable, "-m", "pytest", str(here), "-o", "python_files=bench_*.py", "-s", "--benchmark-only"]
    command += ["--benchmark-max-time=0.7", "--benchmark-min-rounds=5", "--benchmark-group-by=group"]
    command += ["--benchmark-columns=median,iqr,rounds", "--benchmark-warmup=off", f"--benchmark-json={file}"]
    code = subprocess.run(command, check=False).returncode
    if code == 0:
        print(f"written to {file}")
    return code


if __name__ == "__main__":
    sys.exit(main())
