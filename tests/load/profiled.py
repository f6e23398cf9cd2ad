"""The gateway under a profiler of its CPU time: `python -m tests.load.profiled FILE` writes FILE when it is stopped."""

import cProfile
import signal
import sys
import time

from serve.__main__ import main

if __name__ == "__main__":
    # uvicorn raises the signal again when it has shut down, and the default would end the process there.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())
    file = sys.argv.pop(1)  # what is left is the gateway's own command line
    profile = cProfile.Profile(time.process_time)
    profile.enable()
    try:
        main()
    finally:
        profile.disable()
        profile.dump_stats(file)
