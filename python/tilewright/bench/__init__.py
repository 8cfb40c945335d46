"""Measuring: the machine in words, and timings beside PyTorch's."""
