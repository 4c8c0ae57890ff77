"""Files of tensors: what is written is read, and no accident leaves a part of a file."""

from __future__ import annotations

import errno
import io
import json
import os
import pickle
import random
import signal
import stat
import subprocess
import sys
import threading
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

import tinyseq as ts
from tinyseq.errors import CheckpointError, DTypeError
from tinyseq.io import _create_temporary, load, load_metadata, save

posix = pytest.mark.skipif(sys.platform == "win32", reason="locks and signals of POSIX")

INTEGERS = [f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)]
TYPES = ["bool", "float16", "float32", "float64", *INTEGERS]


def arrays(dtype: str) -> dict[str, np.ndarray]:
    """Every shape and memory layout that a state may have; some share their memory."""
    base = np.arange(24).reshape(4, 6).astype(dtype)
    return {
        "zero-dimensional": np.array(1, dtype),
        "scalar": base[2, 3],
        "empty": np.zeros((0, 3), dtype),
        "whole": base,
        "transposed": base.T,
        "every second": base[::2, ::3],
        "backwards": base[::-1, ::-1],
        "one row": base[1],
        "broadcast": np.broadcast_to(base[:1], (3, 6)),
        "Fortran order": np.asfortranarray(base),
        "other byte order": base.astype(base.dtype.newbyteorder(">")),
    }


@pytest.mark.parametrize("dtype", TYPES)
def test_every_dtype_shape_and_layout_comes_back(tmp_path: Path, dtype: str) -> None:
    saved = arrays(dtype)
    save(tmp_path / "a.safetensors", saved)
    loaded = safetensors.numpy.load_file(tmp_path / "a.safetensors")  # another reader, all dtypes
    assert set(loaded) == set(saved)
    for name, array in saved.items():
        assert loaded[name].dtype == np.dtype(dtype), name
        assert loaded[name].shape == array.shape, name
        np.testing.assert_array_equal(loaded[name], array, err_msg=name)


@pytest.mark.parametrize("dtype", ["bool", "int32", "int64", "float16", "float32", "float64"])
def test_tensors_come_back_as_tensors(tmp_path: Path, dtype: str) -> None:
    saved = {name: ts.tensor(np.asarray(array, dtype)) for name, array in arrays(dtype).items()}
    save(tmp_path / "a.safetensors", saved)
    loaded = load(tmp_path / "a.safetensors")
    assert list(loaded) == sorted(saved)
    for name, tensor in saved.items():
        assert isinstance(loaded[name], ts.Tensor)
        assert not loaded[name].requires_grad
        assert loaded[name].numpy().dtype == np.dtype(dtype), name
        assert loaded[name].shape == tensor.shape, name
        np.testing.assert_array_equal(loaded[name].numpy(), tensor.numpy(), err_msg=name)


def test_loaded_arrays_can_be_written(tmp_path: Path) -> None:
    save(tmp_path / "a", {"x": np.zeros(3)})
    x = load(tmp_path / "a")["x"]
    x[0] = 5.0
    assert x.numpy().tolist() == [5, 0, 0]


def test_bits_are_kept(tmp_path: Path) -> None:
    bits = np.array([0x7FC00001, 0x7F800000, 0xFF800000, 0x80000000, 0x00000001, 0x3F800000], np.uint32)
    save(tmp_path / "a", {"x": bits.view(np.float32)})
    np.testing.assert_array_equal(load(tmp_path / "a")["x"].numpy().view(np.uint32), bits)


def test_a_parameter_on_the_tape_is_saved_as_its_value(tmp_path: Path) -> None:
    weight = ts.tensor([1.0, 2.0], requires_grad=True)
    save(tmp_path / "a", {"weight": weight, "double": weight * 2})
    assert load(tmp_path / "a")["double"].numpy().tolist() == [2, 4]


def test_bfloat16_comes_back(tmp_path: Path) -> None:
    ml_dtypes = pytest.importorskip("ml_dtypes")
    values = np.array([1.5, -2.0, 3e38, np.inf], ml_dtypes.bfloat16)
    save(tmp_path / "a", {"x": values, "t": values.reshape(2, 2).T, "0": values[:0]})
    loaded = safetensors_arrays(tmp_path / "a")
    assert loaded["x"].dtype == values.dtype
    assert loaded["x"].tolist() == values.tolist()
    assert loaded["t"].tolist() == values.reshape(2, 2).T.tolist()


def safetensors_arrays(path: Path) -> dict[str, np.ndarray]:
    from tinyseq.io import _read

    return _read(path)[0]


def test_metadata_comes_back(tmp_path: Path) -> None:
    metadata = {"config": json.dumps({"cell": "lstm"}), "": "", "note": 'é\n"\0\U0001f3ad'}
    save(tmp_path / "a", {"x": np.ones(2)}, metadata)
    assert load_metadata(tmp_path / "a") == metadata
    save(tmp_path / "a", {})
    assert load_metadata(tmp_path / "a") == {}
    assert load(tmp_path / "a") == {}


def test_files_of_others_are_read(tmp_path: Path) -> None:
    safetensors.numpy.save_file({"x": np.array([1.5, 2.5])}, tmp_path / "a", {"format": "pt"})
    assert load(tmp_path / "a")["x"].numpy().tolist() == [1.5, 2.5]
    assert load_metadata(tmp_path / "a") == {"format": "pt"}
    safetensors.numpy.save_file({"x": np.array([1.5, 2.5])}, tmp_path / "a")
    assert load_metadata(tmp_path / "a") == {}


# --- what is no file of tensors ---------------------------------------------------------------------------------------


def small_file(path: Path) -> bytes:
    save(path, {"weight": np.arange(6, dtype=np.float32), "step": np.array(7)}, {"cell": "lstm"})
    return path.read_bytes()


def refused(path: Path) -> str:
    """Both readers refuse; the sentence they do it with."""
    with pytest.raises(CheckpointError) as by_metadata:
        load_metadata(path)
    with pytest.raises(CheckpointError) as by_load:
        load(path)
    sentence = str(by_load.value)
    assert str(by_metadata.value) == sentence
    assert repr(str(path)) in sentence
    assert "\n" not in sentence
    return sentence


def test_every_truncation_is_refused(tmp_path: Path) -> None:
    content = small_file(tmp_path / "whole")
    for size in range(len(content)):
        (tmp_path / "part").write_bytes(content[:size])
        assert "cut short" in refused(tmp_path / "part")
    (tmp_path / "part").write_bytes(content + b"\0")
    refused(tmp_path / "part")


def test_no_flipped_bit_changes_a_number(tmp_path: Path) -> None:
    content = small_file(tmp_path / "whole")
    undetected = 0
    for place in range(len(content)):
        for bit in range(8):
            damaged = bytearray(content)
            damaged[place] ^= 1 << bit
            (tmp_path / "damaged").write_bytes(damaged)
            try:
                loaded = load(tmp_path / "damaged")
            except CheckpointError:
                continue
            undetected += 1  # a letter of the checksum's name: then nothing else is changed
            assert loaded["weight"].numpy().tolist() == [0, 1, 2, 3, 4, 5]
            assert loaded["step"].item() == 7
    assert undetected < 8 * len("tinyseq.checksum")


def test_damage_is_told_from_truncation(tmp_path: Path) -> None:
    content = bytearray(small_file(tmp_path / "a"))
    content[-1] ^= 1
    (tmp_path / "a").write_bytes(content)
    assert "is damaged: what it holds does not match its checksum" in refused(tmp_path / "a")


def zip_archive() -> bytes:
    with zipfile.ZipFile(buffer := io.BytesIO(), "w") as archive:
        archive.writestr("model/data.pkl", pickle.dumps([1]))
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("content", "hint"),
    [
        (b"", "0 bytes"),
        (b"To be, or not to be: that is the question", "another format"),
        (b'{"weight": [1, 2]}', "another format"),
        (b"\x93NUMPY\x01\x00v\x00{'descr': '<f8'}", "another format"),
        (pickle.dumps({"weight": [1.0]}), "pickle"),
        (zip_archive(), "torch.save"),
    ],
)
def test_foreign_files_are_refused(tmp_path: Path, content: bytes, hint: str) -> None:
    (tmp_path / "a").write_bytes(content)
    assert hint in refused(tmp_path / "a")


def test_a_pickle_is_never_run(tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[object, ...]:
            return os.mkdir, (str(tmp_path / "exploded"),)

    (tmp_path / "a").write_bytes(pickle.dumps({"weight": Bomb()}))
    refused(tmp_path / "a")
    assert not (tmp_path / "exploded").exists()


def raw_file(path: Path, dtype: str, size: int) -> None:
    header = json.dumps({"x": {"dtype": dtype, "shape": [2], "data_offsets": [0, size]}}).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(size))


def test_a_dtype_that_numpy_lacks_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    raw_file(tmp_path / "a", "F8_E4M3", 2)
    assert "holds 'x' as F8_E4M3, which tinyseq has no dtype for" in refused(tmp_path / "a")
    monkeypatch.setitem(sys.modules, "ml_dtypes", None)
    raw_file(tmp_path / "a", "BF16", 4)
    assert "pip install ml_dtypes" in refused(tmp_path / "a")


def test_a_missing_file_is_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere"):
        load(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="nowhere"):
        load_metadata(tmp_path / "nowhere")


# --- what cannot be saved: nothing is lost ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tensors", "metadata", "error", "message"),
    [
        ({"x": np.array(["a"])}, None, DTypeError, "'x' has dtype <U1, which cannot be saved"),
        ({"x": np.array([None])}, None, DTypeError, "'x' has dtype object"),
        ({"x": np.zeros(2, complex)}, None, DTypeError, "'x' has dtype complex128"),
        ({"x": [1.0]}, None, DTypeError, "'x' is a list; save takes tensors and NumPy arrays"),
        ({"__metadata__": np.zeros(2)}, None, CheckpointError, "cannot be called '__metadata__'"),
        ({3: np.zeros(2)}, None, CheckpointError, "cannot be called 3"),
        ({}, {"step": 3}, CheckpointError, "not 'step': 3; write it as a str"),
        ({}, {"tinyseq.checksum": "0"}, CheckpointError, "used by tinyseq itself"),
    ],
)
def test_what_the_format_cannot_hold_is_refused(
    tmp_path: Path, tensors: object, metadata: object, error: type[Exception], message: str
) -> None:
    before = small_file(tmp_path / "a")
    with pytest.raises(error, match=message):
        save(tmp_path / "a", tensors, metadata)  # type: ignore[arg-type]
    assert (tmp_path / "a").read_bytes() == before
    assert os.listdir(tmp_path) == ["a"]


def test_a_place_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    for path in ("missing/a", "file/a", "folder"):
        with pytest.raises(CheckpointError, match=f"cannot write '{tmp_path / path}' ") as caught:
            save(tmp_path / path, {"x": np.zeros(2)})
        assert "\n" not in str(caught.value)
    assert sorted(os.listdir(tmp_path)) == ["file", "folder"]


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_folder_is_told(tmp_path: Path) -> None:
    before = small_file(tmp_path / "a")
    tmp_path.chmod(0o500)
    with pytest.raises(CheckpointError, match="Permission denied"):
        save(tmp_path / "a", {"x": np.zeros(2)})
    tmp_path.chmod(0o700)
    assert (tmp_path / "a").read_bytes() == before


@pytest.mark.parametrize("call", ["open", "fsync", "replace"])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EACCES, errno.EIO])
def test_an_error_of_the_system_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, number: int
) -> None:
    before = small_file(tmp_path / "a")

    def fail(*arguments: object) -> None:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr(os, call, fail)
        with pytest.raises(CheckpointError, match=os.strerror(number)):
            save(tmp_path / "a", {"x": np.zeros(2)})
    assert (tmp_path / "a").read_bytes() == before
    assert os.listdir(tmp_path) == ["a"]


def test_an_interrupt_while_writing_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = small_file(tmp_path / "a")

    def interrupt(*arguments: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", interrupt)
        with pytest.raises(KeyboardInterrupt):
            save(tmp_path / "a", {"x": np.zeros(2)})
    assert (tmp_path / "a").read_bytes() == before
    assert os.listdir(tmp_path) == ["a"]


# --- crashes ----------------------------------------------------------------------------------------------------------


def test_the_file_gets_its_name_after_its_content_is_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[str] = []
    fsync, replace = os.fsync, os.replace

    def recorded_fsync(descriptor: int) -> None:
        mode = os.fstat(descriptor)
        events.append("folder" if stat.S_ISDIR(mode.st_mode) else f"{mode.st_size} bytes")
        fsync(descriptor)

    def recorded_replace(source: Path, target: Path) -> None:
        events.append("name")
        assert Path(source).parent == Path(target).parent
        replace(source, target)

    monkeypatch.setattr(os, "fsync", recorded_fsync)
    monkeypatch.setattr(os, "replace", recorded_replace)
    content = small_file(tmp_path / "a")
    assert events == [f"{len(content)} bytes", "name"] + ["folder"] * (sys.platform != "win32")


@posix
def test_a_crash_at_any_byte_leaves_the_old_file(tmp_path: Path) -> None:
    """A process that dies (without any clean-up) after k bytes of the new file, for every k."""
    content = small_file(tmp_path / "new")
    before = {"old": np.arange(3)}
    save(tmp_path / "a", before)
    for size in range(0, len(content) + 1, 7):
        if not (child := os.fork()):
            _, descriptor = _create_temporary(tmp_path / "a")
            os.write(descriptor, content[:size])
            os._exit(0)
        os.waitpid(child, 0)
        assert list(load(tmp_path / "a")) == ["old"]
    leftovers = [name for name in os.listdir(tmp_path) if name.endswith(".tmp")]
    assert len(leftovers) > 30
    assert all(name.startswith(".a.") for name in leftovers)
    save(tmp_path / "a", before)
    assert sorted(os.listdir(tmp_path)) == ["a", "new"]


@posix
def test_the_file_that_a_living_run_writes_is_left_alone(tmp_path: Path) -> None:
    temporary, descriptor = _create_temporary(tmp_path / "a")
    other, other_descriptor = _create_temporary(tmp_path / "b")
    os.close(other_descriptor)
    save(tmp_path / "a", {"x": np.zeros(2)})
    assert temporary.exists()
    assert other.exists()  # it belongs to another checkpoint
    os.close(descriptor)
    save(tmp_path / "a", {"x": np.zeros(2)})
    assert not temporary.exists()


def test_many_writers_of_one_file_do_not_harm_each_other(tmp_path: Path) -> None:
    path = tmp_path / "a"
    problems: list[BaseException] = []

    def write(number: int) -> None:
        try:
            for _ in range(25):
                save(path, {"x": np.full(1000, number)})
                x = load(path)["x"].numpy()
                assert (x == x[0]).all()
        except BaseException as error:
            problems.append(error)

    threads = [threading.Thread(target=write, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert problems == []
    assert os.listdir(tmp_path) == ["a"]


WRITER = """
import sys, numpy as np
from tinyseq.io import save
step = int(sys.argv[2])
while True:
    step += 1
    save(sys.argv[1], {"step": np.array(step), "weight": np.full(200_000, step, np.float32)}, {"step": str(step)})
"""


@posix
def test_killed_twenty_times_while_it_writes(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.safetensors"
    step, moments = 0, random.Random(0)
    for _ in range(20):
        writer = subprocess.Popen([sys.executable, "-c", WRITER, str(path), str(step)])
        deadline = time.monotonic() + 60
        while not (path.exists() and int(load_metadata(path)["step"]) > step):  # it has started to write
            assert time.monotonic() < deadline
            assert writer.poll() is None
            time.sleep(0.005)
        time.sleep(moments.uniform(0, 0.05))
        writer.kill()
        assert writer.wait() == -signal.SIGKILL
        loaded = load(path)
        step = int(loaded["step"].item())
        assert load_metadata(path) == {"step": str(step)}
        np.testing.assert_array_equal(loaded["weight"].numpy(), np.full(200_000, step, np.float32))
        assert len(os.listdir(tmp_path)) <= 2


@posix
def test_a_link_is_followed_and_the_mask_respected(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "latest").symlink_to(tmp_path / "disk" / "a")
    mask = os.umask(0o027)
    try:
        save(tmp_path / "latest", {"x": np.ones(1)})
    finally:
        os.umask(mask)
    assert (tmp_path / "latest").is_symlink()
    assert stat.S_IMODE((tmp_path / "disk" / "a").stat().st_mode) == 0o640
    assert load(tmp_path / "latest")["x"].item() == 1.0
