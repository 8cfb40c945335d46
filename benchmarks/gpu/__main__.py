"""``python benchmarks/gpu``; with --worker, the child that one of the stages talks to."""

from __future__ import annotations

import sys
from pathlib import Path

# Run as a folder, this is no package yet: its parent takes the folder's place on the path.
sys.path[0] = str(Path(__file__).resolve().parents[1])

if sys.argv[1:] == ["--worker"]:
    from gpu.worker import serve

    serve()
elif sys.argv[1:2] == ["--cases"]:
    from gpu.worker import run_cases

    sys.exit(min(run_cases(sys.argv[3:], sys.argv[2]), 98))
else:
    from gpu.main import main

    sys.exit(main(sys.argv[1:]))
