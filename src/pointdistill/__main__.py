"""``python -m pointdistill``."""

from pointdistill.cli import main

main()
