"""Code for GPUs, on a device that has memory of its own as they have and refuses what they refuse: no GPU is needed."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
import torch

from MedFusionLib.device import is_out_of_memory, run_on

SCRIPT = Path(__file__).parents[1] / "Device" / "pretend.py"


@pytest.mark.timeout(900)
def test_everything_runs_on_a_device_with_memory_of_its_own(tmp_path):
    """Registration, every fusion method and every training step, with the CPU's results."""
    pytest.importorskip("nilearn", reason="the phantom needs nilearn: pip install .[test]")
    if not shutil.which(os.environ.get("CXX", "c++")):
        pytest.skip("no C++ compiler to build the device with")
    if not Path(sysconfig.get_path("include"), "Python.h").is_file():
        pytest.skip("no headers of Python to build the device with (python3-dev on Debian)")
    # ninja lies beside the interpreter.
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    done = subprocess.run(
        [sys.executable, SCRIPT, tmp_path], capture_output=True, text=True, env=os.environ | {"PATH": path}
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout)
    assert {name: wrong for name, wrong in found.items() if wrong} == {}
    assert {"rigid", "deformable", "medfusion, volume", "selector, slice", "train fwnet"} <= set(found)
    assert done.stderr.count("pretend ran out of memory: the CPU takes over.") == 2


@pytest.mark.parametrize(
    ("error", "short"),
    (
        (MemoryError(), True),
        (torch.OutOfMemoryError("CUDA out of memory."), True),
        (RuntimeError("MPS backend out of memory"), True),
        (OSError("[Errno 12] Cannot allocate memory"), True),
        (RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 31850496000 bytes."), True),
        (OSError("[WinError 1455] The paging file is too small for this operation to complete."), True),
        (ImportError("libtorch_cpu.so: failed to map segment from shared object"), True),
        (ImportError("libtorch_cpu.so: cannot map zero-fill pages"), True),
        (RuntimeError("std::bad_alloc"), True),
        (RuntimeError("expected all tensors to be on the same device"), False),
        (ImportError("No module named 'torch'"), False),
    ),
)
def test_want_of_memory_is_told_from_other_errors(error, short):
    assert is_out_of_memory(error) == short


@pytest.mark.parametrize(
    ("kind", "error", "hands_over"),
    (
        ("mps", NotImplementedError("The operator 'aten::grid_sampler_3d' is not currently implemented"), True),
        ("mps", TypeError("Cannot convert a MPS Tensor to float64 dtype"), True),
        ("mps", RuntimeError("MPS does not support cumsum op with int64 input"), True),
        ("mps", RuntimeError("expected all tensors to be on the same device"), False),
        ("cuda", RuntimeError("MPS does not support cumsum op with int64 input"), False),
        ("cuda", torch.OutOfMemoryError("CUDA out of memory."), True),
        ("cpu", MemoryError(), False),
    ),
)
def test_the_cpu_takes_over_what_a_device_cannot_do(kind, error, hands_over):
    def work(device):
        if device.type == kind:
            raise error
        return device.type

    if hands_over:
        assert run_on(torch.device(kind), work) == "cpu"
    else:
        with pytest.raises(type(error)):
            run_on(torch.device(kind), work)
