"""The `gradbench` command. A Ctrl-C is one line from the start, while the command is still being imported, too."""

import gc
import os
import signal
import sys
from types import FrameType


def _interrupted(_: int, frame: FrameType | None) -> None:
    """KeyboardInterrupt, but not inside an import: out of an extension module's that comes as another exception."""
    while frame is not None:
        if frame.f_code.co_filename == "<frozen importlib._bootstrap>":
            os.write(2, b"gradbench: interrupted\n")
            os._exit(130)
        frame = frame.f_back
    raise KeyboardInterrupt


def main() -> None:
    """Import the command line and run it."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # a shell's background job ignores it
        signal.signal(signal.SIGINT, _interrupted)
    if sys.argv[1:2] == ["report"]:
        # It imports and traces, which stays: by default the collector takes a tenth of its time.
        gc.set_threshold(100_000, 50, 50)
    from gradbench.cli.main import invoke

    sys.exit(invoke(sys.argv[1:]))


if __name__ == "__main__":
    main()
