"""Runs a pipeline request in a child process, so that Slicer's own process stays responsive and alive.

job = worker.start(request)
while job.state == "running":       # from a timer; never a loop that blocks the event loop
    for event in job.poll():
        ...
result = job.result()               # a pipeline.Result, or the error that the child raised
job.close()
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import re
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections import deque
from dataclasses import dataclass
from pathlib import Path

from . import errors
from .errors import Cancelled, MedFusionError, WorkerError
from .exchange import Folder
from .private_folder import PrivateFolder, sweep
from .volume import Volume

GRACE = 0.5
"""Seconds between the polite request to stop and the end of the process tree."""

LAST_LINES = 20
"""Lines of the child's standard error that a crash report quotes."""


@dataclass(frozen=True)
class Event:
    """What a job reports. kind: "progress" (fraction 0..1, message) or "log" (level, message)."""

    kind: str
    message: str
    fraction: float | None = None
    level: str | None = None


def start(request, python=None, memory_limit=None):
    """Start a `pipeline.Request` in a child process and return its `Job` at once.

    python: interpreter that has MedFusion's dependencies; None: this one. In Slicer it is `PythonSlicer`.
    memory_limit: bytes of writable memory that the child may take, on Linux; None: no limit.

    The volumes are written from a thread of its own: leave their voxels as they are until the first event.
    Raises FileError when no temporary folder can be made; everything else is reported by the job.
    """
    return Job(request, python or sys.executable, memory_limit)


class Job:
    """A request on its way. Its methods belong to one thread, and none of them blocks but `wait` and `result`."""

    def __init__(self, request, python, memory_limit):
        self._folder = PrivateFolder()
        self._outbox = queue.SimpleQueue()
        self._events = []
        self._outcome = None  # of the thread: a MedFusionError, or _DONE
        self._child = _Child(self._folder)
        # At the interpreter's end too, and where a job is simply forgotten.
        self._close = weakref.finalize(self, self._child.end_and_remove)
        run = (self._child, request, python, memory_limit, self._outbox)
        threading.Thread(target=_drive, args=run, name="MedFusion worker", daemon=True).start()

    @property
    def state(self):
        """ "running", "done", "failed" or "cancelled". It changes in `poll` and `wait` only, after the last event."""
        if self._outcome is None:
            return "running"
        if self._outcome is _DONE:
            return "done"
        return "cancelled" if isinstance(self._outcome, Cancelled) else "failed"

    @property
    def pid(self):
        """Process id of the child, None before it runs."""
        return self._child.process.pid if self._child.process else None

    @property
    def folder(self):
        """The private temporary folder, a Path."""
        return self._folder.path

    def poll(self):
        """The `Event`s since the last call, oldest first."""
        if self._outcome is None:
            # Slicer's main thread keeps the interpreter lock while its event loop idles: let the threads work.
            time.sleep(0.001)
        self._collect()
        events, self._events = self._events, []
        return events

    def wait(self, timeout=None):
        """Wait until the job has ended, `timeout` seconds at most; whether it has. `poll` still gives its events."""
        self._collect()
        end = None if timeout is None else time.monotonic() + timeout
        while self._outcome is None and (end is None or time.monotonic() < end):
            with contextlib.suppress(queue.Empty):
                self._take(self._outbox.get(timeout=0.1 if end is None else max(0.0, min(0.1, end - time.monotonic()))))
        return self._outcome is not None

    def result(self):
        """The `pipeline.Result`, waiting for it if need be. Its arrays are read-only maps of files in `folder`.

        Raises what ended the job: the child's own MedFusionError, Cancelled, or WorkerError for a crash.
        """
        self.wait()
        if self._outcome is not _DONE:
            raise self._outcome
        if not self._close.alive:
            raise WorkerError("The job is closed and its result with it: ask for the result before closing.")
        if self._child.result is None:
            try:
                self._child.result = Folder(self._folder.path).load("result")
            except OSError as error:
                raise WorkerError(
                    f"The result cannot be read from the temporary folder ({error.strerror}): run again, and let"
                    " nothing clear that folder away meanwhile."
                ) from error
        return self._child.result

    def cancel(self):
        """Stop: softly at first, by ending the whole process tree after `GRACE` seconds. Returns at once."""
        if self._outcome is None:
            self._child.cancel()

    def close(self):
        """End the job if it runs, and remove its folder. Copy what you need of the result before."""
        self._close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def _collect(self):
        with contextlib.suppress(queue.Empty):
            while True:
                self._take(self._outbox.get_nowait())

    def _take(self, item):
        if isinstance(item, Event):
            self._events.append(item)
        elif item is _DONE and self._child.cancelled.is_set():
            # It was done before it was cancelled, but nobody had looked yet.
            self.close()
            self._outcome = Cancelled()
        else:
            self._outcome = item


_DONE = object()


class _Child:
    """The process, its folder and what was loaded of it, shared by the job and its thread."""

    def __init__(self, folder):
        self.folder = folder
        self.process = None
        self.result = None
        self.cancelled = threading.Event()
        self._gone = False
        self._lock = threading.Lock()

    def launch(self, python):
        own_group = {"creationflags": subprocess.CREATE_NO_WINDOW} if os.name == "nt" else {"start_new_session": True}
        with self._lock:
            self.check()
            try:
                self.process = subprocess.Popen(
                    [python, "-m", f"{__package__}.worker_child", str(self.folder.path)],
                    env=_environment(),
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    text=True,
                    encoding="utf-8",
                    errors="replace",
                    **own_group,
                )
            except OSError as error:
                raise WorkerError(
                    f"The Python interpreter {Path(python).name} cannot be started ({error.strerror}): reinstall it,"
                    " or name another."
                ) from error
        return self.process

    def check(self):
        if self.cancelled.is_set():
            raise Cancelled()

    def cancel(self):
        self.cancelled.set()
        with contextlib.suppress(OSError):
            (self.folder.path / "cancel").touch()
        timer = threading.Timer(GRACE, self.end)
        timer.daemon = True
        timer.start()

    def join(self):
        """Wait for the process, after its output has ended, and let nothing that it started outlive it."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(GRACE)
        self.end()
        self.process.wait()
        with self._lock:
            self._gone = True

    def end(self):
        """End the process and all its descendants: a launcher ended alone would leave the interpreter behind."""
        with self._lock:
            if self.process is None or self._gone:
                return
            if os.name == "nt":
                subprocess.run(
                    ["taskkill", "/F", "/T", "/PID", str(self.process.pid)],
                    capture_output=True,
                    creationflags=subprocess.CREATE_NO_WINDOW,
                    check=False,
                )
            else:
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.killpg(self.process.pid, signal.SIGKILL)

    def end_and_remove(self):
        self.cancelled.set()
        self.end()
        if self.process is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(GRACE)
        self.result = None  # Windows removes no file that is mapped
        self.folder.remove()


def _drive(child, request, python, memory_limit, outbox):
    """The thread: writes the volumes, starts the child, passes its events on and says how it ended."""
    try:
        outcome = _converse(child, request, python, memory_limit, outbox)
        child.check()
    except Exception as error:
        if child.cancelled.is_set():
            outcome = Cancelled()
        elif isinstance(error, MedFusionError):
            outcome = error
        else:
            outcome = WorkerError(f"The job could not be started: {_Privacy(request)(repr(error))}")
    if outcome is not _DONE:
        child.end_and_remove()
    outbox.put(outcome)


def _converse(child, request, python, memory_limit, outbox):
    sweep()
    job = {"request": request, "memory_limit": memory_limit}
    Folder(child.folder.path).save("request", job, stop=child.check)
    process = child.launch(python)
    last_lines = deque(maxlen=LAST_LINES)
    # A crash ends with the names of all compiled modules, which tell nothing and fill a screen.
    said_aside = (line for line in process.stderr if not line.startswith("Extension modules:"))
    log = threading.Thread(target=last_lines.extend, args=(said_aside,), daemon=True)
    log.start()
    last_words = {"event": "none"}
    for line in process.stdout:
        said = _said(line)
        if said is None:
            last_lines.append(line)
        elif said["event"] == "progress":
            outbox.put(Event("progress", said["message"], fraction=said["fraction"]))
        elif said["event"] == "log":
            outbox.put(Event("log", said["message"], level=said["level"]))
        else:
            last_words = said
    child.join()
    log.join(GRACE)
    if not child.folder.path.exists():  # the child ends itself then
        raise WorkerError("The temporary folder was cleared away while the engine worked: run again.")
    return _verdict(last_words, process.returncode, "".join(last_lines), _Privacy(request))


def _said(line):
    """What the child says in a line, a dict; None for a launcher's own words, even a number, which is JSON too."""
    try:
        said = json.loads(line)
    except ValueError:
        return None
    return said if isinstance(said, dict) and "event" in said else None


def _verdict(last_words, code, log, private):
    """_DONE, or the error that ended the child."""
    if last_words["event"] == "result":
        return _DONE
    if last_words["event"] == "cancelled":
        return Cancelled()
    if last_words["event"] == "error":
        kind = getattr(errors, last_words["type"], None)
        if kind is not None:
            return kind(last_words["message"])
        what = f"The engine failed: {last_words['type']}: {private(last_words['message'])}."
    elif code == -getattr(signal, "SIGKILL", 9):
        what = "The engine was ended from outside, most likely because the machine ran out of memory."
    else:
        what = f"The engine crashed (exit code {code})."
    return WorkerError(f"{what} The scene is unchanged.\nIts last lines:\n{private(log)}" if log else what)


class _Privacy:
    """Takes what may name a patient out of a text: volumes' names, and paths but those of Python files."""

    def __init__(self, request):
        names = set()
        for source in request.sources:
            if isinstance(source, Volume):
                names.add(source.name)
            else:
                names |= {os.fspath(source), Path(source).name, Path(source).stem}
        # In messages a name may stand as Python writes it, with every backslash twice.
        names |= {repr(name)[1:-1] for name in names}
        ordered = sorted((re.escape(name) for name in names if name), key=len, reverse=True)
        self._names = re.compile(rf"(?<!\w)(?:{'|'.join(ordered)})(?!\w)") if ordered else None

    def __call__(self, text):
        if self._names:
            text = self._names.sub("<volume>", text)
        return re.sub(r"(?:[A-Za-z]:)?[\\/][^\s\"'“”:,;]*", _file_of_code, text)


def _file_of_code(match):
    name = re.split(r"[\\/]", match[0])[-1]
    return name if name.endswith(".py") else "<path>"


def _environment():
    """The child's environment: this one's, with MedFusion found and threads that wait without spinning."""
    environment = dict(os.environ)
    paths = [str(Path(__file__).resolve().parents[1]), *filter(None, [environment.get("PYTHONPATH")])]
    environment["PYTHONPATH"] = os.pathsep.join(paths)
    # No module may come from wherever Slicer was started; a crash in compiled code should say where.
    environment |= {"PYTHONSAFEPATH": "1", "PYTHONFAULTHANDLER": "1"}
    # Windows would have it write in an old alphabet: a name in it could not be told, and taken out.
    environment["PYTHONIOENCODING"] = "utf-8"
    # OpenMP threads that spin between two loops take the processor from Slicer's drawing and from each other.
    for name, value in (("OMP_WAIT_POLICY", "PASSIVE"), ("GOMP_SPINCOUNT", "0"), ("KMP_BLOCKTIME", "0")):
        environment.setdefault(name, value)
    return environment
