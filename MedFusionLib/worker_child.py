"""The child process of `worker`: `python -m MedFusionLib.worker_child FOLDER` runs the request that lies there.

Its standard output carries one JSON object a line: {"event": "progress", "fraction", "message"}, {"event": "log",
"level", "message"}, and at the end one of {"event": "result"}, {"event": "cancelled"} and {"event": "error",
"type", "message"}. It stops softly when a file `cancel` appears in the folder. It clears the folder away and ends when
its owner is gone.
"""

from __future__ import annotations

import json
import logging
import os
import re
import signal
import sys
import threading
import time
import traceback

from .device import is_out_of_memory
from .errors import Cancelled, DeviceError, InstallError, MedFusionError
from .exchange import Folder
from .private_folder import clear, is_orphaned

PATROL = 0.1
"""Seconds between two looks at the folder."""

EVERY = 0.05
"""Seconds between two reports of progress."""


def main(path):
    say = _speaker()
    ending = threading.Event()
    patrol = threading.Thread(target=_patrol, args=(path, ending), daemon=True)
    patrol.start()
    event = _work(path, say)
    if is_orphaned(path):
        patrol.join()
    ending.set()
    say(**event)
    # Torch's own threads and libraries may hang or crash on their way out: nothing is left for them to do.
    os._exit(0)


def _work(path, say):
    """Run the request; the event to say last."""
    try:
        # Windows could not clear away what is mapped, should the owner be gone; it spares no memory there either.
        folder = Folder(path, mode=None if os.name == "nt" else "c")
        job = folder.load("request")
        _limit_memory(job["memory_limit"])
        logger = logging.getLogger(__package__)
        logger.setLevel(logging.INFO)
        logger.addHandler(_Handler(say))
        from .pipeline import run

        result = run(job["request"], _Progress(say), lambda: os.path.exists(os.path.join(path, "cancel")))
        folder.save("result", result)
        return {"event": "result"}
    except Cancelled:
        return {"event": "cancelled"}
    except Exception as error:
        if not isinstance(error, MedFusionError) and is_out_of_memory(error):
            error = DeviceError(
                "There is not enough memory for these volumes: close other programs, crop the volumes or resample"
                " them to larger voxels, or fuse slice by slice."
            )
        elif _is_of_loading_torch(error):
            library = re.search(r"[^\\/\s\"']+\.(?:dll|dylib|so)\b", str(error))
            error = InstallError(
                f"PyTorch is installed, but cannot be loaded ({library[0] if library else type(error).__name__}): on"
                " Windows install Microsoft's Visual C++ Redistributable (aka.ms/vc14/vc_redist.x64.exe) first, else"
                " install PyTorch again."
            )
        elif not isinstance(error, MedFusionError):
            traceback.print_exc()
        return {"event": "error", "type": type(error).__name__, "message": str(error)}


def _is_of_loading_torch(error):
    """Whether torch is there and its libraries are not, or lack others that the system should have."""
    if "torch" in sys.modules or not isinstance(error, (ImportError, OSError)):
        return False
    return any(frame.f_globals.get("__name__") == "torch" for frame, _ in traceback.walk_tb(error.__traceback__))


def _speaker():
    """A function that writes an event. Whatever else prints goes to standard error from now on."""
    channel = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    lock = threading.Lock()

    def say(**event):
        try:
            with lock:
                channel.write(json.dumps(event) + "\n")
                channel.flush()
        except OSError:
            pass  # nobody listens any more: the patrol ends the process

    return say


class _Progress:
    def __init__(self, say):
        self._say, self._last = say, 0.0

    def __call__(self, fraction, message):
        now = time.monotonic()
        if now - self._last >= EVERY or fraction >= 1:
            self._last = now
            self._say(event="progress", fraction=float(fraction), message=str(message))


class _Handler(logging.Handler):
    def __init__(self, say):
        super().__init__()
        self._say = say

    def emit(self, record):
        self._say(event="log", level=record.levelname, message=record.getMessage())


def _patrol(path, ending):
    while not ending.wait(PATROL):
        if is_orphaned(path):
            # The other thread may be writing a file there at this moment.
            for _ in range(5):
                clear(path)
                if not os.path.exists(path):
                    break
                time.sleep(PATROL)
            if hasattr(os, "killpg") and os.getsid(0) == os.getpgrp():
                os.killpg(os.getpgrp(), signal.SIGKILL)  # with a launcher between this process and the owner
            os._exit(1)


def _limit_memory(size):
    """Let allocations beyond `size` bytes of writable memory fail, on Linux; None: no limit."""
    if size is not None and sys.platform == "linux":
        import resource

        resource.setrlimit(resource.RLIMIT_DATA, (size, size))


if __name__ == "__main__":
    main(sys.argv[1])
