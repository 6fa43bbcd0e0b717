"""Torch files, GGUF and legacy tokenizers: a child converts them, and runs nothing it finds in them."""

import io
import json
import os
import pickle
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from gguf import GGMLQuantizationType

from sllmd.core.errors import CheckpointError, MalformedCheckpoint, UnsupportedCheckpoint
from sllmd.store.progress import ImportProgress
from sllmd.store.store import Store
from tests.store.ggufs import write_gguf
from tests.store.models import CONFIG, as_bytes, llama_tensors, read_back, run_import, snapshot

pytestmark = pytest.mark.slow
"""A child that imports torch takes two seconds, one that imports transformers four."""


def torch_model(directory: Path, shards: dict[str, object], weight_map: dict[str, str] | None = None) -> Path:
    import torch

    directory.mkdir()
    (directory / "config.json").write_text(json.dumps(CONFIG))
    (directory / "tokenizer.json").write_text("{}")
    for name, content in shards.items():
        torch.save(content, directory / name)
    if weight_map is not None:
        (directory / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return directory


def as_torch(tensors: dict[str, np.ndarray]) -> dict[str, object]:
    import torch

    return {name: torch.from_numpy(array.copy()) for name, array in tensors.items()}


def test_a_torch_file_becomes_a_model(store: Store, tmp_path: Path) -> None:
    tensors = llama_tensors()
    source = torch_model(tmp_path / "m", {"pytorch_model.bin": as_torch(tensors)})
    seen: list[ImportProgress] = []
    checkpoint = run_import(store, source, on_progress=seen.append)
    assert checkpoint.manifest.source.kind == "torch"
    assert read_back(checkpoint) == as_bytes(tensors)
    assert checkpoint.manifest.small_files == ("config.json", "tokenizer.json")
    assert {step.stage for step in seen} == {"converting", "copying"}
    assert list((store.root / "partial").iterdir()) == []


def test_shards_views_and_shared_storage_of_torch_files(store: Store, tmp_path: Path) -> None:
    import torch

    table = torch.arange(1200, dtype=torch.bfloat16).reshape(50, 24)
    source = torch_model(
        tmp_path / "m",
        {
            "a.bin": {"model.embed_tokens.weight": table, "lm_head.weight": table, "half": table[:, ::2]},
            "b.bin": {"model.norm.weight": torch.ones(24)},
        },
        {
            "model.embed_tokens.weight": "a.bin",
            "lm_head.weight": "a.bin",
            "half": "a.bin",
            "model.norm.weight": "b.bin",
        },
    )
    checkpoint = run_import(store, source)
    assert checkpoint.manifest.ties == {"lm_head.weight": "model.embed_tokens.weight"}
    found = read_back(checkpoint)
    assert found["lm_head.weight"] == table.view(torch.int16).numpy().tobytes()
    assert found["half"] == table[:, ::2].contiguous().view(torch.int16).numpy().tobytes()


def test_one_pt_file_with_the_state_dict_inside(store: Store, tmp_path: Path) -> None:
    tensors = llama_tensors()
    source = torch_model(tmp_path / "m", {"weights.pt": {"state_dict": as_torch(tensors), "epoch": 3}})
    assert read_back(run_import(store, source / "weights.pt")) == as_bytes(tensors)


class RunsCode:
    """Unpickled, it writes a file: the proof that code ran."""

    def __init__(self, proof: Path) -> None:
        self.proof = proof

    def __reduce__(self):
        return (os.system, (f"touch {self.proof}",))


def malicious_zip(proof: Path) -> bytes:
    """A torch zip archive whose pickle is hand-made."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps({"w": RunsCode(proof)}, protocol=2))
        archive.writestr("archive/version", "3\n")
        archive.writestr("archive/byteorder", "little")
    return content.getvalue()


def test_a_pickle_that_executes_code_is_refused_and_never_run(store: Store, tmp_path: Path) -> None:
    proof = tmp_path / "proof"
    hostile = {
        "zip": malicious_zip(proof),
        "bare pickle": pickle.dumps({"w": RunsCode(proof)}, protocol=2),
        "new protocol": pickle.dumps({"w": RunsCode(proof)}, protocol=4),
    }
    source = torch_model(tmp_path / "m", {})
    before = snapshot(store.root)
    for content in hostile.values():
        (source / "pytorch_model.bin").write_bytes(content)
        with pytest.raises(CheckpointError, match=r"pytorch_model\.bin"):
            run_import(store, source)
        assert not proof.exists()
        assert snapshot(store.root) == before
    pickle.loads(hostile["bare pickle"])
    assert proof.exists(), "the pickle is harmless, so this test shows nothing"


@pytest.mark.parametrize(
    ("content", "error", "fault"),
    [
        pytest.param(b"", MalformedCheckpoint, "not a torch checkpoint", id="empty"),
        pytest.param(b"PK\x03\x04" + bytes(100), MalformedCheckpoint, "not a torch checkpoint", id="bad zip"),
        pytest.param(bytes(range(128, 192)), CheckpointError, "pytorch_model", id="noise"),
        pytest.param({"w": "text"}, UnsupportedCheckpoint, "not a tensor", id="no tensor"),
        pytest.param({}, UnsupportedCheckpoint, "no state dict", id="no tensors"),
    ],
)
def test_torch_files_that_are_none(store: Store, tmp_path: Path, content, error, fault: str) -> None:
    source = torch_model(tmp_path / "m", {"pytorch_model.bin": content})
    if isinstance(content, bytes):
        (source / "pytorch_model.bin").write_bytes(content)
    with pytest.raises(error, match=fault):
        run_import(store, source)
    assert store.models() == []


def test_a_torch_index_that_leaves_the_directory(store: Store, tmp_path: Path) -> None:
    source = torch_model(tmp_path / "m", {"a.bin": {}}, {"w": "../outside.bin"})
    with pytest.raises(MalformedCheckpoint, match="points outside"):
        run_import(store, source)


def test_a_legacy_tokenizer_becomes_a_tokenizer_json(store: Store, tmp_path: Path) -> None:
    import tokenizers

    source = torch_model(tmp_path / "m", {"pytorch_model.bin": as_torch(llama_tensors())})
    (source / "tokenizer.json").unlink()
    letters = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {text: i for i, text in enumerate([*letters, "he", "<|endoftext|>"])}
    (source / "vocab.json").write_text(json.dumps(vocabulary))
    (source / "merges.txt").write_text("#version: 0.2\nh e\n")
    (source / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "GPT2Tokenizer"}))
    checkpoint = run_import(store, source)
    assert "tokenizer.json" in checkpoint.manifest.small_files
    tokenizer = tokenizers.Tokenizer.from_file(str(checkpoint.directory / "tokenizer.json"))
    assert tokenizer.encode("hehe").ids == [vocabulary["he"]] * 2


def test_a_tokenizer_that_cannot_be_converted_is_told(store: Store, tmp_path: Path) -> None:
    source = torch_model(tmp_path / "m", {"pytorch_model.bin": as_torch(llama_tensors())})
    (source / "tokenizer.json").unlink()
    (source / "tokenizer.model").write_bytes(b"not sentencepiece")
    (source / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "LlamaTokenizer"}))
    with pytest.raises(UnsupportedCheckpoint, match=r"no tokenizer\.json"):
        run_import(store, source)


def test_gguf_becomes_a_model_with_tokenizer_and_chat_template(store: Store, tmp_path: Path) -> None:
    import tokenizers
    import torch

    arrays = write_gguf(tmp_path / "m.gguf", {"blk.0.ffn_up": GGMLQuantizationType.Q8_0})
    checkpoint = run_import(store, tmp_path / "m.gguf", None)
    assert checkpoint.name == "m"
    config = checkpoint.manifest.config
    assert checkpoint.manifest.architecture == "LlamaForCausalLM"
    assert "quantization_config" not in config
    assert config["rope_parameters"]["rope_theta"] == 50_000.0
    assert config["tie_word_embeddings"] is True
    assert config["eos_token_id"] == 258
    assert checkpoint.manifest.ties == {"lm_head.weight": "model.embed_tokens.weight"}
    assert {tensor.dtype for tensor in checkpoint.manifest.tensors} == {"BF16"}

    def as_bfloat16(array: np.ndarray) -> bytes:
        return torch.from_numpy(array).bfloat16().view(torch.int16).numpy().tobytes()

    found = read_back(checkpoint)
    assert found["model.embed_tokens.weight"] == as_bfloat16(arrays["token_embd"])
    assert found["model.layers.0.mlp.down_proj.weight"] == as_bfloat16(arrays["blk.0.ffn_down"])
    up = torch.frombuffer(bytearray(found["model.layers.0.mlp.up_proj.weight"]), dtype=torch.bfloat16)
    assert torch.allclose(up.float(), torch.from_numpy(arrays["blk.0.ffn_up"]).flatten(), atol=0.05)

    directory = checkpoint.directory
    tokenizer = tokenizers.Tokenizer.from_file(str(directory / "tokenizer.json"))
    assert tokenizer.encode("he", add_special_tokens=False).ids == [256]
    assert "m['content']" in (directory / "chat_template.jinja").read_text()
    assert json.loads((directory / "generation_config.json").read_text())["eos_token_id"] == 258


def test_gguf_files_that_are_none(store: Store, tmp_path: Path) -> None:
    write_gguf(tmp_path / "m.gguf", {})
    content = (tmp_path / "m.gguf").read_bytes()
    for damaged in (b"", b"GGUF", bytes(range(256)) * 16, content[: len(content) // 2]):
        (tmp_path / "m.gguf").write_bytes(damaged)
        with pytest.raises(CheckpointError) as caught:
            run_import(store, tmp_path / "m.gguf")
        assert str(tmp_path / "m.gguf") in caught.value.message
        assert not re.search(r"/tmp\w+/m\.gguf", caught.value.message), "a directory that is gone"
    assert store.models() == []


def test_the_converter_ends_with_the_import_that_started_it(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "sllmd.store.convert", "gguf", str(tmp_path), str(tmp_path / "out")]
    command.append("--until-stdin-closes")
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL) as child:
        assert child.stdin is not None
        child.stdin.close()
        assert child.wait(60) == 2


def test_a_torch_file_that_is_a_fifo_is_refused_without_waiting(store: Store, tmp_path: Path) -> None:
    source = torch_model(tmp_path / "m", {})
    os.mkfifo(source / "pytorch_model.bin")
    with pytest.raises(MalformedCheckpoint, match="not a regular file"):
        run_import(store, source)


def test_a_torch_file_that_links_outside_is_refused(store: Store, tmp_path: Path) -> None:
    source = torch_model(tmp_path / "m", {})
    (source / "pytorch_model.bin").symlink_to("/etc/hostname")
    with pytest.raises(MalformedCheckpoint, match="leaves the checkpoint"):
        run_import(store, source)
