"""What one backend did on one case."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from .case import DTYPE_NAMES, Case
from .tolerance import Comparison


@dataclass(frozen=True)
class Record:
    """The verdict on one backend and one case.

    status: "passed", "failed" or "refused" (the backend says that it does not serve the call; ``problems`` says why).
    """

    case: Case
    backend: str
    status: str
    comparisons: tuple[Comparison, ...] = ()
    problems: tuple[str, ...] = ()
    draws: int = 1
    seconds: float = 0.0

    @property
    def worst(self) -> Comparison | None:
        return max(self.comparisons, key=lambda c: c.used, default=None)

    def to_json(self) -> dict[str, Any]:
        return {
            "case": self.case.id,
            "op": self.case.op,
            "dtype": DTYPE_NAMES[self.case.dtype],
            "backend": self.backend,
            "status": self.status,
            "problems": list(self.problems),
            "draws": self.draws,
            "seconds": self.seconds,
            "tensors": [
                {
                    "tensor": c.tensor,
                    "max_error": c.max_error,
                    "torch_max_error": c.torch_max_error,
                    "max_limit": c.max_limit,
                    "mean_error": c.mean_error,
                    "torch_mean_error": c.torch_mean_error,
                    "mean_limit": c.mean_limit,
                    "passed": c.passed,
                }
                for c in self.comparisons
            ],
        }
