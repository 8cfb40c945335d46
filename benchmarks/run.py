"""``make bench``: every benchmark, into one JSON file that says what machine and commit it came from."""

from __future__ import annotations

import datetime
import re
import subprocess
import sys
from pathlib import Path

from tilewright.bench.environment import cpu_name

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results"


def result_file(kind: str = "") -> Path:
    """Today's file for this machine."""
    RESULTS.mkdir(exist_ok=True)
    machine = re.sub(r"[^a-z0-9]+", "-", cpu_name().lower()).strip("-")
    return RESULTS / f"{datetime.date.today().isoformat()}-{kind}{machine}.json"


def main() -> int:
    file = result_file()
    command = [sys.executable, "-m", "pytest", str(HERE), "-o", "python_files=bench_*.py", "-s", "--benchmark-only"]
    command += ["--benchmark-max-time=0.7", "--benchmark-min-rounds=5", "--benchmark-group-by=group"]
    command += ["--benchmark-columns=median,iqr,rounds", "--benchmark-warmup=off", f"--benchmark-json={file}"]
    code = subprocess.run(command, check=False).returncode
    if code == 0:
        print(f"written to {file}")
    return code


if __name__ == "__main__":
    sys.exit(main())
