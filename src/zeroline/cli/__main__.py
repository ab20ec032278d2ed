"""``python -m zeroline.cli``: the same as ``zeroline``."""

from zeroline.cli import main

main()
