# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""Checkpoints whole, wrapped, broken and hostile."""

import argparse
import io
import json
import os
import pickle
import tarfile
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from factories import same, small_network, write_onnx
from safetensors.torch import save_file
from torch import Tensor, nn

from lmr_guard.errors import InputError
from lmr_guard.received.checkpoint import read_weights


class Exploit:
    """What an attacker puts into a pickle: it runs a command when it is read."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, (self.command,)


def test_both_formats_give_the_same_weights(tmp_path: Path) -> None:
    weights = small_network().state_dict()
    torch.save(weights, tmp_path / "new.pt")
    torch.save(weights, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    save_file(weights, tmp_path / "a.safetensors")
    (tmp_path / "renamed.bin").write_bytes((tmp_path / "a.safetensors").read_bytes())
    for name in ("new.pt", "old.pth", "a.safetensors", "renamed.bin"):
        assert same(read_weights(tmp_path / name), weights), name


@pytest.mark.parametrize(
    "wrap",
    [
        lambda w: {"state_dict": w, "epoch": 3},
        lambda w: {"model": w, "optimizer": {"lr": 0.1}},
        lambda w: {"net": w, "acc": 91.5},
        lambda w: {"model": {"state_dict": w}},
        lambda w: {"model_state_dict": w, "optimizer_state_dict": {}, "epoch": 3},
        lambda w: {"model_ema": {f"module.{name}": value for name, value in w.items()}},
        lambda w: {f"module.{name}": value for name, value in w.items()},
        lambda w: {f"_orig_mod.{name}": value for name, value in w.items()},
        lambda w: {f"module._orig_mod.{name}": value for name, value in w.items()},
        lambda w: {"net": {f"_orig_mod.module.{name}": value for name, value in w.items()}},
        lambda w: {"epoch": 3, "weights": w},
        lambda w: {"epoch": 3, "best": {"params": w, "score": 0.5}, "optimizer": {"state": {}}},
    ],
)
def test_wrappers_and_prefixes_are_peeled_off(
    tmp_path: Path, wrap: Callable[[dict[str, Tensor]], object]
) -> None:
    weights = small_network().state_dict()
    torch.save(wrap(weights), tmp_path / "a.pt")
    assert same(read_weights(tmp_path / "a.pt"), weights)


@pytest.mark.parametrize("averaged", ["state_dict_ema", "model_ema"])
@pytest.mark.parametrize("name", ["state_dict", "model"])
def test_which_of_plain_and_averaged_weights_is_meant_is_asked(
    tmp_path: Path, name: str, averaged: str
) -> None:
    weights = small_network().state_dict()
    torch.save({name: weights, averaged: weights}, tmp_path / "a.pt")
    told = f"expected one state dict, got {name} and {averaged}; keep the one that is meant"
    with pytest.raises(InputError, match=told):
        read_weights(tmp_path / "a.pt")


def test_other_prefixes_are_peeled_off_where_the_caller_says_so(tmp_path: Path) -> None:
    weights = small_network().state_dict()
    for prefix in ("model.", "module.model.", "model.module.", "model.net._orig_mod."):
        save_file({f"{prefix}{n}": w for n, w in weights.items()}, tmp_path / "a.safetensors")
        assert not same(read_weights(tmp_path / "a.safetensors"), weights)
        assert same(read_weights(tmp_path / "a.safetensors", also=("model.", "net.")), weights)


def write_pickled_module(path: Path) -> None:
    torch.save(small_network(), path)


def write_script(path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.script(small_network()).save(str(path))


def write_exported(path: Path) -> None:
    program = torch.export.export(nn.Linear(2, 2).eval(), (torch.zeros(2, 2),))
    torch.export.save(program, path.with_suffix(".pt2"))
    path.with_suffix(".pt2").rename(path)


def write_tar(path: Path) -> None:
    with tarfile.open(path, "w") as archive:
        member = tarfile.TarInfo("storages")
        member.size = 4
        archive.addfile(member, io.BytesIO(b"\0" * 4))


def write_half(path: Path) -> None:
    torch.save(small_network().state_dict(), path)
    path.write_bytes(path.read_bytes()[:-1000])


def write_half_of_the_old_format(path: Path) -> None:
    torch.save(small_network().state_dict(), path, _use_new_zipfile_serialization=False)
    path.write_bytes(path.read_bytes()[:-40])


def write_expanded(path: Path) -> None:
    torch.save({"fc.weight": torch.zeros(1).expand(10**12)}, path)


def write_sparse(path: Path) -> None:
    torch.save({"fc.weight": torch.eye(3).to_sparse()}, path)


def write_quantised(path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.save({"a": torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8)}, path)


def write_pointer(path: Path) -> None:
    oid = "sha256:" + 64 * "a"
    path.write_text(f"version https://git-lfs.github.com/spec/v1\noid {oid}\nsize 99\n")


def write_toy_onnx(path: Path) -> None:
    write_onnx(path)


UNREADABLE: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing": (lambda path: None, r"expected a checkpoint file, got no such file"),
    "folder": (lambda path: path.mkdir(), r"expected a checkpoint file, got a folder"),
    "empty": (lambda path: path.touch(), r"expected a checkpoint, got an empty file"),
    "text": (lambda path: path.write_text("hello " * 99), r"truncated or no checkpoint"),
    "json": (lambda path: path.write_text('{"a": 1}'), r"expected weights, got a JSON file"),
    "pointer": (write_pointer, r"got a git-lfs pointer; fetch the file: git lfs pull"),
    "page": (lambda path: path.write_text("<!DOCTYPE html><html>"), r"got a web page; download"),
    "onnx": (write_toy_onnx, r"expected weights, got an ONNX file"),
    "keras": (lambda path: path.write_bytes(b"\x89HDF\r\n\x1a\n" * 9), r"got an HDF5 file"),
    "inner": (
        lambda path: torch.save({"a": {"w": torch.ones(1)}, "b": {"w": torch.ones(1)}}, path),
        r"expected one state dict, got a and b; keep the one that is meant",
    ),
    "half": (write_half, r"truncated or no checkpoint \(RuntimeError: .*central directory"),
    "old half": (write_half_of_the_old_format, r"truncated or no checkpoint"),
    "module": (write_pickled_module, r"pickle that would import .*torch\.nn\.modules"),
    "script": (write_script, r"expected weights, got a TorchScript program; ask for"),
    "exported": (write_exported, r"expected weights, got an exported program \(\.pt2\)"),
    "tar": (write_tar, r"expected weights, got a tar file"),
    "list": (lambda path: torch.save([1, 2], path), r"names to tensors, got list"),
    "tensor": (
        lambda path: torch.save(torch.zeros(3), path),
        r"got a torch.strided tensor of shape \(3,\)",
    ),
    "nothing": (lambda path: torch.save({}, path), r"names to tensors, got an empty dict"),
    "number": (lambda path: torch.save({"model": 3}, path), r"dense tensors, got int at 'model'"),
    "training state": (
        lambda path: torch.save({"epoch": 1, "weights": {}}, path),
        r"dense tensors, got int at 'epoch'",
    ),
    "not by name": (lambda path: torch.save({3: torch.zeros(3)}, path), r"at 3; ask for"),
    "two": (
        lambda path: torch.save({"model": {"a": torch.ones(1)}, "net": {"a": torch.ones(1)}}, path),
        r"expected one state dict, got model and net",
    ),
    "expanded": (write_expanded, r"dense tensors, got a torch.strided tensor of shape \(10{12},\)"),
    "sparse": (write_sparse, r"dense tensors, got a torch.sparse_coo tensor of shape \(3, 3\)"),
    "quantised": (write_quantised, r"dense tensors, got a quantised tensor of shape \(3,\) at"),
    "meta": (
        lambda path: torch.save({"a": torch.zeros(2, device="meta")}, path),
        r"dense tensors, got a torch.strided tensor",
    ),
}


@pytest.mark.parametrize("kind", UNREADABLE)
def test_what_is_no_bare_checkpoint_gets_one_line(tmp_path: Path, kind: str) -> None:
    write, match = UNREADABLE[kind]
    write(tmp_path / "model.pt")
    with pytest.raises(InputError, match=match) as caught:
        read_weights(tmp_path / "model.pt")
    assert "\n" not in str(caught.value)
    assert "model.pt" in str(caught.value)
    assert "weights_only" not in str(caught.value)  # never advised to trust the file


@pytest.mark.parametrize("how", ["zip", "old", "bare"])
def test_a_hostile_pickle_is_named_and_never_run(tmp_path: Path, how: str) -> None:
    payload = {
        "state_dict": small_network().state_dict(),
        "x": Exploit(f"touch {tmp_path / 'run'}"),
    }
    path = tmp_path / "model.pt"
    if how == "bare":
        path.write_bytes(pickle.dumps(payload["x"], protocol=2))
    else:
        torch.save(payload, path, _use_new_zipfile_serialization=how == "zip")
    with pytest.raises(InputError, match=r"pickle that would import (posix|nt).system; nothing"):
        read_weights(path)
    assert not (tmp_path / "run").exists()
    pickle.loads(pickle.dumps(payload["x"]))  # noqa: S301  # It would have worked.
    assert (tmp_path / "run").exists()


def test_the_environment_cannot_lift_the_ban(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    write_pickled_module(tmp_path / "model.pt")
    with pytest.raises(InputError, match=r"would import torch\.nn"):
        read_weights(tmp_path / "model.pt")


# --- several files ------------------------------------------------------------------------------


def sharded(folder: Path, **more: str) -> Path:
    """Two files and their index, as Hugging Face writes them."""
    weights = small_network().state_dict()
    names = {n: f"model-0000{1 + (i > 3)}-of-00002.safetensors" for i, n in enumerate(weights)}
    for file in sorted(set(names.values())):
        save_file({n: w for n, w in weights.items() if names[n] == file}, folder / file)
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 9}, "weight_map": names | more}))
    torch.save(weights, folder / "whole.pt")
    return index


def test_an_index_is_read_with_all_its_files(tmp_path: Path) -> None:
    assert same(read_weights(sharded(tmp_path)), read_weights(tmp_path / "whole.pt"))


def test_a_part_says_which_index_to_give(tmp_path: Path) -> None:
    index = sharded(tmp_path)
    part = tmp_path / "model-00002-of-00002.safetensors"
    told = r"expected all weights, got part 2 of 2; give the index 'model.safetensors.index.json'"
    with pytest.raises(InputError, match=told + ": "):
        read_weights(part)
    index.unlink()
    with pytest.raises(InputError, match=told + ", which is not beside it: "):
        read_weights(part)


@pytest.mark.parametrize("file", ["../a.safetensors", "/etc/passwd", "", "..", "a/b"])
def test_an_index_names_files_beside_it_alone(tmp_path: Path, file: str) -> None:
    with pytest.raises(InputError, match="expected an index that names files beside it, got"):
        read_weights(sharded(tmp_path, more=file))


def test_an_index_without_its_files_is_told(tmp_path: Path) -> None:
    index = sharded(tmp_path)
    (tmp_path / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(InputError, match=r"the 2 files that the index names .*none of model-00002"):
        read_weights(index)
    index = sharded(tmp_path, more="model-00001-of-00002.safetensors")
    with pytest.raises(InputError, match=r"weights that the index names, got none of more in 'mod"):
        read_weights(index)


@pytest.mark.parametrize("kept", [9, 20, -9])
def test_a_truncated_safetensors_file(tmp_path: Path, kept: int) -> None:
    save_file(small_network().state_dict(), tmp_path / "a.safetensors")
    whole = (tmp_path / "a.safetensors").read_bytes()
    (tmp_path / "a.safetensors").write_bytes(whole[:kept])
    with pytest.raises(InputError, match=r"safetensors file, got one that does not read \(Safet"):
        read_weights(tmp_path / "a.safetensors")


def test_damage_anywhere_is_an_input_error_or_a_state_dict(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    path = tmp_path / "a.bin"
    for kind in ("zip", "old", "safetensors"):
        if kind == "safetensors":
            save_file(small_network().state_dict(), path)
        else:
            torch.save(
                small_network().state_dict(), path, _use_new_zipfile_serialization=kind == "zip"
            )
        whole = path.read_bytes()
        for _ in range(40):
            damaged = torch.frombuffer(bytearray(whole), dtype=torch.uint8)
            at = torch.randint(len(whole), (5,), generator=generator)
            damaged[at] = torch.randint(256, (5,), generator=generator).to(torch.uint8)
            path.write_bytes(damaged.numpy().tobytes())
            try:
                assert all(isinstance(value, Tensor) for value in read_weights(path).values())
            except InputError as error:
                assert "\n" not in str(error)  # noqa: PT017  # Either outcome is right.


# --- what Lightning writes ----------------------------------------------------------------------


def lightning(weights: dict[str, Tensor], hyper_parameters: object) -> dict[str, object]:
    """The keys of a checkpoint of Lightning 2."""
    return {
        "epoch": 1,
        "global_step": 2,
        "pytorch-lightning_version": "2.6.6",
        "state_dict": {f"model.{name}": value for name, value in weights.items()},
        "loops": {"fit_loop": {"state_dict": {}, "epoch_progress": {"total": {"ready": 1}}}},
        "callbacks": {"ModelCheckpoint": {"best_model_score": None, "best_k_models": {}}},
        "optimizer_states": [{"state": {0: {"momentum_buffer": torch.ones(2)}}}],
        "lr_schedulers": [],
        "hparams_name": "kwargs",
        "hyper_parameters": hyper_parameters,
    }


def test_plain_hyper_parameters_of_lightning_are_passed_over(tmp_path: Path) -> None:
    weights = small_network().state_dict()
    torch.save(lightning(weights, {"lr": 0.1, "layers": [1, 2]}), tmp_path / "a.ckpt")
    assert same(read_weights(tmp_path / "a.ckpt", also=("model.",)), weights)


@pytest.mark.parametrize(
    ("hyper_parameters", "told"),
    [
        (argparse.Namespace(lr=0.1), r"would import argparse.Namespace; nothing of it was run"),
        ({"activation": nn.ReLU}, r"would import torch.nn.modules.activation.ReLU; nothing of it"),
    ],
)
def test_pickled_hyper_parameters_of_lightning_are_refused_by_name(
    tmp_path: Path, hyper_parameters: object, told: str
) -> None:
    torch.save(lightning(small_network().state_dict(), hyper_parameters), tmp_path / "a.ckpt")
    with pytest.raises(InputError, match=told):
        read_weights(tmp_path / "a.ckpt", also=("model.",))
