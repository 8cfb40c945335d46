"""``python -m tilewright`` is the ``tilewright`` command."""

from .cli import main

main()
