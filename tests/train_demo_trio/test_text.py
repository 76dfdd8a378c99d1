"""What is read, what is left out of it, the turns that are made of it, and the packing of rows."""

from __future__ import annotations

from collections import Counter

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from scripts.train_demo_trio.corpus import (
    RUN,
    STOCK,
    Document,
    pieces,
    runs_of,
    sift,
)
from scripts.train_demo_trio.streams import Packer, Stream
from scripts.train_demo_trio.turns import turns_of


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
    return {document.id: document.text for document in sift(documents, forbidden)}


@given(st.text(alphabet="ab .\n", max_size=300), st.integers(5, 40))
def test_pieces_are_short_and_lose_only_line_ends(text: str, size: int) -> None:
    cut = pieces(text, size)
    assert all(len(piece) <= size for piece in cut)
    assert "".join(cut).replace("\n", "") == text.replace("\n", "")


@given(st.lists(st.sampled_from("abc"), max_size=40), st.lists(st.sampled_from("abc"), max_size=40))
def test_runs_are_the_same_where_the_words_are(one: list[str], other: list[str]) -> None:
    first, second = runs_of(" ".join(one))[0], runs_of(" , ".join(other).upper())[0]
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
    assert sift([document], [words(0, 20)]) == []


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


def test_turns_of_every_kind_of_source() -> None:
    answer = "Asthma is a disease of the airways. It makes breathing hard. " * 3
    documents = {
        "medquad": f"Question: What is (are) Asthma ?\n\nAnswer: {answer}",
        "mts-dialog-train": "Dialogue:\nDoctor: Any allergies?\nPatient: No.\n\nALLERGY:\nNone.",
        "aci-bench-train": "[doctor] hi\n[patient] hello\nNOTE: CHIEF COMPLAINT\nA cough.",
        "mtsamples-noleak": "ALLERGIES: No known drug allergies.\nPLAN: Follow up in a week.",
        "gsm8k-train": "Question: 2 and 2?\nAnswer: 2+2=4.\n#### 4",
        "openstax-microbiology": "Cells\n\n"
        + "A cell is the smallest unit that lives by itself. All organisms are made of cells. " * 3,
    }
    for source, text in documents.items():
        turns = turns_of(source, [Document(source, "1", text)], "seed")
        assert turns and all(turn.user and turn.answer for turn in turns), source
        assert turns == turns_of(source, [Document(source, "1", text)], "seed")
    for text in ("no talk at all", "[doctor] hi"):  # what is left of a visit may be little
        assert turns_of("aci-bench-train", [Document("aci-bench-train", "1", text)], "s") == []
    (problem,) = turns_of(
        "gsm8k-train", [Document("gsm8k-train", "1", documents["gsm8k-train"])], "s"
    )
    assert problem.answer.endswith("The answer is 4.")


def stream(lengths: list[int], first: int, *, whole: bool) -> Stream:
    """Units whose tokens tell stream and unit."""
    ids = [first + i for i, length in enumerate(lengths) for _ in range(length)]
    starts = np.cumsum([0, *lengths])
    return Stream(np.array(ids, np.uint16), np.ones(len(ids), np.float16), starts, whole)


def test_turns_are_never_cut_and_gaps_are_filled() -> None:
    streams = {
        "turns:x": stream([23] * 40, 1000, whole=True),
        "text": stream([500] * 3, 0, whole=False),
    }
    packer = Packer(streams, {"turns:x": 9.0, "text": 0.001}, 64, seed=1)
    for row in packer.rows(30)[0]:
        found = Counter(int(token) for token in row)
        assert sum(found.values()) == 65
        assert all(count % 23 == 0 for token, count in found.items() if token >= 1000)


def test_a_restored_packer_goes_on_with_the_same_rows() -> None:
    streams = {"a": stream([30] * 9, 0, whole=False), "b": stream([20] * 9, 100, whole=True)}
    epochs = {"a": 1.0, "b": 2.0}
    first = Packer(streams, epochs, 32, seed=5)
    first.rows(7)
    other = Packer(streams, epochs, 32, seed=6)
    other.restore(first.state())
    assert (first.rows(20)[0] == other.rows(20)[0]).all()
