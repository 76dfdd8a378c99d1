"""What is read, what is left out of it, and what is carried: the recipe's own text handling."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scripts.train_demo_trio import pack
from scripts.train_demo_trio.corpus import PIECE, Document, pieces, thinned
from scripts.train_demo_trio.overlap import RUN, STOCK, Words
from scripts.train_demo_trio.sieve import Sieve


def words(first: int, count: int) -> str:
    return " ".join(f"w{number}" for number in range(first, first + count))


def train_id(source: str, number: int = 0) -> str:
    """The next id of a document that is trained on."""
    while Document(source, f"d{number}", "").held_out:
        number += 1
    return f"d{number}"


def held_id(source: str) -> str:
    number = 0
    while not Document(source, f"d{number}", "").held_out:
        number += 1
    return f"d{number}"


def sifted(documents: list[Document], forbidden: list[str]) -> dict[str, str]:
    kept, _ = Sieve(forbidden).sift(documents)
    return {document.id: document.text for document in kept}


@given(st.text(alphabet="ab .\n", max_size=300), st.integers(5, 40))
def test_pieces_are_short_and_lose_only_line_ends(text: str, size: int) -> None:
    cut = pieces(text, size)
    assert all(len(piece) <= size for piece in cut)
    assert "".join(cut).replace("\n", "") == text.replace("\n", "")


def test_pieces_end_where_a_sentence_does() -> None:
    sentence = "She was seen in the clinic today. "
    text = sentence * 300
    cut = pieces(text)
    assert len(cut) == 3 and all(len(piece) <= PIECE for piece in cut)
    assert all(piece.endswith("today. ") for piece in cut)
    assert pieces("short") == ["short"]


def test_a_part_of_a_source_is_taken_from_all_of_it() -> None:
    documents = [Document("s", str(i), "x" * 100) for i in range(100)]
    kept = thinned(documents, 1000)
    assert 9 <= len(kept) <= 11 and int(kept[-1].id) > 80
    assert thinned(documents, 0) == documents


@given(st.lists(st.sampled_from("abc"), max_size=40), st.lists(st.sampled_from("abc"), max_size=40))
def test_runs_are_the_same_where_the_words_are(one: list[str], other: list[str]) -> None:
    known = Words()
    first, second = known.runs(" ".join(one))[0], known.runs(" , ".join(other).upper())[0]
    for i, a in enumerate(first):
        for j, b in enumerate(second):
            assert (a == b) == (one[i : i + RUN] == other[j : j + RUN])
    assert len(first) == max(0, len(one) - RUN + 1)


def test_lines_that_an_evaluation_file_holds_are_left_out() -> None:
    source, name = "mtsamples-noleak", train_id("mtsamples-noleak")
    text = f"HISTORY: mine\n{words(100, 20)}\nPLAN: also mine"
    assert sifted([Document(source, name, text)], [f"before {words(101, 13)} after"]) == {
        name: "HISTORY: mine\nPLAN: also mine"
    }
    assert sifted([Document(source, name, text)], [words(101, 12)]) == {name: text}


def test_a_dialogue_with_a_hole_goes_whole() -> None:
    source, name = "mts-dialog-train", train_id("mts-dialog-train")
    document = Document(source, name, f"Dialogue:\n{words(0, 20)}\n\nPLAN:\nrest")
    kept, counted = Sieve([words(0, 20)]).sift([document])
    assert kept == [] and counted[0].whole_dropped == 1 and counted[0].kept == 0


def test_what_is_held_out_is_not_in_the_rest() -> None:
    source = "e3c-en-ccby"
    held = Document(source, held_id(source), words(0, 30))
    other = Document(source, train_id(source), f"own words\n{words(0, 30)}")
    assert sifted([held, other], []) == {held.id: held.text, other.id: "own words"}


def test_stock_phrases_stay() -> None:
    source = "mtsamples-noleak"
    names = [train_id(source, 1000 * i) for i in range(STOCK + 1)]
    notes = [
        Document(source, name, f"{words(1000 * i, 90)}\n{words(0, 13)}")
        for i, name in enumerate(names, 1)
    ]
    assert all(words(0, 13) in text for text in sifted(notes, [words(0, 13)]).values())
    fewer = sifted(notes[:-1], [words(0, 13)])
    assert len(fewer) == STOCK and not any(words(0, 13) in text for text in fewer.values())


def test_what_was_read_before_is_not_read_again() -> None:
    source = "medquad"
    first, second, third = (train_id(source, n) for n in (0, 1000, 2000))
    documents = [
        Document(source, first, words(0, 100)),
        Document(source, second, f"{words(500, 20)} {words(0, 80)}"),
        Document(source, third, f"{words(600, 80)} {words(0, 40)}"),
    ]
    assert set(sifted(documents, [])) == {first, third}


def test_a_pack_comes_back_as_it_was(tmp_path: Path) -> None:
    documents = [Document("s", "1", "naïve\u2028 text\n\nsecond"), Document("s", "2", "")]
    packed = pack.Pack("tests", documents, {"target.tokenizer.json": b"{}", "proxy.spm": b"\0\n"})
    path = pack.write(tmp_path, packed, ["s: 2 read"])
    again = pack.read(tmp_path)
    assert list(again.documents) == documents and again.files == packed.files
    assert again.preset == pack.preset_of(tmp_path) == "tests"
    manifest = json.loads((tmp_path / pack.MANIFEST).read_text())
    assert manifest["bytes"] == path.stat().st_size and manifest["sources"] == ["s: 2 read"]
    first = path.read_bytes()
    pack.write(tmp_path, packed, [])
    assert path.read_bytes() == first


def test_a_pack_that_was_changed_is_refused(tmp_path: Path) -> None:
    path = pack.write(tmp_path, pack.Pack("tests", [], {}), [])
    path.write_bytes(path.read_bytes() + b"\0")
    with pytest.raises(pack.BadPack):
        pack.read(tmp_path)
