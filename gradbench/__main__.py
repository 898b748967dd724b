"""The `gradbench` command. A Ctrl-C is one line from the start, while the command is still being imported, too."""

import gc
import os
import signal
import sys
import threading
from types import FrameType


def _interrupted(number: int, frame: FrameType | None) -> None:
    """KeyboardInterrupt, but not inside an import: out of an extension module's that comes as another exception. Nor
    inside JAX's callback of the garbage collector, out of which nothing comes: there it is a moment later."""
    if frame is not None and frame.f_code.co_name == "_xla_gc_callback":
        threading.Timer(0.01, signal.pthread_kill, [threading.get_ident(), number]).start()
        return
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
