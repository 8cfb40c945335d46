"""``python benchmarks/gpu contact``, ``measure``, ``kit`` or ``rehearse``; what begins with -- is for its children."""

from __future__ import annotations

import sys
from pathlib import Path

# Run as a folder, this is no package yet: its parent takes the folder's place on the path.
sys.path[0] = str(Path(__file__).resolve().parents[1])

command, *words = sys.argv[1:] or ["--help"]

if command == "--stage":
    from gpu.stages import run_stage

    run_stage(*words)
elif command == "--worker":
    from gpu.worker import serve

    serve()
elif command == "--compiler":
    from gpu.worker import serve_compiling

    serve_compiling()
elif command == "--cases":
    from gpu.worker import run_cases

    sys.exit(min(run_cases(words[0], words[1:]), 98))
elif command == "--profile":
    from gpu.worker import profile

    profile(words)
elif command == "kit":
    from gpu.make_kit import main as make_kit

    sys.exit(make_kit(words))
elif command == "rehearse":
    from gpu.rehearse import main as rehearse

    sys.exit(rehearse(words))
else:
    from gpu.main import main

    sys.exit(main([command, *words]))
