"""Real child processes: what they return, how they are stopped, and that they leave nothing behind."""

import ctypes
import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
from pathlib import Path, PureWindowsPath

import numpy as np
import pytest

import MedFusionLib as mf
from MedFusionLib import exchange, pipeline, private_folder, worker
from MedFusionLib.errors import Cancelled, DeviceError, FileError, InstallError, MethodError, VolumeError, WorkerError

ROOT = Path(__file__).resolve().parents[2]
posix = pytest.mark.skipif(os.name == "nt", reason="signals of Linux and macOS")
linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


@pytest.fixture(autouse=True)
def temporary(tmp_path, monkeypatch):
    """The temporary folder of the test and its children; no worker may leave anything in it."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    yield tmp_path
    assert leftovers(tmp_path) == []


def leftovers(folder):
    return [path.name for path in Path(folder).glob(private_folder.PREFIX + "*")]


def volume(modality, seed, shape=(12, 20, 18), name=""):
    """Smooth noise that differs between seeds."""
    generator = np.random.default_rng(seed)
    coarse = generator.random([n // 2 for n in shape], np.float32)
    array = np.kron(coarse, np.ones((2, 2, 2), np.float32))
    scale = {"CT": (2000, -1000), "PT": (8, 0), "MR": (900, 0)}[modality]
    return mf.Volume(array * scale[0] + scale[1], np.diag([2, 2, 3, 1.0]), modality, name=name)


def quick(**changes):
    """A request that takes the child a moment."""
    sources = (volume("CT", 1), volume("PT", 2))
    plain = {"registration": "none", "method": "average", "device": "cpu", "evaluate": False}
    return pipeline.Request(**({"sources": sources} | plain | changes))


def endless():
    """A request that keeps the child busy for longer than any test waits."""
    sources = (volume("CT", 1, (160, 256, 256)), volume("MR", 2, (160, 256, 256)))
    return pipeline.Request(sources, registration="deformable", device="cpu", method="average")


def until(condition, seconds=60):
    """Whether a condition comes true in time."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.02)
    return True


def is_running(pid):
    """Whether a process runs, a zombie does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def working(job):
    """Wait until the child computes: torch is loaded and registration has begun."""
    assert until(lambda: any((event.fraction or 0) >= 0.05 for event in job.poll()) or job.state != "running")
    assert job.state == "running", job.result()


@pytest.fixture
def launcher(tmp_path):
    """An interpreter that is a launcher, as PythonSlicer is: it starts Python as a child and waits for it."""
    path = tmp_path / "PythonLauncher"
    path.write_text(f'#!/bin/sh\necho "Starting Python"\n"{sys.executable}" "$@" </dev/null\nexit $?\n')
    path.chmod(0o755)
    return str(path)


def test_the_result_is_the_pipelines_own(temporary):
    request = quick(registration="rigid")
    here = pipeline.run(request)
    with worker.start(request) as job:
        assert job.state == "running"
        there = job.result()
        assert job.state == "done"
        assert np.array_equal(there.fusion.volume.array, here.fusion.volume.array)
        assert np.array_equal(there.rgb.array, here.rgb.array)
        assert all(np.array_equal(a.array, b.array) for a, b in zip(there.sources, here.sources, strict=True))
        assert there.fusion.volume.attributes == here.fusion.volume.attributes
        assert there.scores == pytest.approx(here.scores, nan_ok=True)
        assert there.messages == here.messages
        assert there.registrations[0] is None
        assert np.array_equal(there.registrations[1].matrix, here.registrations[1].matrix)
        assert there.registrations[1].quality.verdict == here.registrations[1].quality.verdict
        again = there.registrations[1].resample(request.sources[1])
        assert np.array_equal(again.array, here.sources[1].array)
        if os.name != "nt":
            assert job.folder.stat().st_mode & 0o777 == 0o700


def test_events_come_in_order_and_before_the_end():
    with worker.start(quick()) as job:
        events = []
        while job.state == "running":
            events += job.poll()
            time.sleep(0.01)
        assert job.poll() == []
        fractions = [event.fraction for event in events if event.kind == "progress"]
        assert fractions == sorted(fractions)
        assert (fractions[0], fractions[-1], events[-1].message) == (0.0, 1.0, "Done")


def test_waiting_keeps_the_events():
    with worker.start(quick()) as job:
        assert job.wait(60)
        assert [event.message for event in job.poll()][-1] == "Done"


@linux
def test_a_main_thread_that_keeps_the_interpreter_lock_holds_nothing_up():
    """Slicer's event loop sleeps with the lock held: the threads live on what `poll` gives them."""
    hold = ctypes.PyDLL(None).usleep
    with worker.start(quick()) as job:
        rounds = 0
        while job.state == "running":
            hold(20_000)
            job.poll()
            rounds += 1
            assert rounds < 3000
        assert job.state == "done"
    with worker.start(endless()) as job:
        while not any(event.kind == "progress" for event in job.poll()):
            hold(20_000)
        job.cancel()
        for _ in range(100):
            hold(20_000)
            job.poll()
        assert job.state == "cancelled"


def test_paths_are_sources_too(tmp_path):
    paths = []
    for source in quick().sources:
        paths.append(tmp_path / f"{source.modality}.nrrd")
        mf.write_volume(source, paths[-1])
    with worker.start(quick(sources=tuple(paths), coloring=None)) as job:
        assert job.result().fusion.volume.array.shape == (12, 20, 18)


def test_the_childs_error_is_raised_here():
    flat = volume("MR", 1).with_array(np.ones((12, 20, 18), np.float32), name="flat")
    with worker.start(quick(sources=(volume("CT", 1), flat))) as job:
        with pytest.raises(VolumeError, match="“flat” is constant"):
            job.result()
        assert job.state == "failed"
    with worker.start(quick(method="magic")) as job, pytest.raises(MethodError, match="'magic' is not a fusion method"):
        job.result()


def test_an_unforeseen_error_names_no_patient():
    sources = (volume("CT", 1, name="Jane Roe CT"), volume("MR", 2, name="Jane Roe MR"))
    request = quick(sources=sources, registration="rigid", register_options={"levels": ("Jane Roe MR",)})
    with worker.start(request) as job, pytest.raises(WorkerError, match="TypeError") as caught:
        job.result()
    assert "Jane Roe" not in str(caught.value)
    assert str(ROOT) not in str(caught.value)
    assert 'File "pipeline.py", line' in str(caught.value)


@posix
def test_a_crash_of_the_child_is_an_error_and_leaves_nothing(temporary):
    with worker.start(endless()) as job:
        working(job)
        os.kill(job.pid, signal.SIGSEGV)
        with pytest.raises(WorkerError, match=r"crashed \(exit code -11\)") as caught:
            job.result()
        assert 'File "worker_child.py"' in str(caught.value)
        assert "Extension modules" not in str(caught.value)
        assert leftovers(temporary) == []


@posix
def test_a_killed_child_is_an_error_that_speaks_of_memory(temporary):
    with worker.start(endless()) as job:
        working(job)
        os.kill(job.pid, signal.SIGKILL)
        with pytest.raises(WorkerError, match="ran out of memory"):
            job.result()
        assert leftovers(temporary) == []


def test_cancel_while_working(temporary):
    with worker.start(endless()) as job:
        working(job)
        pid = job.pid
        job.cancel()
        assert job.wait(10)
        assert job.state == "cancelled"
        assert leftovers(temporary) == []
        assert not is_running(pid)
        with pytest.raises(Cancelled):
            job.result()


def test_cancel_at_once_starts_no_child(temporary):
    with worker.start(endless()) as job:
        job.cancel()
        assert job.wait(10)
        assert job.state == "cancelled"
        assert leftovers(temporary) == []


def test_cancel_after_the_work_was_done_and_before_anybody_looked(temporary):
    others = {thread.ident for thread in threading.enumerate()}
    with worker.start(quick()) as job:
        assert until(
            lambda: not any(t.name == "MedFusion worker" and t.ident not in others for t in threading.enumerate())
        )
        assert job.state == "running"
        job.cancel()
        job.poll()
        assert job.state == "cancelled"
        assert leftovers(temporary) == []
        with pytest.raises(Cancelled):
            job.result()


def test_a_soft_cancel_ends_the_child_by_itself(temporary, monkeypatch):
    monkeypatch.setattr(worker, "GRACE", 600)
    with worker.start(endless()) as job:
        working(job)
        job.cancel()
        assert job.wait(120)
        assert (job.state, job._child.process.returncode) == ("cancelled", 0)
        monkeypatch.undo()


@posix
def test_a_child_that_does_not_listen_is_ended(temporary):
    with worker.start(endless()) as job:
        working(job)
        os.kill(job.pid, signal.SIGSTOP)
        job.cancel()
        assert job.wait(10)
        assert (job.state, job._child.process.returncode) == ("cancelled", -signal.SIGKILL)


@linux
def test_a_launcher_is_ended_with_its_child(launcher, temporary):
    with worker.start(endless(), python=launcher) as job:
        working(job)
        family = [pid for pid in map(int, filter(str.isdigit, os.listdir("/proc"))) if group(pid) == job.pid]
        assert len(family) >= 2
        for pid in family:
            os.kill(pid, signal.SIGSTOP)
        job.cancel()
        assert job.wait(10)
        assert until(lambda: not any(map(is_running, family)))


def group(pid):
    try:
        return os.getpgid(pid)
    except ProcessLookupError:
        return None


@posix
def test_a_launcher_works_like_the_interpreter(launcher):
    with worker.start(quick(), python=launcher) as job:
        assert job.result().fusion.volume.array.shape == (12, 20, 18)


@posix
@pytest.mark.parametrize("words", ["5", "null", "[1]", '"ready"', '{"launcher": 1}', "NaN"])
def test_a_launchers_own_words_may_be_json(tmp_path, words):
    path = tmp_path / "PythonLauncher"
    path.write_text(f'#!/bin/sh\necho \'{words}\'\nexec "{sys.executable}" "$@"\n')
    path.chmod(0o755)
    with worker.start(quick(coloring=None), python=str(path)) as job:
        assert job.result().fusion.volume.array.shape == (12, 20, 18)


def test_a_result_that_was_cleared_away_is_told():
    with worker.start(quick()) as job:
        assert job.wait(60)
        shutil.rmtree(job.folder)
        with pytest.raises(WorkerError, match="cannot be read from the temporary folder"):
            job.result()


def test_a_missing_interpreter_is_named():
    with worker.start(quick(), python="/nowhere/PythonSlicer") as job, pytest.raises(WorkerError, match="PythonSlicer"):
        job.result()


def test_closing_ends_a_running_job(temporary):
    job = worker.start(endless())
    working(job)
    pid = job.pid
    job.close()
    assert leftovers(temporary) == []
    assert until(lambda: not is_running(pid))
    assert until(lambda: job.poll() is not None and job.state == "cancelled")


def test_a_closed_job_has_no_result():
    with worker.start(quick()) as job:
        assert job.wait(60)
    with pytest.raises(WorkerError, match="closed"):
        job.result()


@linux
@pytest.mark.parametrize("forgotten", [False, True])
def test_what_ends_a_job_lets_go_of_its_files_first(forgotten):
    """Windows removes no file that is mapped."""
    shape = (32, 128, 128)
    job = worker.start(quick(sources=(volume("CT", 1, shape), volume("PT", 2, shape))))
    job.result()
    folder, seen = job.folder, []

    def remove(clear=job._folder.remove):
        seen.append(maps_of("self", folder))
        clear()

    assert maps_of("self", folder)
    job._folder.remove = remove
    if forgotten:
        del job
    else:
        job.close()
    assert seen == [0]


def maps_of(pid, folder):
    """Count of the maps that a process has of files in a folder."""
    return Path(f"/proc/{pid}/maps").read_text().count(f"{folder}/")


@linux
def test_a_child_on_windows_maps_nothing(tmp_path):
    """Its owner gone, it could not clear away what it maps itself."""
    stand_in = tmp_path / "windows.py"
    stand_in.write_text(
        "import os, sys\nfrom MedFusionLib import worker_child\n"
        "class Windows:\n    name = 'nt'\n    __getattr__ = lambda self, name: getattr(os, name)\n"
        "worker_child.os = Windows()\nworker_child.main(sys.argv[-1])\n"
    )
    path = tmp_path / "PythonLauncher"
    path.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{stand_in}" "$@"\n')
    path.chmod(0o755)
    with worker.start(endless()) as job:
        working(job)
        assert maps_of(job.pid, job.folder)
    with worker.start(endless(), python=str(path)) as job:
        working(job)
        assert not maps_of(job.pid, job.folder)


@posix
def test_letters_of_an_old_alphabet_name_no_patient(tmp_path, monkeypatch):
    """In which Python writes to pipes on Windows."""
    monkeypatch.setenv("PYTHONIOENCODING", "cp1252")
    says = "import sys; sys.exit('Jörg Wałęsa is no scan')"
    path = tmp_path / "PythonLauncher"
    path.write_text(f'#!/bin/sh\nexec "{sys.executable}" -c "{says}"\n', encoding="utf-8")
    path.chmod(0o755)
    request = quick(sources=(volume("CT", 1, name="Jörg Wałęsa"), volume("MR", 2)))
    with worker.start(request, python=str(path)) as job, pytest.raises(WorkerError, match=r"\n<volume> is no scan"):
        job.result()


def test_a_torch_that_cannot_be_loaded_says_what_to_install(tmp_path, monkeypatch):
    """As Windows tells of its own runtime that is missing or old."""
    (tmp_path / "torch").mkdir()
    said = r'[WinError 1114] A routine failed. Error loading "C:\Users\Jane\lib\c10.dll" or one of its dependencies.'
    (tmp_path / "torch" / "__init__.py").write_text(f"raise OSError({said!r})\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with worker.start(quick(registration="rigid")) as job:
        with pytest.raises(InstallError, match=r"cannot be loaded \(c10\.dll\): on Windows install .* Redistributable"):
            job.result()
        assert job.state == "failed"


def test_paths_of_windows_name_no_patient():
    scan = PureWindowsPath(r"D:\Scans of May\Jane Roe\ct.nii")
    private = worker._Privacy(pipeline.Request((scan, volume("MR", 2))))
    for said in (f"OSError: {str(scan)!r}", f"OSError: {scan}"):
        assert private(said).replace("'", "") == "OSError: <volume>"


PARENT = """
import os, sys, time
sys.path[:0] = [{root!r}, {tests!r}]
import test_worker
from MedFusionLib import worker
if __name__ == "__main__":
    job = worker.start(test_worker.endless())
    test_worker.working(job)
    print(job.pid, job.folder, flush=True)
    {end}
"""


def parent(end):
    """Another process that starts a job; (process, pid of the child, folder)."""
    code = PARENT.format(root=str(ROOT), tests=str(Path(__file__).parent), end=end)
    process = subprocess.Popen([sys.executable, "-c", textwrap.dedent(code)], stdout=subprocess.PIPE, text=True)
    pid, _, folder = process.stdout.readline().partition(" ")
    return process, int(pid), Path(folder.strip())


@linux
def test_a_folder_that_is_cleared_away_while_the_child_works_is_told():
    with worker.start(endless()) as job:
        working(job)
        shutil.rmtree(job.folder)
        with pytest.raises(WorkerError, match="folder was cleared away while the engine worked"):
            job.result()
        assert not is_running(job.pid)


@linux
def test_a_killed_parent_takes_the_child_and_its_files_along():
    process, pid, folder = parent("time.sleep(600)")
    assert folder.is_dir()
    assert is_running(pid)
    process.kill()
    process.wait()
    assert until(lambda: not is_running(pid))
    assert not folder.exists()


@linux
def test_a_parent_that_ends_takes_the_child_and_its_files_along():
    process, pid, folder = parent("sys.exit(0)")
    assert process.wait(30) == 0
    assert until(lambda: not is_running(pid))
    assert not folder.exists()


def test_a_disk_without_locks_is_told_and_nothing_is_left(temporary, monkeypatch):
    """As some network folders are."""

    def refuse(file):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(private_folder, "_lock", refuse)
    with pytest.raises(FileError, match=r"no temporary folder can be made \(No locks available\): set TMPDIR"):
        worker.start(quick())
    assert leftovers(temporary) == []


def test_what_a_dead_machine_left_is_swept_and_nothing_else(temporary):
    code = (
        f"import sys, os; sys.path[:0] = [{str(ROOT)!r}]\n"
        "from MedFusionLib.private_folder import PrivateFolder\n"
        "folder = PrivateFolder(); (folder.path / '0.npy').write_bytes(b'x' * 1000)\n"
        "print(folder.path, flush=True); os._exit(0)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    stale = Path(done.stdout.strip())
    fresh = private_folder.PrivateFolder()
    assert stale.is_dir()
    private_folder.sweep()
    assert stale.is_dir()  # it might be one that is being made
    for folder in (stale, fresh.path):
        os.utime(folder, (0, 0))
    private_folder.sweep()
    assert not stale.exists()
    assert fresh.path.is_dir()
    fresh.remove()


def test_folders_of_like_names_are_not_swept(temporary):
    """As archives unpack to and people call their results."""
    for name in ("MedFusion-main", "MedFusion-results"):
        (temporary / name / "in").mkdir(parents=True)
        (temporary / name / "fused.nrrd").write_bytes(b"x")
        os.utime(temporary / name, (0, 0))
    private_folder.sweep()
    assert len(list(temporary.glob("*/fused.nrrd"))) == 2
    for name in leftovers(temporary):
        shutil.rmtree(temporary / name)


def test_what_cannot_be_removed_yet_is_swept_later(temporary, monkeypatch):
    """On Windows a file that is open or mapped."""
    folder = private_folder.PrivateFolder()
    for name in ("0.npy", "1.npy"):
        (folder.path / name).write_bytes(b"x")
    unlink = os.unlink

    def refuse(path, **options):
        if str(path).endswith("1.npy"):
            raise PermissionError(errno.EACCES, "is being used by another process", path)
        unlink(path, **options)

    monkeypatch.setattr(os, "unlink", refuse)
    folder.remove()
    assert sorted(path.name for path in folder.path.iterdir()) == ["1.npy", private_folder.LOCK]
    monkeypatch.undo()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    os.utime(folder.path, (0, 0))
    private_folder.sweep()
    assert not folder.path.exists()


@linux
@pytest.mark.parametrize("megabytes", [1, 2], ids=["inputs", "outputs"])
def test_a_full_disk_is_told_and_nothing_is_left(tmp_path, megabytes):
    """Volumes of 1 MB and outputs of 2 MB, on a small file system of its own, in a user namespace."""
    small = tmp_path / "small"
    small.mkdir()
    code = f"""
import os, sys, tempfile
sys.path[:0] = [{str(ROOT)!r}, {str(Path(__file__).parent)!r}]
tempfile.tempdir = {str(small)!r}
import test_worker
from MedFusionLib import worker
shape = (32, 64, 64)
sources = (test_worker.volume("CT", 1, shape), test_worker.volume("PT", 2, shape))
job = worker.start(test_worker.quick(sources=sources))
try:
    job.result()
except Exception as error:
    print(type(error).__name__, error, os.listdir({str(small)!r}))
"""
    script = tmp_path / "full.py"
    script.write_text(code)
    shell = f"mount -t tmpfs -o size={megabytes}m tmpfs '{small}' && '{sys.executable}' '{script}'"
    done = subprocess.run(["unshare", "-rm", "sh", "-c", shell], capture_output=True, text=True, check=False)
    if "FileError" not in done.stdout and ("unshare" in done.stderr or "mount" in done.stderr):
        pytest.skip(f"this machine lets no test mount a small disk: {done.stderr.strip()}")
    assert "FileError the temporary folder cannot take the volumes (No space left on device)" in done.stdout
    assert done.stdout.rstrip().endswith("[]")


@linux
def test_a_memory_limit_ends_in_an_error_of_the_device():
    sources = (volume("CT", 1, (128, 512, 512)), volume("MR", 2, (128, 512, 512)))
    # Enough to load torch with, whose import fails in other words, and too little to fuse with.
    limit = 700 * 2**20
    with worker.start(quick(sources=sources), memory_limit=limit) as job, pytest.raises(DeviceError, match="memory"):
        job.result()


@linux
def test_the_childs_environment_is_its_own():
    before = dict(os.environ)
    with worker.start(endless()) as job:
        working(job)
        theirs = Path(f"/proc/{job.pid}/environ").read_bytes().split(b"\0")
        assert b"OMP_WAIT_POLICY=PASSIVE" in theirs
        assert dict(os.environ) == before


@linux
def test_the_parent_needs_no_more_than_outputs_and_a_copy_of_the_inputs():
    """Peak of the parent's own memory (file maps included) over a job, and no torch in it."""
    code = f"""
import json, sys
sys.path[:0] = [{str(ROOT)!r}, {str(Path(__file__).parent)!r}]
import test_worker
from MedFusionLib import worker

def memory(field):
    return next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith(field))

shape = (96, 256, 256)
request = test_worker.quick(
    sources=(test_worker.volume("CT", 1, shape), test_worker.volume("PT", 2, shape)), evaluate=False)
open("/proc/self/clear_refs", "w").write("5")
before = memory("VmRSS")
with worker.start(request) as job:
    result = job.result()
    volumes = [result.fusion.volume, result.rgb, *result.sources, *(result.fusion.weights or ())]
    sums = [float(volume.array.sum(dtype=float)) for volume in volumes]
    outputs = sum(volume.array.nbytes for volume in volumes)
    peak = memory("VmHWM")
inputs = sum(source.array.nbytes for source in request.sources)
print(json.dumps([peak - before, inputs, outputs, "torch" in sys.modules]))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    grown, inputs, outputs, torch = json.loads(done.stdout)
    assert grown <= inputs + outputs
    assert not torch


@pytest.mark.parametrize(
    "array",
    [
        np.arange(24, dtype=np.int16).reshape(2, 3, 4),
        np.arange(24.0).reshape(2, 3, 4)[:, ::2, ::-1],
        np.asfortranarray(np.arange(24, dtype=np.float32).reshape(2, 3, 4)),
        np.arange(6, dtype=">i4"),
        np.arange(6)[::2],
        np.array(3.5),
        np.zeros((2**18, 3)),
    ],
    ids=["plain", "strided", "fortran", "big-endian", "thin", "scalar", "mapped"],
)
def test_arrays_travel_unchanged(tmp_path, array):
    exchange.Folder(tmp_path).save("value", {"array": array, "twice": [array, array]})
    back = exchange.Folder(tmp_path).load("value")
    assert np.array_equal(back["array"], array)
    assert back["array"].dtype == array.dtype
    assert len(list(tmp_path.glob("*.npy"))) == 1


def test_what_cannot_travel_is_refused(tmp_path):
    with pytest.raises(MethodError, match="a Popen cannot be handed"):
        exchange.Folder(tmp_path).save("value", [subprocess.Popen.__new__(subprocess.Popen)])


def test_a_folder_that_is_gone_is_a_file_error(tmp_path):
    with pytest.raises(FileError, match="temporary folder"):
        exchange.Folder(tmp_path / "gone").save("value", np.ones(3))
