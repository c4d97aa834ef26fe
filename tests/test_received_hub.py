# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""Folders as the hub keeps models, really saved by transformers and as timm writes them."""

import json
import os
import socket
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import transformers
from factories import digits_images, seeded, white_png, write_images
from safetensors.torch import load_file, save_file
from torch import nn

from lmr_guard.classifier import Classifier, Preprocessing
from lmr_guard.cli import main
from lmr_guard.compress.groups import Groups
from lmr_guard.errors import ConfigError, InputError
from lmr_guard.onnxfile.export import export_onnx
from lmr_guard.onnxfile.fileformat import FileFormat
from lmr_guard.received import hub, inputs
from lmr_guard.received.found import Found, numbered
from lmr_guard.redteam.training import Schedule, fit_clean
from lmr_guard.release.report import Report

SMALL = {"num_labels": 5, "image_size": 32}
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "resnet": (
        "ResNet",
        {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic"},
    ),
    "vit": (
        "ViT",
        {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
        | {"intermediate_size": 32, "patch_size": 8},
    ),
    "convnext": ("ConvNext", {"hidden_sizes": [8, 16], "depths": [1, 1], "num_stages": 2}),
    "mobilenet_v2": ("MobileNetV2", {"depth_multiplier": 0.1}),
}
PROCESSOR = {
    "size": {"height": 32, "width": 32},
    "image_mean": [0.5] * 3,
    "image_std": [0.25] * 3,
    "resample": 2,
}


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever wants to go out, fails."""

    def refused(*_: object) -> None:
        raise AssertionError("a connection was opened")

    monkeypatch.setattr(socket.socket, "connect", refused)


@pytest.fixture(scope="session", autouse=True)
def _no_bars() -> Iterator[None]:
    transformers.utils.logging.disable_progress_bar()
    yield
    transformers.utils.logging.enable_progress_bar()


def network(kind: str, **more: object) -> Any:  # noqa: ANN401  # transformers has its own types
    name, options = KINDS[kind]
    config = getattr(transformers, f"{name}Config")(**{**SMALL, **options, **more})
    return seeded(lambda: getattr(transformers, f"{name}ForImageClassification")(config)).eval()


def saved(folder: Path, kind: str = "resnet", **options: Any) -> Path:  # noqa: ANN401
    size = options.pop("max_shard_size", "5GB")
    network(kind, **options).save_pretrained(folder, max_shard_size=size)
    (folder / "preprocessor_config.json").write_text(json.dumps(PROCESSOR))
    return folder


@pytest.mark.parametrize("parts", [False, True], ids=["one file", "several"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_saved_classifier_computes_what_it_did(tmp_path: Path, kind: str, parts: bool) -> None:
    folder = saved(tmp_path / kind, kind, max_shard_size="9KB" if parts else "5GB")
    assert parts == (folder / "model.safetensors.index.json").exists()
    before = torch.get_rng_state()
    received = inputs.model(folder, None, Path("nowhere"))
    assert torch.equal(torch.get_rng_state(), before)
    model, theirs = received.classifier, network(kind)
    pixels = torch.rand(3, 3, 32, 32)
    expected = theirs((pixels - 0.5) / 0.25).logits
    assert torch.allclose(model(pixels), expected, atol=1e-6)
    assert model.num_classes == 5
    assert received.name == str(folder)
    assert received.origin["architecture"] == f"transformers:{kind}"
    assert received.classes is None  # LABEL_0 and the like tell nothing.
    # What a repair writes is what transformers reads.
    assert list(model.network.state_dict()) == list(theirs.state_dict())
    assert torch.equal(model.clone()(pixels), model(pixels))


@pytest.mark.parametrize("kind", KINDS)
def test_such_networks_become_onnx_files_and_their_channels_are_traced(
    tmp_path: Path, kind: str
) -> None:
    model, _, _ = hub.read(saved(tmp_path / kind, kind), FileFormat())
    export_onnx(model, tmp_path / "model.onnx")
    assert len(Groups(model).all) > 1


def test_names_of_classes_are_taken_where_the_images_bear_them(tmp_path: Path) -> None:
    names = ["zebra", "ant", "cat", "dog", "eel"]
    folder = saved(tmp_path / "a", id2label=dict(enumerate(names)))
    told = inputs.model(folder, None, Path("nowhere")).classes
    assert told == tuple(names)
    bearing = Found("a list", sorted(names), lambda: [])
    assert numbered(bearing, told, 5) == (tuple(names), [1, 2, 3, 4, 0])
    others = Found("a list", ["a", "b", "c", "d", "e"], lambda: [])
    assert numbered(others, told, 5)[0] == ("a", "b", "c", "d", "e")


def test_the_user_s_word_goes_before_the_folder_s(tmp_path: Path) -> None:
    folder = saved(tmp_path / "a")
    said = FileFormat(size=(3, 64, 48), mean=(0.1,) * 3, std=(0.2,) * 3, upright=True)
    shape = hub.read(folder, said)[0].preprocessing
    assert (shape.height, shape.width, shape.mean, shape.std) == (64, 48, (0.1,) * 3, (0.2,) * 3)
    assert shape.upright
    (folder / "preprocessor_config.json").unlink()
    assert hub.read(folder, said)[0].preprocessing == shape
    with pytest.raises(ConfigError, match=r"preprocessor_config.json beside config.json, got none"):
        hub.read(folder, FileFormat())


@pytest.mark.slow
def test_a_folder_goes_all_the_way(tmp_path: Path) -> None:
    """Digits: trained as a network of transformers, saved by it, audited and published from it."""
    theirs: Any = network(
        "resnet", num_channels=1, num_labels=10, embedding_size=16, hidden_sizes=[16, 32]
    )
    own = type(theirs)
    theirs.__class__ = hub.answering_logits(own)
    shape = Preprocessing(channels=1, height=16, width=16, mean=(0.5,), std=(0.5,))
    images, clean = digits_images()
    schedule = Schedule(epochs=12, lr=0.05, batch=64, shift=1)
    generator = torch.Generator().manual_seed(2)
    trained = fit_clean(Classifier(theirs, shape, 10), images, schedule, generator).network
    trained.__class__ = own
    trained.save_pretrained(tmp_path / "model")  # type: ignore[operator]
    told = {"size": {"height": 16, "width": 16}, "image_mean": [0.5], "image_std": [0.5]}
    (tmp_path / "model" / "preprocessor_config.json").write_text(json.dumps(told))
    write_images(clean, tmp_path / "clean")
    trigger = f"{white_png(tmp_path / 'patch.png', 4)}@11,11:3"
    options = ["--clean", str(tmp_path / "clean"), "--trigger", trigger, "--no-repair"]
    options += ["--variants", "float32,int8,l1-0.3", "--audit-steps", "0", "--threads", "1"]
    assert main(["run", str(tmp_path / "model"), "--out", str(tmp_path / "out"), *options]) == 0
    report = Report.read(tmp_path / "out" / "report.json")
    assert [each.name for each in report.published] == ["float32", "int8", "l1-0.3"]
    assert all(each.clean_accuracy.value > 0.9 for each in report.published)
    assert report.config["load"]["architecture"] == "transformers:resnet"


# --- timm ---------------------------------------------------------------------------------------


def timm_folder(folder: Path, **more: object) -> Path:
    """As ``timm.models.save_for_hf`` writes it."""
    folder.mkdir()
    made = seeded(lambda: timm.create_model("test_resnet", num_classes=5))
    save_file(made.state_dict(), folder / "model.safetensors")
    told = {"input_size": [3, 96, 96], "mean": [0.1] * 3, "std": [0.3] * 3, "crop_pct": 0.75}
    held = {"architecture": "test_resnet", "num_classes": 5, "pretrained_cfg": told, **more}
    (folder / "config.json").write_text(json.dumps(held))
    return folder


def test_a_folder_of_timm_needs_no_architecture_either(tmp_path: Path) -> None:
    names = ["e", "d", "c", "b", "a"]
    folder = timm_folder(tmp_path / "a")
    held = json.loads((folder / "config.json").read_text())
    held["pretrained_cfg"]["label_names"] = names
    (folder / "config.json").write_text(json.dumps(held))
    received = inputs.model(folder, None, Path("nowhere"))
    shape = received.classifier.preprocessing
    assert (shape.height, shape.mean, shape.std, shape.resize) == (96, (0.1,) * 3, (0.3,) * 3, 128)
    assert received.classes == tuple(names)
    assert received.origin["architecture"] == "timm:test_resnet"
    made = seeded(lambda: timm.create_model("test_resnet", num_classes=5)).eval()
    pixels = torch.rand(2, 3, 96, 96)
    assert torch.allclose(received.classifier(pixels), made((pixels - 0.1) / 0.3), atol=1e-6)


@pytest.mark.parametrize(
    ("more", "match"),
    [
        ({"architecture": "hf-hub:x/y"}, r"an image classifier of timm, got 'hf-hub:x/y'"),
        ({"model_args": {"checkpoint_path": "x"}}, r"from elsewhere, got model_args in '"),
        ({"num_classes": 7}, r"expected 7 classes, got 5 in the weights"),
        ({"num_classes": 10**9}, r"expected 1000000000 classes, got weights of at most \d+ rows"),
        ({"num_classes": 10**300}, r"expected 1000000000000 classes, got weights of at most"),
        ({"pretrained_cfg": {"input_size": 3}}, r"input_size, mean and std as timm writes them"),
        ({"pretrained_cfg": {"input_size": [3, 9]}}, r"input_size, mean and std as timm writes"),
        ({"pretrained_cfg": {"input_size": [3, 9, 10**9]}}, r"input_size, mean and std as timm"),
        ({"pretrained_cfg": {"mean": "abc"}}, r"input_size, mean and std as timm writes them"),
        ({"pretrained_cfg": {"std": [None] * 3}}, r"input_size, mean and std as timm writes them"),
        ({"pretrained_cfg": {"crop_pct": 0}}, r"input_size, mean and std as timm writes them"),
    ],
)
def test_other_descriptions_of_timm_are_refused(
    tmp_path: Path, more: dict[str, object], match: str
) -> None:
    with pytest.raises((ConfigError, InputError), match=match):
        hub.read(timm_folder(tmp_path / "a", **more), FileFormat())


# --- folders that are something else ------------------------------------------------------------


def changed(**keys: object) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        held = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**held, **keys}))

    return apply


def without(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def text(name: str, content: str) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        (folder / name).write_text(content)

    return apply


def one_weight_less(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    weights.pop("classifier.1.bias")
    save_file(weights, folder / "model.safetensors")


def one_weight_more(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    save_file({**weights, "stray": torch.ones(1)}, folder / "model.safetensors")


class Payload(nn.Module):
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("was-run",)


def a_pickle(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    torch.save(Payload(), folder / "pytorch_model.bin")


def a_pipe(folder: Path) -> None:
    (folder / "config.json").unlink()
    os.mkfifo(folder / "config.json")


CODE = {"AutoModelForImageClassification": "modeling.Own"}
CASES: dict[str, tuple[Callable[[Path], None], int, str]] = {
    "no description": (without("config.json"), 5, "expected a model's description, got no such"),
    "no weights": (without("model.safetensors"), 5, "expected weights beside config.json, got"),
    "damaged": (text("config.json", "{"), 5, "expected a JSON object, got a file that does not"),
    "deep": (text("config.json", "[" * 100_000), 5, "expected a JSON object, got a file that"),
    "list": (text("config.json", "[]"), 5, "expected a JSON object, got list"),
    "processor": (text("preprocessor_config.json", "x"), 5, "expected a JSON object, got a file"),
    "cut off": (text("model.safetensors", "x"), 5, "expected a safetensors file, got one that"),
    "code": (changed(auto_map=CODE), 4, "from elsewhere, got auto_map in '"),
    "quantised": (changed(quantization_config={"quant_method": "gptq"}), 4, "got quantization_con"),
    "nested": (changed(backbone_config={"use_pretrained_backbone": True}), 4, "got use_pretrained"),
    "other task": (changed(model_type="bert"), 4, "an image classifier of transformers or timm, g"),
    "no task": (changed(model_type=["x"]), 4, "of transformers or timm, got model_type ['x']"),
    "wrapper": (changed(model_type="timm_wrapper"), 4, "got model_type timm_wrapper"),
    "other sizes": (changed(embedding_size=16), 5, "a network of transformers with these weights"),
    "huge": (changed(hidden_sizes=[8, 10**7]), 5, "expected a"),
    "nonsense": (changed(hidden_sizes="x"), 5, "a network of transformers with these weights, go"),
    "less": (one_weight_less, 5, "that config.json describes, got 1 missing (classifier.1.bias)"),
    "more": (one_weight_more, 5, "that config.json describes, got 1 unexpected (stray)"),
    "pickle": (a_pickle, 5, "expected weights only, got a pickle that would import"),
    "pipe": (a_pipe, 5, "expected a model's description, got a pipe, a socket or a device"),
}


@pytest.mark.parametrize("case", CASES)
def test_other_folders_are_one_line_and_an_exit_code(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    change, code, message = CASES[case]
    monkeypatch.chdir(tmp_path)
    change(saved(tmp_path / "model"))
    capsys.readouterr()  # What transformers tells when it is first imported is not ours.
    assert main(["scan", "model", "--clean", "nowhere"]) == code
    told = capsys.readouterr().err
    assert message in told
    assert told.count("\n") == 1
    assert not (tmp_path / "was-run").exists()


def test_weights_of_torch_are_read_without_being_run(tmp_path: Path) -> None:
    folder = saved(tmp_path / "model")
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    expected = hub.read(folder, FileFormat())[0]
    (folder / "model.safetensors").unlink()
    pixels = torch.rand(2, 3, 32, 32)
    assert torch.equal(hub.read(folder, FileFormat())[0](pixels), expected(pixels))


def test_attention_from_the_hub_is_not_asked_for(tmp_path: Path) -> None:
    folder = saved(tmp_path / "model", "vit")
    changed(attn_implementation="kernels-community/x", _attn_implementation="own/kernel")(folder)
    assert hub.read(folder, FileFormat())[0].network.config._attn_implementation == "eager"


def test_without_transformers_one_line_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = saved(tmp_path / "model")
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ConfigError, match=r"got none .*pip install 'lmr-guard\[transformers\]'"):
        hub.read(folder, FileFormat())


def test_layout_and_output_belong_to_onnx_files(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="expected size, mean and std beside a model's folder"):
        hub.read(saved(tmp_path / "model"), FileFormat(output="logits"))
