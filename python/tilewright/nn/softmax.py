"""``torch.nn.Softmax`` and ``torch.nn.LogSoftmax``, with scale, causal bound and mask in the same kernel."""

from __future__ import annotations

from torch import Tensor, nn

from ..ops._checks import check_causal, check_factor
from ..ops.softmax import log_softmax, softmax


class _Normalisation(nn.Module):
    dim: int

    def __init__(self, dim: int = -1, *, scale: float = 1.0, causal: str | None = None) -> None:
        super().__init__()
        if isinstance(dim, bool) or not isinstance(dim, int):
            raise TypeError(f"dim must be an int, got {type(dim).__name__}")
        if causal is not None:
            check_causal(causal)
        self.dim, self.scale, self.causal = dim, check_factor("scale", scale), causal

    def extra_repr(self) -> str:
        options = f", scale={self.scale}" if self.scale != 1.0 else ""
        return f"dim={self.dim}{options}" + (f", causal={self.causal!r}" if self.causal else "")


class Softmax(_Normalisation):
    """Softmax of ``scale * x + mask`` along ``dim``, as a module; see :func:`tilewright.softmax`.

    Args:
        dim: the dimension that is normalised. Unlike ``torch.nn.Softmax``, which guesses where it is left out, the
            default is the last.
        scale: factor on x.
        causal: None, "top_left" or "bottom_right", over the last two dimensions; needs dim -1.

    Shape: x of any shape of up to 8 dimensions; the result has x's shape and dtype. No parameters.

    Raises:
        TypeError, ValueError: an argument is wrong; the message names it.
    """

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """mask: bool (True keeps) or float (added), broadcastable to x. A row without an entry gives 0, never NaN."""
        return softmax(x, self.dim, scale=self.scale, mask=mask, causal=self.causal)


class LogSoftmax(_Normalisation):
    """Log-softmax of ``scale * x + mask`` along ``dim``, as a module; see :func:`tilewright.log_softmax`.

    Arguments, shapes and errors are those of :class:`Softmax`.
    """

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """mask: bool (True keeps) or float (added), broadcastable to x. Excluded entries give -inf, never NaN."""
        return log_softmax(x, self.dim, scale=self.scale, mask=mask, causal=self.causal)
