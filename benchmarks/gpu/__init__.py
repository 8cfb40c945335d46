"""``make gpu``: what a quarter of an hour on a GPU is for, as two calls, contact and measure (docs/gpu.md).

Three kinds of process: the command itself (main.py) and the stages it starts need nothing but Python; the workers that
a stage asks import torch and the package (worker.py and what it imports), and may crash or hang.
"""
