"""The program's entry: ``pointdistill`` and ``python -m pointdistill``."""

import os
import sys


def main() -> None:
    """Run the command line; Ctrl-C while it is still being loaded ends without a traceback."""
    # Threads that spin while they wait stall each other as soon as anything else runs: a step of the tiny
    # model on two cores beside one busy process took 3.1 s instead of 0.24 s. Read when torch is loaded.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    # Pictures are written to files. A notebook sets the backend that it shows pictures with for its commands too,
    # and matplotlib does not even load where that one is not installed.
    os.environ["MPLBACKEND"] = "agg"
    try:
        from pointdistill.cli import main as run

        run()
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
