"""The training loop and its parts: exact means, logs that others read, and runs that go on bit for bit."""

from __future__ import annotations

import csv
import itertools
import json
import math
import signal
import struct
import textwrap
import threading
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import tinyseq as ts
from tinyseq.data import Loader, TextStream
from tinyseq.io import load_metadata
from tinyseq.train import (
    CSVLog,
    EarlyStopping,
    JSONLog,
    Log,
    RandomState,
    TensorBoard,
    Totals,
    Trainer,
    accuracy,
    arrays_of,
    edit_distance,
    error_rate,
    load_checkpoint,
    norms,
    save_checkpoint,
)
from tinyseq.train.tensorboard import crc32c, masked_crc, record

# --- metrics ----------------------------------------------------------------------------------------------------------


def slow_distance(a: str, b: str) -> int:
    if not a or not b:
        return len(a) + len(b)
    last = slow_distance(a[:-1], b[:-1]) + (a[-1] != b[-1])
    return min(last, slow_distance(a[:-1], b) + 1, slow_distance(a, b[:-1]) + 1)


@given(st.text("abc", max_size=5), st.text("abc", max_size=5))
def test_edit_distance_is_that_of_the_definition(a: str, b: str) -> None:
    assert edit_distance(a, b) == slow_distance(a, b)


def test_edit_distance_takes_any_tokens() -> None:
    assert edit_distance(np.array([1, 2, 3]), [1, 3]) == 1
    assert edit_distance(["the", "cat"], ("a", "cat", "sat")) == 2
    assert edit_distance([], []) == 0


def test_error_rate() -> None:
    assert error_rate([[1, 2], []], [[1, 3, 4], [5]]) == 3 / 4
    assert error_rate(["abcd"], ["x"]) == 4.0
    with pytest.raises(ts.DataError, match="got 1 and 2"):
        error_rate(["a"], ["a", "b"])
    with pytest.raises(ts.DataError, match="at least one token"):
        error_rate([""], [""])


def test_accuracy() -> None:
    scores = np.array([[[1.0, 2.0], [3.0, 0.0]], [[0.0, 1.0], [0.0, 1.0]]])
    assert accuracy(ts.tensor(scores), ts.tensor([[1, 1], [1, -100]])) == (2, 3)
    with pytest.raises(ts.ShapeError, match=r"targets of shape \(2, 2\), got \(2,\)"):
        accuracy(scores, np.array([1, 1]))


def test_totals() -> None:
    totals = Totals()
    totals.add({"a": (3, 2), "b": (0, 0)})
    totals.add({"a": (ts.tensor(5.0), 6)})
    again = Totals()
    again.load_state_dict(json.loads(json.dumps(totals.state_dict())))
    assert again.means()["a"] == 1.0
    assert math.isnan(again.means()["b"])


# --- early stopping ---------------------------------------------------------------------------------------------------


def test_stopping_counts_what_fails_in_a_row() -> None:
    stopping = EarlyStopping(patience=2, mode="max", least=0.5)
    better = [stopping.update(v) for v in (math.nan, 1.0, 1.5, 1.6, math.nan)]
    assert better == [False, True, False, True, False]
    assert (stopping.best, stopping.failed, stopping.over) == (1.6, 1, False)
    again = EarlyStopping(patience=2, mode="max", least=0.5)
    again.load_state_dict(json.loads(json.dumps(stopping.state_dict())))
    again.update(0.0)
    assert not again.over
    again.update(0.0)
    assert again.over
    for settings, message in (({"mode": "up"}, "'min' or 'max'"), ({"patience": -1}, "not negative, got -1")):
        with pytest.raises(ValueError, match=message):
            EarlyStopping(**settings)


# --- logs -------------------------------------------------------------------------------------------------------------


def rows_of(path: Path) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_a_table_grows_columns_and_is_wound_back(tmp_path: Path) -> None:
    path = tmp_path / "new" / "log.csv"
    log = CSVLog(path)
    log.rewind(0)
    log.write(1, {"loss": 0.1})
    log.write(2, {"valid/loss": 1 / 3, "loss": math.nan})
    CSVLog(path).write(3, {"loss": math.inf})
    rows = rows_of(path)
    assert [row["step"] for row in rows] == ["1", "2", "3"]
    assert [row["loss"] for row in rows] == ["0.1", "nan", "inf"]
    assert float(rows[1]["valid/loss"]) == 1 / 3
    assert rows[0]["valid/loss"] == ""
    log.rewind(2)
    log.write(3, {"loss": 9.0})
    assert [row["loss"] for row in rows_of(path)] == ["0.1", "nan", "9.0"]
    log.rewind(0)
    assert path.read_text() == "step\n"
    path.write_text("name,value\na,1\n")
    with pytest.raises(ts.DataError, match=r"a table of other columns \(name, value\)"):
        CSVLog(path).write(1, {"loss": 0.0})
    assert [each.name for each in path.parent.iterdir()] == ["log.csv"]


def test_lines_of_json_are_wound_back(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    log = JSONLog(path)
    log.rewind(0)
    for step in (1, 2, 3):
        log.write(step, {"loss": step / 3, "bad": math.nan})
    with open(path, "a") as file:
        file.write('{"step": 4, "lo')
    JSONLog(path).rewind(2)
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert rows == [{"step": 1, "loss": 1 / 3, "bad": None}, {"step": 2, "loss": 2 / 3, "bad": None}]


# --- TensorBoard ------------------------------------------------------------------------------------------------------

Fields = dict[int, list[Any]]


def records_of(path: Path) -> Iterator[bytes]:
    content = path.read_bytes()
    while content:
        (length,) = struct.unpack("<Q", content[:8])
        assert struct.unpack("<I", content[8:12])[0] == masked_crc(content[:8])
        data, check = content[12 : 12 + length], content[12 + length : 16 + length]
        assert struct.unpack("<I", check)[0] == masked_crc(data)
        yield data
        content = content[16 + length :]


def varint(data: bytes) -> tuple[int, bytes]:
    value = shift = 0
    while True:
        value |= (data[0] & 0x7F) << shift
        shift, more, data = shift + 7, data[0] & 0x80, data[1:]
        if not more:
            return value, data


def fields_of(data: bytes) -> Fields:
    """A protocol buffer's fields, as they stand."""
    found: Fields = {}
    while data:
        key, data = varint(data)
        kind = key & 7
        if kind == 0:
            value, data = varint(data)
        elif kind == 2:
            length, data = varint(data)
            value, data = data[:length], data[length:]
        else:
            size, code = {1: (8, "<d"), 5: (4, "<f")}[kind]
            (value,), data = struct.unpack(code, data[:size]), data[size:]
        found.setdefault(key >> 3, []).append(value)
    return found


def events_of(folder: Path) -> list[Fields]:
    (path,) = folder.glob("events.out.tfevents.*")
    return [fields_of(data) for data in records_of(path)]


def test_checksums() -> None:
    assert crc32c(b"") == 0
    assert crc32c(b"123456789") == 0xE3069283
    assert crc32c(bytes(32)) == 0x8A9136AA  # RFC 3720, B.4
    assert crc32c(bytes(range(32))) == 0x46DD794E
    assert crc32c(b"\xff" * 32) == 0x62A8AB43
    assert masked_crc(b"123456789") == 0xC78AB0E5
    assert record(b"") == bytes(8) + struct.pack("<I", masked_crc(bytes(8))) + struct.pack("<I", 0xA282EAD8)


def test_event_files(tmp_path: Path) -> None:
    board = TensorBoard(tmp_path / "run")
    board.rewind(0)
    assert not (tmp_path / "run").exists()
    board.write(3, {"loss": 0.5, "größe": -1e300})
    board.histograms(300, {"w": np.array([[0.0, 1.0], [2.0, np.nan]]), "same": np.full(3, 2.0), "none": np.zeros(0)})
    board.text(2**40, "note", "**x**")
    first, numbers, distributions, text = events_of(tmp_path / "run")
    assert first[3] == [b"brain.Event:2"]
    assert [event.get(2) for event in (first, numbers, distributions, text)] == [None, [3], [300], [2**40]]
    assert first[1][0] <= numbers[1][0] <= text[1][0]
    values = [fields_of(value) for value in fields_of(numbers[5][0])[1]]
    assert [(value[1][0].decode(), value[2][0]) for value in values] == [("loss", 0.5), ("größe", -math.inf)]
    values = [fields_of(value) for value in fields_of(distributions[5][0])[1]]
    assert [value[1][0] for value in values] == [b"w", b"same"]
    histogram = fields_of(values[0][5][0])
    assert [histogram[i][0] for i in range(1, 6)] == [0.0, 2.0, 3.0, 3.0, 5.0]
    limits, counts = (np.frombuffer(histogram[i][0], "<f8") for i in (6, 7))
    assert len(limits) == len(counts) == 30
    assert limits[-1] == 2.0
    assert counts[[0, 15, 29]].tolist() == [1, 1, 1]
    (value,) = (fields_of(value) for value in fields_of(text[5][0])[1])
    assert fields_of(value[8][0])[8] == [b"**x**"]


def png(width: int, height: int) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 6, 0, 0, 0)
    rows = b"".join(b"\0" + bytes(4 * width) for _ in range(height))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def test_tensorboard_reads_it(tmp_path: Path) -> None:
    accumulator = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator", reason="TensorBoard is not installed"
    )
    board = TensorBoard(tmp_path)
    for step in range(1, 6):
        board.write(step, {"loss": 1 / step})
    board.histograms(5, {"w": np.arange(100.0)})
    board.image(5, "picture", png(7, 3))
    board.text(5, "note", "hello")
    later = TensorBoard(tmp_path)
    later.rewind(3)  # steps 4 and 5 are forgotten
    later.write(4, {"loss": 40.0})
    read = accumulator.EventAccumulator(str(tmp_path), size_guidance={"scalars": 0, "tensors": 0, "histograms": 0, "images": 0})
    read.Reload()
    assert read.Tags()["scalars"] == ["loss"]
    assert [(event.step, event.value) for event in read.Scalars("loss")] == [
        (1, 1.0), (2, 0.5), (3, pytest.approx(1 / 3)), (4, 40.0)
    ]  # fmt: skip
    other = tmp_path / "other"
    board = TensorBoard(other)
    board.histograms(5, {"w": np.arange(100.0)})
    board.image(5, "picture", png(7, 3))
    board.text(5, "note", "hello")
    read = accumulator.EventAccumulator(str(other))
    read.Reload()
    histogram = read.Histograms("w")[0].histogram_value
    assert (histogram.min, histogram.max, histogram.num, histogram.sum) == (0.0, 99.0, 100.0, 4950.0)
    assert sum(histogram.bucket) == 100
    image = read.Images("picture")[0]
    assert (image.width, image.height, image.encoded_image_string) == (7, 3, png(7, 3))
    assert read.Tensors("note")[0].tensor_proto.string_val == [b"hello"]
    assert read.summary_metadata["note"].plugin_data.plugin_name == "text"


def test_what_is_no_picture_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ts.DataError, match="PNG"):
        TensorBoard(tmp_path).image(1, "picture", b"GIF89a")


# --- statistics -------------------------------------------------------------------------------------------------------


def test_norms_of_parameters_and_gradients() -> None:
    layer = ts.nn.Linear(2, 1)
    layer.weight.data, layer.bias.data = ts.tensor([[3.0, 4.0]]).data, ts.tensor([12.0]).data
    assert norms(arrays_of(layer.named_parameters())) == {
        "parameter_norm": 13.0, "gradient_norm": 0.0, "parameter/weight": 5.0, "parameter/bias": 12.0
    }  # fmt: skip
    layer(ts.tensor([[2.0, 0.0]])).sum().backward()
    found = norms(arrays_of(layer.named_parameters()))
    assert found["gradient/weight"] == 2.0
    assert found["gradient_norm"] == pytest.approx(math.sqrt(5))


# --- checkpoints ------------------------------------------------------------------------------------------------------


def test_a_checkpoint_fits_or_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "run.safetensors"
    layer = ts.nn.Linear(2, 2)
    parts = {"model": layer, "stopping": EarlyStopping(), "random": RandomState()}
    parts["stopping"].update(3.0)
    save_checkpoint(path, parts)
    drawn, weight = ts.random.rand(3).tolist(), layer.weight.tolist()
    layer.weight.data = ts.zeros((2, 2)).data
    parts["stopping"].update(2.0)
    load_checkpoint(path, parts)
    assert (ts.random.rand(3).tolist(), layer.weight.tolist(), parts["stopping"].best) == (drawn, weight, 3.0)

    other = {"stopping": EarlyStopping(), "random": RandomState(), "model": ts.nn.Linear(3, 2)}
    before = other["model"].weight.tolist()
    with pytest.raises(ts.CheckpointError, match=r"run.safetensors' does not fit: .*'weight' has shape \(2, 2\)"):
        load_checkpoint(path, other)
    assert other["stopping"].best is None
    assert other["model"].weight.tolist() == before
    with pytest.raises(ts.CheckpointError, match="holds the parts model, random, stopping, but this run has model"):
        load_checkpoint(path, {"model": layer})
    ts.save(tmp_path / "plain.safetensors", layer.state_dict())
    with pytest.raises(ts.CheckpointError, match="no run of a trainer"):
        load_checkpoint(tmp_path / "plain.safetensors", parts)
    with pytest.raises(ts.CheckpointError, match=r"no checkpoint '.*none.safetensors' to go on from"):
        load_checkpoint(tmp_path / "none.safetensors", parts)
    with pytest.raises(ts.CheckpointError, match=r"without dots, not 'a\.b'"):
        save_checkpoint(path, {"a.b": layer})

    class Odd:
        def state_dict(self) -> dict[str, Any]:
            return {"set": {1}}

        def load_state_dict(self, state: Any, /) -> None: ...

    with pytest.raises(ts.CheckpointError, match="neither a tensor nor JSON"):
        save_checkpoint(path, {"odd": Odd()})


# --- the trainer ------------------------------------------------------------------------------------------------------


class Tagger(ts.nn.Module):
    def __init__(self) -> None:
        self.embedding = ts.nn.Embedding(7, 4)
        self.recurrent = ts.nn.GRU(4, 5)
        self.dropout = ts.nn.Dropout(0.2)
        self.output = ts.nn.Linear(5, 3)

    def __call__(self, words: Any) -> ts.Tensor:
        hidden, _ = self.recurrent(self.embedding(ts.tensor(words.values)), lengths=words.lengths)
        return self.output(self.dropout(hidden))


def tagging_loss(model: Tagger, batch: Any) -> dict[str, Any]:
    words, tags = batch
    logits = model(words)
    loss = ts.nn.functional.sequence_cross_entropy(logits, ts.tensor(tags.values), words.lengths)
    valid = np.arange(len(tags.values))[:, None] < words.lengths
    return {"loss": loss, "count": valid.sum(), "accuracy": accuracy(logits, np.where(valid, tags.values, -100))}


def sentences(count: int, seed: int) -> list[tuple[np.ndarray, np.ndarray]]:
    rng = np.random.default_rng(seed)
    words = [rng.integers(0, 7, rng.integers(1, 9)) for _ in range(count)]
    return [(w, w % 3) for w in words]


class Run:
    """A trainer with everything on, over the same data."""

    def __init__(self, folder: Path | None, **settings: Any) -> None:
        ts.manual_seed(3)
        self.model = Tagger()
        optimizer = ts.optim.Adam(self.model.parameters(), lr=0.02)
        written = [] if folder is None else [CSVLog(folder / "log.csv"), JSONLog(folder / "log.jsonl")]
        self.trainer = Trainer(
            self.model,
            optimizer,
            tagging_loss,
            folder=folder,
            schedule=ts.optim.lr_scheduler.CosineAnnealingLR(optimizer, 100),
            clip=1.0,
            ema=ts.optim.EMA(self.model.parameters(), 0.9),
            logs=written,
            **settings,
        )
        self.loader = Loader(sentences(22, 0), 4, shuffle=True, prefetch=2)
        self.valid = Loader(sentences(9, 1), 4)

    def fit(self, steps: int, **settings: Any) -> str:
        settings = {"valid": self.valid, "valid_every": 5, "log_every": 4, "quiet": True} | settings
        if not self.trainer.step:
            ts.manual_seed(4)  # of dropout, whatever another run has drawn
        return self.trainer.fit(self.loader, steps=steps, **settings)

    def weights(self) -> dict[str, bytes]:
        state = {**self.model.state_dict(), **self.trainer.optimizer.state_dict(), **self.trainer.ema.state_dict()}
        return {name: value.numpy().tobytes() for name, value in state.items()}


@pytest.mark.parametrize(
    ("accumulate", "stop"),
    # An epoch has 6 batches: steps of 4 leave one of 2, steps of 7 are the epoch.
    [*itertools.product([1], [1, 4, 5, 6, 12, 17]), *itertools.product([4], [1, 2, 5, 10]), (2, 2), (2, 3), (7, 3)],
)
def test_a_run_that_was_stopped_goes_on_bit_for_bit(accumulate: int, stop: int, tmp_path: Path) -> None:
    whole = Run(tmp_path / "whole", accumulate=accumulate)
    assert whole.fit(20) == "steps"
    first = Run(tmp_path / "parts", accumulate=accumulate)
    assert first.fit(stop) == "steps"
    ts.random.rand(5)
    second = Run(tmp_path / "parts", accumulate=accumulate)
    assert second.fit(20, resume=True) == "steps"
    assert second.weights() == whole.weights()
    assert second.trainer.history == whole.trainer.history
    assert second.loader.state_dict() == whole.loader.state_dict()
    for name in ("log.csv", "log.jsonl"):
        assert (tmp_path / "parts" / name).read_text() == (tmp_path / "whole" / name).read_text()
    for name in ("best.safetensors", "last.safetensors"):
        ours, theirs = ts.load(tmp_path / "parts" / name), ts.load(tmp_path / "whole" / name)
        assert {key: value.tolist() for key, value in ours.items()} == {key: value.tolist() for key, value in theirs.items()}
        assert load_metadata(tmp_path / "parts" / name) == load_metadata(tmp_path / "whole" / name)


def test_two_fits_are_one_fit() -> None:
    whole, parts = Run(None), Run(None)
    whole.fit(13)
    parts.fit(7)
    parts.fit(13)
    assert parts.weights() == whole.weights()
    assert parts.trainer.history == whole.trainer.history


def test_the_loop_is_the_plain_loop() -> None:
    run, plain = Run(None), Run(None)
    run.fit(12)
    ts.manual_seed(4)
    optimizer, schedule, ema = plain.trainer.optimizer, plain.trainer.schedule, plain.trainer.ema
    step = 0
    while step < 12:
        for batch in plain.loader:
            optimizer.zero_grad()
            loss = tagging_loss(plain.model, batch)["loss"]
            loss.backward()
            ts.optim.clip_grad_norm(plain.model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            ema.update()
            step += 1
            if step == 12:
                break
    assert plain.weights() == run.weights()


def drawn_rows(count: int) -> np.ndarray:
    return np.random.default_rng(5).standard_normal((count, 3))


def squares(model: Any, rows: np.ndarray) -> Any:
    x = ts.tensor(rows)
    return {"loss": ((model(x) - x.sum(-1, keepdims=True)) ** 2).mean(), "count": len(rows)}


def trained(batches: list[np.ndarray], **settings: Any) -> tuple[np.ndarray, Trainer]:
    ts.manual_seed(2)
    model = ts.nn.Linear(3, 1, dtype=ts.float64)
    fit = {name: settings.pop(name) for name in ("steps", "epochs") if name in settings}
    trainer = Trainer(model, ts.optim.Adam(model.parameters(), lr=0.1), squares, clip=1.0, **settings)
    trainer.fit(batches, **fit, log_every=1, quiet=True)
    return np.append(model.weight.numpy(), model.bias.numpy()), trainer


def test_batches_that_make_a_step_together_are_one_large_batch() -> None:
    rows = drawn_rows(24)
    weights, trainer = trained(list(rows.reshape(6, 4, 3)), accumulate=3, steps=5)
    expected, large = trained(list(rows.reshape(2, 12, 3)), steps=5)
    np.testing.assert_allclose(weights, expected, rtol=1e-12)
    for ours, theirs in zip(trainer.history, large.history, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-12)


def test_what_is_left_of_an_epoch_makes_a_step() -> None:
    rows = drawn_rows(20)
    weights, trainer = trained(list(rows.reshape(5, 4, 3)), accumulate=2, epochs=2)
    expected, _ = trained([rows[:8], rows[8:16], rows[16:]], steps=6)
    assert trainer.step == 6
    np.testing.assert_allclose(weights, expected, rtol=1e-12)


def test_a_step_of_several_batches_that_is_not_finite_is_not_made() -> None:
    good, bad = drawn_rows(4), np.full((4, 3), np.inf)
    ts.manual_seed(2)
    model = ts.nn.Linear(3, 1, dtype=ts.float64)
    trainer = Trainer(model, ts.optim.SGD(model.parameters(), lr=0.1), squares, accumulate=2)
    with np.errstate(all="ignore"), pytest.raises(ts.NonFiniteError, match="at step 2"):
        trainer.fit([good, good, good, bad], steps=2, quiet=True)
    assert trainer.step == 1
    ts.manual_seed(2)
    other = ts.nn.Linear(3, 1, dtype=ts.float64)
    Trainer(other, ts.optim.SGD(other.parameters(), lr=0.1), squares).fit([good], steps=1, quiet=True)
    np.testing.assert_allclose(model.weight.numpy(), other.weight.numpy(), rtol=1e-12)


def test_the_loop_in_the_manual(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert ts.train.__doc__ is not None
    code = ts.train.__doc__.partition("::\n")[2].partition("\n\nThe trainer")[0]
    lines = [line for line in textwrap.dedent(code).splitlines() if line]
    assert len(lines) == 15
    run = Run(None)
    given = {
        "ts": ts,
        "training": sentences(22, 0),
        "model": run.model,
        "optimizer": run.trainer.optimizer,
        "loss_of": lambda model, batch: tagging_loss(model, batch)["loss"],
        "validate": lambda model: run.trainer.evaluate(run.valid)["loss"],
    }
    first = run.trainer.evaluate(run.valid)["loss"]
    monkeypatch.chdir(tmp_path)
    exec("\n".join(lines), given)
    assert given["stopping"].best < 0.7 * first
    assert given["loader"].epoch == 20 or given["stopping"].over
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["best.safetensors", "last.safetensors", "runs"]
    again = {name: part for name, part in given["parts"].items() if name != "random"} | {"random": RandomState()}
    load_checkpoint("last.safetensors", again)


def test_means_are_exact_whatever_the_batches() -> None:
    run = Run(None)
    data = sentences(9, 1)
    whole = run.trainer.evaluate(Loader(data, 9))
    for size in (1, 2, 4):
        parts = run.trainer.evaluate(Loader(data, size))
        assert parts == pytest.approx(whole, rel=1e-5)
    with ts.no_grad():
        run.model.eval()
        want = tagging_loss(run.model, next(iter(Loader(data, 9))))
    assert whole["loss"] == pytest.approx(want["loss"].item(), rel=1e-6)
    assert whole["accuracy"] == want["accuracy"][0] / want["accuracy"][1]


def test_evaluation_puts_modes_back_and_records_nothing() -> None:
    run = Run(None)
    run.model.dropout.eval()
    seen = []

    def loss(model: Tagger, batch: Any) -> ts.Tensor:
        result = tagging_loss(model, batch)["loss"]
        seen.append((model.training, model.recurrent.training, result.requires_grad))
        return result

    run.trainer.loss = loss
    assert run.trainer.evaluate(run.valid)["loss"] > 0
    assert set(seen) == {(False, False, False)}
    assert (run.model.training, run.model.recurrent.training, run.model.dropout.training) == (True, True, False)


def test_validation_sees_the_means_and_the_best_is_kept(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.fit(30)
    rows = [row for row in run.trainer.history if "valid/loss" in row]
    assert [row["step"] for row in rows] == [5, 10, 15, 20, 25, 30]
    assert rows[-1]["valid/loss"] < rows[0]["valid/loss"]
    best = min(rows, key=lambda row: row["valid/loss"])
    other = Run(tmp_path)
    assert other.trainer.load_best() == {name: value for name, value in best.items() if name != "step"}
    assert other.trainer.evaluate(other.valid)["loss"] == best["valid/loss"]
    with run.trainer.ema.swapped():
        assert run.trainer.evaluate(run.valid)["loss"] == rows[-1]["valid/loss"]
    assert run.trainer.evaluate(run.valid)["loss"] != rows[-1]["valid/loss"]


def test_rows_of_the_log(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.fit(8)
    assert [row["step"] for row in run.trainer.history] == [4, 5, 8]
    first = run.trainer.history[0]
    assert list(first) == ["step", "loss", "accuracy", "gradient_norm", "lr"]
    assert first["lr"] == pytest.approx(0.02 * (1 + math.cos(math.pi * 4 / 100)) / 2)
    assert [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()] == run.trainer.history


def test_patience_ends_training() -> None:
    values = iter([5.0, 3.0, 4.0, 3.5, 1.0])
    run = Run(None, patience=1, monitor="valid/error")
    assert run.fit(100, valid=lambda: {"error": next(values)}) == "patience"
    assert run.trainer.step == 20
    assert run.trainer.stopping.best == 3.0
    largest = Run(None, patience=0, monitor="valid/error", mode="max")
    falling = iter([1.0, 0.5])
    assert largest.fit(100, valid=lambda: {"valid/error": next(falling)}) == "patience"
    assert largest.trainer.step == 10


def test_plateaus_lower_the_rate() -> None:
    model = ts.nn.Linear(1, 1)
    optimizer = ts.optim.SGD(model.parameters(), lr=1.0)
    schedule = ts.optim.lr_scheduler.ReduceLROnPlateau(optimizer, factor=0.5, patience=0)
    trainer = Trainer(model, optimizer, lambda model, batch: (model(batch) * 0).sum(), schedule=schedule)
    trainer.fit([ts.ones((1, 1))], steps=3, valid=lambda: {"loss": 1.0}, quiet=True)
    assert optimizer.lr == 0.25


def test_a_signal_ends_training_after_the_step_and_saves(tmp_path: Path) -> None:
    run = Run(tmp_path / "run")

    def loss(model: Tagger, batch: Any) -> Mapping[str, Any]:
        if run.trainer.step == 6:
            signal.raise_signal(signal.SIGINT)
        return tagging_loss(model, batch)

    run.trainer.loss = loss
    assert run.fit(100) == "signal"
    assert (run.trainer.step, run.trainer.signal) == (7, signal.SIGINT)
    assert not [thread for thread in threading.enumerate() if thread.name == "prefetch"]
    again, whole = Run(tmp_path / "run"), Run(tmp_path / "whole")
    again.fit(12, resume=True)
    whole.fit(12)
    assert again.weights() == whole.weights()
    assert again.trainer.signal == 0


def test_it_runs_outside_the_main_thread() -> None:
    run, ended = Run(None), []
    thread = threading.Thread(target=lambda: ended.append(run.fit(2)))
    thread.start()
    thread.join()
    assert ended == ["steps"]


def test_time_ends_training() -> None:
    assert Run(None).fit(10**9, seconds=0.05) == "seconds"


def test_epochs_are_passes() -> None:
    run = Run(None)
    assert run.trainer.fit(run.loader, epochs=2, quiet=True) == "steps"
    assert (run.trainer.step, run.loader.epoch, run.loader.position) == (12, 1, 6)  # all of the second pass
    assert run.trainer.fit(run.loader, epochs=2, quiet=True) == "steps"
    assert run.trainer.step == 12


def test_a_carried_state_is_saved_and_streams_go_on(tmp_path: Path) -> None:
    class Carried:
        """Truncated backpropagation: the state goes on from chunk to chunk."""

        def __init__(self) -> None:
            self.h: ts.Tensor | None = None

        def __call__(self, model: Any, chunk: Any) -> ts.Tensor:
            y, h = model.recurrent(model.embedding(ts.tensor(chunk.inputs)), None if chunk.starts else self.h)
            self.h = h.detach()
            return ts.nn.functional.sequence_cross_entropy(model.output(y), ts.tensor(chunk.targets % 3))

        def state_dict(self) -> dict[str, Any]:
            return {} if self.h is None else {"h": self.h}

        def load_state_dict(self, state: Mapping[str, Any]) -> None:
            self.h = state.get("h")

    def run(folder: str, steps: int, resume: bool = False) -> list[bytes]:
        ts.manual_seed(0)
        model = Tagger()
        trainer = Trainer(model, ts.optim.Adam(model.parameters()), Carried(), folder=tmp_path / folder)
        stream = TextStream(np.arange(200) ** 2 % 7, 2, 5)
        trainer.fit(stream, steps=steps, log_every=3, resume=resume, quiet=True)
        return [p.detach().numpy().tobytes() for p in model.parameters()]

    want = run("whole", 31)
    run("parts", 11)
    assert run("parts", 31, resume=True) == want


class Kept(Log):
    def __init__(self) -> None:
        self.rows: list[tuple[int, Mapping[str, float]]] = []
        self.arrays: list[tuple[int, list[str]]] = []

    def write(self, step: int, values: Mapping[str, float]) -> None:
        self.rows.append((step, values))

    def histograms(self, step: int, arrays: Mapping[str, Any]) -> None:
        self.arrays.append((step, sorted(arrays)))


def test_statistics_are_of_gradients_before_they_are_clipped() -> None:
    kept = Kept()
    model = ts.nn.Linear(1, 1, bias=False)
    optimizer = ts.optim.SGD(model.parameters(), lr=0.1)
    loss = lambda model, x: model(x).sum()
    trainer = Trainer(model, optimizer, loss, clip=1.0, logs=[kept], statistics=2)
    trainer.fit([ts.tensor([[8.0]])], steps=4, log_every=100, quiet=True)
    assert [step for step, _ in kept.rows] == [2, 4]
    assert kept.rows[0][1]["gradient/weight"] == kept.rows[0][1]["gradient_norm"] == 8.0
    assert kept.arrays[0] == (2, ["gradient/weight", "parameter/weight"])


def test_what_is_not_finite_stops_before_the_step(tmp_path: Path) -> None:
    run = Run(tmp_path / "run")

    def loss(model: Tagger, batch: Any) -> ts.Tensor:
        result = tagging_loss(model, batch)["loss"]
        return result * math.nan if run.trainer.step == 7 else result

    run.trainer.loss = loss
    with pytest.raises(ts.NonFiniteError, match="the loss is nan at step 8"):
        run.fit(20)
    assert all(np.isfinite(p.detach().numpy()).all() for p in run.model.parameters())
    again = Run(tmp_path / "run")
    again.fit(5, resume=True)
    assert again.trainer.step == 5
    again.model.output.bias.data = ts.tensor([math.nan] * 3).data
    with pytest.raises(ts.NonFiniteError, match=r"the parameter output.bias is not finite after step 5"):
        again.trainer.save()


def test_another_run_is_not_overwritten(tmp_path: Path) -> None:
    Run(tmp_path).fit(2)
    before = (tmp_path / "last.safetensors").read_bytes()
    with pytest.raises(ts.CheckpointError, match="is of another run; go on from it with resume=True"):
        Run(tmp_path).fit(2)
    assert (tmp_path / "last.safetensors").read_bytes() == before


def test_refusals(tmp_path: Path) -> None:
    def fit(batches: Any = None, trainer: Any = None, **settings: Any) -> Any:
        run = Run(None)
        return (trainer or run.trainer).fit(run.loader if batches is None else batches, **({"quiet": True} | settings))

    def with_loss(result: Any) -> Any:
        run = Run(None)
        run.trainer.loss = lambda model, batch: result
        return run.trainer

    cases: list[tuple[Any, type[Exception], str]] = [
        (lambda: fit(), ValueError, "nothing would end training"),
        (lambda: fit(iter([1]), epochs=1), ValueError, "epochs=1 needs batches with a length"),
        (lambda: fit([], steps=1), ts.DataError, "no batches to train with"),
        (lambda: Run(None, accumulate=0), ValueError, "at least 1 batch, got accumulate=0"),
        (lambda: fit(iter([]), steps=1), ts.DataError, "no batches after step 0; give a list or a Loader"),
        (lambda: fit(iter([1]), steps=1, valid=[1]), ValueError, "give valid_every"),
        (lambda: fit(steps=1, valid=[1], valid_every=0), ValueError, "valid_every is at least 1, got 0"),
        (lambda: fit(steps=1, log_every=0), ValueError, "log_every is at least 1, got 0"),
        (lambda: fit(steps=1, save_every=-2), ValueError, "save_every is at least 1, got -2"),
        (lambda: fit(steps=1, resume=True), ts.CheckpointError, "without a folder has nothing to resume"),
        (lambda: fit(steps=1, resume=True, trainer=Run(tmp_path).trainer), ts.CheckpointError, "no checkpoint .*last"),
        (lambda: fit(steps=9, valid=lambda: {"x": 1.0}), ValueError, "no metric 'valid/loss' to monitor, only valid/x"),
        (lambda: fit(steps=1, trainer=with_loss(1.0)), ts.DTypeError, "a tensor of one number, .* got float"),
        (lambda: fit(steps=1, trainer=with_loss(ts.zeros(3))), ts.DTypeError, r"got shape \(3,\)"),
        (lambda: fit(steps=1, trainer=with_loss({"x": 1})), ts.DTypeError, "got none"),
        (lambda: Run(None).trainer.evaluate([]), ts.DataError, "no batches to evaluate with"),
        (lambda: Run(None).trainer.load_best(), ts.CheckpointError, "no best checkpoint"),
        (lambda: Run(None, parts={"model": RandomState()}), ValueError, "a part of its own called 'model'"),
    ]
    for call, error, message in cases:
        with pytest.raises(error, match=message):
            call()


def test_it_shows_how_it_goes(capsys: pytest.CaptureFixture[str]) -> None:
    Run(None).fit(5, quiet=False)
    shown = capsys.readouterr().out
    assert "step 5: loss " in shown
    assert "valid/loss " in shown
