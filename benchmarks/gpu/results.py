"""The three files that a call leaves, each written anew after every stage: the result, its table and the logs."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path
from typing import Any

from . import report
from .run import Outcome, Run, slug, write_whole
from .targets import targets

#: Of a log, what its end may take in the archive.
LOG_BYTES = 2 * 2**20

#: What the name of everything begins with that a rehearsal leaves.
REHEARSED = "rehearsal-not-a-measurement"


class Files:
    """gpu: what is known of the machine. started: the date and time, as text. long: of Run.

    The result of "measure" has the form of `tilewright bench`'s, and can be committed as it is.
    """

    def __init__(self, run: Run, gpu: dict[str, Any], started: str) -> None:
        self._run, self._gpu, self._started = run, gpu, started
        kind = "bench" if run.call == "measure" else run.call
        machine = f"{started[:10]}-{kind}-{slug(gpu.get('name', 'unknown'))}"
        self.result = run.out / f"{f'{REHEARSED}-{kind}' if run.rehearsal else machine}.json"
        self.table = self.result.with_suffix(".txt")
        self.logs = self.result.with_suffix(".tar.gz")

    def write(self, outcomes: dict[str, Outcome], over: bool) -> str:
        """Answers the table. over: no stage is to come."""
        text = report.text(self._run, self._gpu, outcomes, targets(report.rows(outcomes)))
        write_whole(self.table, text.encode())
        write_whole(self.result, self._json(outcomes, over).encode())
        write_whole(self.logs, self._archive())
        return text

    def _json(self, outcomes: dict[str, Outcome], over: bool) -> str:
        """A row of the benchmark is a line."""
        run = self._run
        rows = report.rows(outcomes)
        found = outcomes.get("import", Outcome("not reached"))
        complete = over and all(o.status in ("passed", "failed", "not run") for o in outcomes.values())
        content = {
            "form": 1,
            "call": run.call,
            "rehearsal": run.rehearsal,
            "complete": complete,
            "command": f"make gpu-{run.call}" + (" LONG=1" if run.long else ""),
            "date": self._started,
            "gpu": self._gpu,
            "environment": found.data.get("environment", {"missing": found.reason}),
            "settings": {"device": run.device, "backends": list(run.backends)},
            "stages": {
                n: {"status": o.status, "reason": o.reason, "seconds": round(o.seconds, 1), "problems": o.problems}
                for n, o in outcomes.items()
            },
            **{n: o.data for n, o in outcomes.items() if o.data and n != "import" and "rows" not in o.data},
            "targets": [dict(zip(("target", "measured", "verdict"), t, strict=True)) for t in targets(rows)],
        }
        text = json.dumps({**content, "rows": []}, indent=1, allow_nan=False)
        lines = ",\n".join(json.dumps(row, allow_nan=False) for row in rows)
        return text.removesuffix("[]\n}") + f"[\n{lines}\n]\n}}\n"

    def _archive(self) -> bytes:
        memory = io.BytesIO()
        with tarfile.open(fileobj=memory, mode="w:gz") as archive:
            for file in sorted((*self._run.work.glob("*.log"), *self._run.work.glob("*.csv"))):
                info, end = tarfile.TarInfo(file.name), _end(file)
                info.size = len(end)
                archive.addfile(info, io.BytesIO(end))
        return memory.getvalue()


def _end(file: Path) -> bytes:
    with file.open("rb") as log:
        log.seek(max(0, file.stat().st_size - LOG_BYTES))
        return log.read()
