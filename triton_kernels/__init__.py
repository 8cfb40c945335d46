"""The Triton kernels, installed as tilewright.triton_kernels."""

if __name__ != "tilewright.triton_kernels":
    # A second copy of every kernel would be made, and upstream Triton publishes a package of this name.
    raise ImportError(f"import tilewright.triton_kernels, not {__name__}")
