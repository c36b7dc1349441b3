"""Training: resumes to the same weights, runs in two processes, cancels, and its weights find their way back."""

import hashlib
import json
import os
import resource
import signal
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from MedFusionLib.errors import Cancelled, FileError, MethodError, WeightsError
from MedFusionLib.fusion import registry, weights
from MedFusionLib.fusion.networks.sesf_net import SESFNet
from MedFusionLib.fusion.training import checkpoint, trainer
from MedFusionLib.fusion.training.pairs import quality_loss

SHORT = "from dataclasses import replace; r = trainer.RECIPES; r['sesf'] = replace(r['sesf'], steps=3, size=2)"


@pytest.fixture
def data(tmp_path):
    """A small atlas: subject 7 is trained on, 28 held back."""
    random = np.random.default_rng(0)
    for subject in (7, 28):
        for kind in ("CT", "MRI"):
            folder = tmp_path / "atlas" / "CT-MRI" / kind
            folder.mkdir(parents=True, exist_ok=True)
            image = random.random((12, 12)).repeat(8, 0).repeat(8, 1)
            Image.fromarray(np.uint8(255 * image)).save(folder / f"{subject}001.png")
    return tmp_path / "atlas"


@pytest.fixture(autouse=True)
def short(monkeypatch):
    monkeypatch.setitem(trainer.RECIPES, "sesf", replace(trainer.RECIPES["sesf"], steps=3, size=2, rate=1e-3))


def test_a_resumed_training_ends_where_an_unbroken_one_does(data, tmp_path):
    whole = trainer.train("sesf", data, tmp_path / "whole", epochs=3, device="cpu")
    trainer.train("sesf", data, tmp_path / "parts", epochs=1, device="cpu")
    parts = trainer.train("sesf", data, tmp_path / "parts", epochs=3, device="cpu")
    first, second = load_file(whole.weights), load_file(parts.weights)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert whole.loss == pytest.approx(parts.loss)
    assert list(whole.scores) == ["CT-MRI"]
    assert "CT-MRI: 28" in whole.card.read_text()
    assert list((tmp_path / "whole" / "tensorboard" / "sesf").glob("events*"))


def test_training_lowers_the_loss(data, tmp_path):
    first = trainer.train("sesf", data, tmp_path, epochs=1, device="cpu")
    assert trainer.train("sesf", data, tmp_path, epochs=8, device="cpu").loss < 0.8 * first.loss


def test_cancelled_training_keeps_the_last_epoch(data, tmp_path):
    asked = iter(range(100))
    with pytest.raises(Cancelled):
        trainer.train("sesf", data, tmp_path, epochs=3, device="cpu", cancelled=lambda: next(asked) == 4)
    assert not (tmp_path / "sesf.safetensors").exists()
    assert torch.load(tmp_path / "sesf.checkpoint.pt", weights_only=True)["epochs"] == 1


@pytest.fixture
def stacks(data, monkeypatch):
    """The small atlas with nine slices to train on, and FW-Net's recipe cut short: one epoch, then two of stacks."""
    for kind in ("CT", "MRI"):
        folder = data / "CT-MRI" / kind
        for n in range(2, 10):
            Image.open(folder / "7001.png").rotate(7 * n).save(folder / f"700{n}.png")
    recipe = trainer.RECIPES["fwnet"]
    volumes = replace(recipe.volumes, epochs=2, steps=1)
    monkeypatch.setitem(trainer.RECIPES, "fwnet", replace(recipe, steps=1, size=1, volumes=volumes))
    return data


def test_the_layers_across_slices_learn_in_a_stage_of_their_own(stacks, tmp_path):
    whole = load_file(trainer.train("fwnet", stacks, tmp_path / "whole", epochs=1, device="cpu").weights)
    kept = []
    for ended in ("with the first stage", "within the second"):
        cancel = iter((False, True)).__next__
        with pytest.raises(Cancelled):
            trainer.train("fwnet", stacks, tmp_path / "parts", epochs=1, device="cpu", cancelled=cancel)
        kept.append(torch.load(tmp_path / "parts" / "fwnet.checkpoint.pt", weights_only=True))
        assert kept[-1]["epochs"] == len(kept), ended
    parts = trainer.train("fwnet", stacks, tmp_path / "parts", epochs=1, device="cpu")
    resumed = load_file(parts.weights)
    for name, value in whole.items():
        assert torch.equal(resumed[name], value), "as without a break"
        assert torch.equal(kept[0]["network"][name], value) != name.startswith("through"), name
    assert "CT-MRI, volume" in parts.card.read_text()


def test_volumes_are_not_learnt_from_single_slices(data, tmp_path):
    with pytest.raises(FileError, match="no subject has 8 slices"):
        trainer.train("fwnet", data, tmp_path, epochs=1, device="cpu")
    assert not (tmp_path / "fwnet.checkpoint.pt").exists()


def test_wrong_requests_are_refused(data, tmp_path):
    with pytest.raises(MethodError, match="siamese"):
        trainer.train("average", data)
    with pytest.raises(MethodError, match="0 epochs"):
        trainer.train("sesf", data, tmp_path, epochs=0)
    with pytest.raises(FileError, match="CT-MRI"):
        trainer.train("sesf", tmp_path / "nowhere", tmp_path)
    with pytest.raises(MethodError, match="sesf does not train by steps: give epochs"):
        trainer.train("sesf", data, tmp_path, steps=3)
    with pytest.raises(MethodError, match="medfusion does not train by epochs: give steps"):
        trainer.train("medfusion", data, tmp_path, epochs=3)
    with pytest.raises(MethodError, match="selector does not train by epochs: it is fitted in one go"):
        trainer.train("selector", data, tmp_path, epochs=3)
    with pytest.raises(MethodError, match="sesf is not cross-validated"):
        trainer.train("sesf", data, tmp_path, folds=2)


def test_data_that_cannot_be_split_is_refused_before_the_training(data, tmp_path):
    for kind in ("CT", "MRI"):
        (data / "CT-MRI" / kind / "28001.png").rename(data / "CT-MRI" / kind / "41001.png")
        (data / "CT-MRI" / kind / "7001.png").unlink()
    with pytest.raises(FileError, match=r"all subjects there are held back .*CT-MRI 41"):
        trainer.train("sesf", data, tmp_path, device="cpu")


@pytest.mark.parametrize("method", ["sesf", "rbm", "wavelet_cnn"])
@pytest.mark.parametrize(("image", "said"), [((20, 20), "too small"), ((128, 128), "next to nothing")])
def test_slices_that_nothing_can_be_learnt_of_are_told(method, image, said, data, tmp_path):
    """Black ones were drawn from for ever; of small ones the crops had no place."""
    for file in data.rglob("*.png"):
        Image.fromarray(np.zeros(image, np.uint8)).save(file)
    with pytest.raises(FileError, match=said):
        trainer.train(method, data, tmp_path, epochs=1, device="cpu")


def test_a_checkpoint_of_other_data_is_not_gone_on_from(data, tmp_path, caplog):
    trainer.train("sesf", data, tmp_path, epochs=1, device="cpu")
    for kind in ("CT", "MRI"):
        Image.fromarray(np.uint8(np.random.default_rng(5).integers(0, 256, (96, 96)))).save(
            data / "CT-MRI" / kind / "7001.png"
        )
    other = load_file(trainer.train("sesf", data, tmp_path, epochs=2, device="cpu").weights)
    assert "other data" in caplog.text
    afresh = load_file(trainer.train("sesf", data, tmp_path / "new", epochs=2, device="cpu").weights)
    assert all(torch.equal(other[name], afresh[name]) for name in other)


def test_a_checkpoint_of_another_version_is_not_gone_on_from(data, tmp_path, caplog, monkeypatch):
    trainer.train("sesf", data, tmp_path, epochs=1, device="cpu")
    monkeypatch.setitem(trainer.RECIPES, "sesf", replace(trainer.RECIPES["sesf"], network=lambda: SESFNet(8)))
    other = load_file(trainer.train("sesf", data, tmp_path, epochs=2, device="cpu").weights)
    assert "version" in caplog.text
    afresh = load_file(trainer.train("sesf", data, tmp_path / "new", epochs=2, device="cpu").weights)
    assert all(torch.equal(other[name], afresh[name]) for name in afresh)


def test_a_training_in_mixed_precision_resumes_with_its_loss_scale(data, tmp_path, monkeypatch):
    """A scale that is too large at first leaves steps out: a resumed training must not begin with it again."""
    scaler, recipe = torch.amp.GradScaler, trainer.RECIPES["sesf"]
    large = replace(recipe, loss=lambda *batch: 8 * recipe.loss(*batch))
    monkeypatch.setitem(trainer.RECIPES, "sesf", large)
    monkeypatch.setattr(torch.amp, "GradScaler", lambda enabled: scaler("cpu", init_scale=2.0**126))
    whole = trainer.train("sesf", data, tmp_path / "whole", epochs=6, device="cpu")
    trainer.train("sesf", data, tmp_path / "parts", epochs=3, device="cpu")
    parts = trainer.train("sesf", data, tmp_path / "parts", epochs=6, device="cpu")
    first, second = load_file(whole.weights), load_file(parts.weights)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_losses_are_exact_in_mixed_precision():
    torch.manual_seed(0)
    sources = 0.8 + 0.02 * torch.nn.functional.avg_pool2d(torch.rand(2, 2, 68, 68), 5, 1)
    fused = sources.mean(1, keepdim=True)
    exact = quality_loss(sources, fused)
    with torch.autocast("cpu", dtype=torch.float16):
        assert quality_loss(sources, fused) == exact


@pytest.mark.parametrize("what", ["checkpoint", "weights"])
def test_a_disk_that_is_full_leaves_what_was_there(what, data, tmp_path):
    """By the limit on a file's size, which root is held to as well."""
    trainer.train("sesf", data, tmp_path, epochs=1, device="cpu")
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir() if file.is_file()}
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(FileError, match=r"cannot be written.*free some space"):
            if what == "weights":
                weights.save("sesf.safetensors", SESFNet(), tmp_path)
            else:
                checkpoint.save({"network": SESFNet().state_dict()}, tmp_path / "sesf.checkpoint.pt")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir() if file.is_file()} == before


def test_methods_trained_into_one_folder_keep_apart(data, tmp_path, monkeypatch):
    monkeypatch.setitem(trainer.RECIPES, "siamese", replace(trainer.RECIPES["siamese"], steps=2, size=2))
    trainer.train("sesf", data, tmp_path, epochs=1, device="cpu")
    trainer.train("siamese", data, tmp_path, epochs=1, device="cpu")
    before = (tmp_path / "sesf.checkpoint.pt").read_bytes()
    trainer.train("sesf", data, tmp_path, epochs=1, device="cpu")
    assert (tmp_path / "sesf.checkpoint.pt").read_bytes() == before


def test_a_damaged_checkpoint_is_named(data, tmp_path):
    trainer.train("sesf", data, tmp_path, epochs=1, device="cpu")
    file = tmp_path / "sesf.checkpoint.pt"
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(FileError, match=r"sesf\.checkpoint\.pt is damaged"):
        trainer.train("sesf", data, tmp_path, epochs=2, device="cpu")
    for bytes_ in (b"\x80\x02.", b"a line of text\n", b"\x80\x02]b."):
        file.write_bytes(bytes_)
        with pytest.raises(FileError, match="damaged"):
            trainer.train("sesf", data, tmp_path, epochs=2, device="cpu")
    torch.save([1], file)
    with pytest.raises(FileError, match="damaged"):
        trainer.train("sesf", data, tmp_path, epochs=2, device="cpu")
    trainer.train("sesf", data, tmp_path, epochs=2, device="cpu", resume=False)


@pytest.mark.parametrize("method", ["sesf", "rbm"])
def test_two_processes_train_one_network(method, data, tmp_path):
    """A Boltzmann machine's visible bias has no part in its answer: not all of a network has a gradient."""
    short = "r['rbm'] = replace(r['rbm'], steps=3, size=2, pretrain=None)"
    script = tmp_path / "two.py"
    script.write_text(
        "import sys, torch, torch.distributed as dist\n"
        "from MedFusionLib.fusion.training import trainer\n"
        f"{SHORT}; {short}\n"
        f"result = trainer.train('{method}', sys.argv[1], sys.argv[2], epochs=2, device='cpu')\n"
        "print('none' if result is None else 'wrote', flush=True)\n"
    )
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    root = str(Path(__file__).resolve().parents[2])
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(script), str(data), str(tmp_path / "out")]
    running = [
        subprocess.Popen(
            command,
            env={**os.environ, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank), "PYTHONPATH": root},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    answers = [one.communicate(timeout=200) for one in running]
    assert [one.returncode for one in running] == [0, 0], answers
    assert [said.strip().splitlines()[-1] for said, _ in answers] == ["wrote", "none"]
    together = load_file(tmp_path / "out" / f"{method}.safetensors")
    if method == "rbm":
        assert any(value.any() for value in together.values())
        return
    alone = load_file(trainer.train("sesf", data, tmp_path / "alone", epochs=2, device="cpu").weights)
    # The second process brought other examples, so its gradients must show.
    assert any(not torch.equal(together[name], alone[name]) for name in alone)


def test_own_weights_appear_after_their_checks(data, tmp_path, monkeypatch):
    monkeypatch.setenv("MEDFUSION_WEIGHTS", str(tmp_path / "own"))
    trainer.train("sesf", data, tmp_path / "own", epochs=1, device="cpu")
    assert registry.find("sesf-own").licence == "the user's"
    sources = torch.rand(1, 2, 24, 24)
    with torch.inference_mode():
        mine, _ = registry.load("sesf-own", torch.device("cpu"))(sources, ("CT", "MR"))
    assert mine.shape == (1, 24, 24)
    assert registry.weights_hash(registry.find("sesf-own")) != registry.weights_hash(registry.find("sesf"))


@pytest.mark.parametrize("harm", ["bytes", "network", "name", "none", "list", "nested", "header"])
def test_own_weights_that_fail_a_check_do_not_appear(harm, tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("MEDFUSION_WEIGHTS", str(tmp_path))
    name = "other-own.safetensors" if harm == "name" else "sesf-mine.safetensors"
    weights.save(name, SESFNet(8 if harm == "network" else 16), tmp_path)
    if harm == "bytes":
        file = tmp_path / name
        file.write_bytes(file.read_bytes()[:-1] + b"\x01")
    if harm == "none":
        (tmp_path / "checksums.json").unlink()
    if harm in ("list", "nested"):
        (tmp_path / "checksums.json").write_text("[1]" if harm == "list" else "[" * 100_000)
    if harm == "header":
        nested = b"[" * 100_000
        (tmp_path / name).write_bytes(len(nested).to_bytes(8, "little") + nested)
        digest = hashlib.sha256((tmp_path / name).read_bytes()).hexdigest()
        (tmp_path / "checksums.json").write_text(json.dumps({name: digest}))
    assert not any("mine" in known or "other" in known for known in registry.methods())
    assert name in caplog.text
    caplog.clear()
    registry.methods()
    assert not caplog.text, "the panel asks at every move of a slider"


def test_own_weights_that_are_called_alike_are_told(tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("MEDFUSION_WEIGHTS", str(tmp_path))
    for name in ("sesf.safetensors", "sesf-own.safetensors"):
        weights.save(name, SESFNet(), tmp_path)
    assert registry.find("sesf-own").weights == str(tmp_path / "sesf.safetensors")
    assert "sesf-own.safetensors is sesf-own as another file" in caplog.text


def test_own_weights_in_a_folder_named_from_here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MEDFUSION_WEIGHTS", "mine")
    weights.save("sesf.safetensors", SESFNet(), "mine")
    registry.load("sesf-own", torch.device("cpu"))


@pytest.mark.parametrize("harm", ["short", "nan"])
def test_own_weights_that_cannot_be_run_are_refused(harm, tmp_path, monkeypatch):
    monkeypatch.setenv("MEDFUSION_WEIGHTS", str(tmp_path))
    network = SESFNet()
    if harm == "nan":
        network.enter.conv[0].bias.data.fill_(torch.nan)
    weights.save("sesf.safetensors", network, tmp_path)
    if harm == "short":
        file = tmp_path / "sesf.safetensors"
        file.write_bytes(file.read_bytes()[:-4])
        digest = hashlib.sha256(file.read_bytes()).hexdigest()
        (tmp_path / "checksums.json").write_text(json.dumps({file.name: digest}))
    with pytest.raises(WeightsError, match="NaN" if harm == "nan" else "do not fit"):
        registry.load("sesf-own", torch.device("cpu"))


def test_weights_are_saved_beside_checksums_that_cannot_be_read(tmp_path):
    (tmp_path / "checksums.json").write_text('{"half')
    weights.save("sesf.safetensors", SESFNet(), tmp_path)
    assert weights.checksum(tmp_path / "sesf.safetensors")


def test_a_folder_of_own_weights_that_cannot_be_looked_into_is_empty(monkeypatch):
    """As the home folder of somebody else is, in a container; here a name that the system refuses, for root too."""
    known = set(registry.methods())
    monkeypatch.setenv("MEDFUSION_WEIGHTS", "x" * 5000)
    assert set(registry.methods()) == known


def test_a_file_that_is_no_weights_is_refused(tmp_path):
    file = tmp_path / "x.safetensors"
    file.write_bytes(b"\xff" * 64)
    with pytest.raises(WeightsError, match=r"not a \.safetensors"):
        weights.shapes(file)


def test_shipped_weights_have_their_recorded_checksums():
    known = json.loads(weights.CHECKSUMS.read_text())
    for method in registry.methods().values():
        if method.weights:
            assert known[method.weights] == registry.weights_hash(method)
            assert weights.path(method.weights).stat().st_size < 5e6
