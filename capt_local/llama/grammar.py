"""llama.cpp's grammars: which tokens may come next in an answer of a prescribed form.

A grammar is GBNF text. llama.cpp prints what is wrong with one, and the grammar, on standard
error; here that is caught and becomes one line that quotes nothing of the file.
"""

from __future__ import annotations

import codecs
import contextlib
import ctypes
import os
import re
import threading
import weakref
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from capt_local.errors import ModelError, UsageError
from capt_local.hardening import own_streams, run_apart
from capt_local.llama.library import Library, library
from capt_local.llama.weights import Weights
from capt_local.tokenization.vocabulary import BoolArray, IntArray

LARGEST_GRAMMAR = 1 << 18  # bytes
MOST_REPETITIONS = 1999
_LONGEST_READING = 20  # seconds
_LARGEST_REASON = 1 << 12  # bytes
# llama.cpp reads groups by recursion; this many are far from the end of a thread's stack.
_DEEPEST = 100
_NOT_STRUCTURE = re.compile(r'"(?:\\.|[^"\\])*"|\[(?:\\.|[^\]\\])*\]|#[^\n]*', re.DOTALL)
_NUMBER = re.compile(r"(?<=[{,])\s*(\d+)\s*(?=[,}])")
_LINE_OF_ERROR = b"error parsing grammar: "
_NEEDS_VOCABULARY = "no vocab to parse token"
_CANDIDATE = np.dtype([("id", np.int32), ("logit", np.float32), ("p", np.float32)])


class Grammar:
    """A grammar on the tokens of one model; see `decoding.structured.Constraint`.

    Args:
        weights: of the model.
        grammar: in GBNF; its first rule is `root`.
        lead: what the model's tokenizer puts in front of the answer, which is no part of it; the
            answer may begin with it or not.

    Raises:
        UsageError: llama.cpp cannot read the grammar.
    """

    def __init__(self, weights: Weights, grammar: str, lead: bytes = b"") -> None:
        self._vocabulary = weights.vocabulary
        self._half = b""  # the first bytes of a character that is not whole yet
        # The sampler looks tokens up in the model as long as it is used.
        self._weights = weights
        root, text = _with_lead(grammar, lead)
        found = library()
        self._sampler = _parsed(found, found.api.llama_model_get_vocab(weights.handle), text, root)
        self._array, self._item = found.api.llama_token_data_array, found.api.llama_token_data
        address = ctypes.c_void_p
        self._take = found.function("llama_sampler_accept", None, address, ctypes.c_int32)
        self._mark = found.function("llama_sampler_apply", None, address, address)
        free = found.function("llama_sampler_free", None, address)
        weakref.finalize(self, free, self._sampler)

    def allowed(self, tokens: Sequence[int] | IntArray) -> BoolArray:
        """Which tokens may come next, shape (n,). End tokens may where the form is complete.

        Control tokens are no text and never allowed, although llama.cpp takes them for the
        characters of their names.
        """
        ids = np.asarray(tokens, np.int32)
        candidates = np.zeros(len(ids), _CANDIDATE)
        candidates["id"] = ids
        self._apply(candidates)
        possible = self._vocabulary.is_text[ids] | self._vocabulary.is_end[ids]
        allowed: BoolArray = np.isfinite(candidates["logit"]) & possible
        for place in np.flatnonzero(allowed).tolist():
            allowed[place] = self._goes_on(int(ids[place]))
        return allowed

    def _goes_on(self, token: int) -> bool:
        """Whether a token goes on with UTF-8. llama.cpp takes much that is none for characters."""
        if self._vocabulary.is_end[token]:
            return not self._half
        piece = self._vocabulary.piece(token)
        if piece.isascii():
            return not self._half
        return _half_behind(self._half + piece) is not None

    def accept(self, token: int) -> None:
        """Goes one token on; ValueError if it is not allowed: llama.cpp would end the process."""
        if not self.allowed((token,))[0]:
            raise ValueError("the grammar does not allow this token")
        self._take(self._sampler, token)
        self._half = _half_behind(self._half + self._vocabulary.piece(token)) or b""

    @property
    def complete(self) -> bool:
        """Whether the answer may end here."""
        ends = self._vocabulary.end_ids
        if not len(ends):
            raise ModelError("The model has no token that ends an answer.")
        return bool(self.allowed(ends[:1])[0])

    def _apply(self, candidates: np.ndarray[Any, np.dtype[Any]]) -> None:
        if self._weights.handle is None:
            raise ValueError("these weights are closed")
        data = candidates.ctypes.data_as(ctypes.POINTER(self._item))
        array = self._array(data=data, size=len(candidates), selected=-1, sorted=False)
        self._mark(self._sampler, ctypes.byref(array))


def _half_behind(text: bytes) -> bytes | None:
    """The first bytes of a character at the end of a text; None if it is no UTF-8."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    try:
        decoder.decode(text)
    except UnicodeDecodeError:
        return None
    half: bytes = decoder.getstate()[0]
    # Python waits for the third byte of a surrogate before it refuses it.
    return None if half[:1] == b"\xed" and half[1:2] > b"\x9f" else half


def check_grammar(grammar: str, name: str = "The grammar") -> None:
    """Refuses a grammar that llama.cpp cannot read, before any model is loaded.

    It is read in a process of its own: llama.cpp cannot be stopped, and takes minutes for some
    ambiguous grammars (optional parts in repetitions of repetitions). One that names tokens of a
    model (<think>) can only be told when the model is there.

    Raises:
        UsageError: with the grammar's `name` and the line of the mistake, and nothing of what
            stands there.
    """
    _check_size(grammar, name)
    program = "from capt_local.llama.grammar import read_input; read_input()"
    try:
        answer, code = run_apart(
            program, grammar.encode(), seconds=_LONGEST_READING, largest=_LARGEST_REASON
        )
    except TimeoutError:
        raise UsageError(
            f"{name} is too ambiguous: llama.cpp takes over {_LONGEST_READING} s to read it. Use "
            "fewer optional or repeated parts inside of what is itself repeated."
        ) from None
    reason = answer.decode("utf-8", "replace").strip()
    if reason or code != 0:
        raise UsageError(f"{name} {reason or 'ends llama.cpp, so it cannot be used.'}")


def read_input() -> None:
    """In the process of `check_grammar`: reads a grammar, and prints what is wrong with it."""
    incoming, outgoing = own_streams()
    try:
        _parsed(library(), None, incoming.read().decode(), "root", "")
    except _NeedsVocabulary:
        return
    except UsageError as error:
        outgoing.write(str(error).encode())
        outgoing.flush()


class _NeedsVocabulary(UsageError):
    """The grammar names tokens, which are a model's."""


def _parsed(
    found: Library, vocab: int | None, text: str, root: str, name: str = "The grammar"
) -> int:
    """The address of a sampler for a grammar."""
    _check_size(text, name)
    address = ctypes.c_void_p
    make = found.function(
        "llama_sampler_init_grammar", address, address, ctypes.c_char_p, ctypes.c_char_p
    )
    found.forget_errors()
    with _caught_stderr() as printed:
        sampler = make(vocab, text.encode(), root.encode())
    if sampler:
        return int(sampler)
    reason = _reason(b"".join(printed), text) or found.last_error().rstrip(".")
    reason = reason or "llama.cpp gives no reason"
    kind = _NeedsVocabulary if reason.startswith(_NEEDS_VOCABULARY) else UsageError
    raise kind(f"{name} cannot be used: {reason}.")


def _check_size(text: str, name: str) -> None:
    """Refuses what llama.cpp would take a wrong way, or not survive."""
    if not text.strip():
        raise UsageError(f"{name} is empty.")
    if "\0" in text:  # the end of a text in C
        raise UsageError(f"{name} holds a null character.")
    if len(text.encode()) > LARGEST_GRAMMAR:
        raise UsageError(f"{name} is larger than {LARGEST_GRAMMAR >> 10} KiB.")
    structure = _NOT_STRUCTURE.sub("", text)
    # llama.cpp takes more for "any number", without a word.
    if any(int(number) > MOST_REPETITIONS for number in _NUMBER.findall(structure)):
        raise UsageError(f"{name} repeats something more than {MOST_REPETITIONS} times.")
    depth = deepest = 0
    for character in structure:
        depth += (character == "(") - (character == ")")
        deepest = max(deepest, depth)
    if deepest > _DEEPEST:
        raise UsageError(f"{name} has groups in groups, more than {_DEEPEST} deep.")


def _with_lead(grammar: str, lead: bytes) -> tuple[str, str]:
    """The name of the first rule, and a grammar that lets the lead stand before the answer."""
    if not lead:
        return "root", grammar
    name = "led"
    while name in grammar:
        name += "-root"
    return name, f'{grammar}\n{name} ::= "{lead.decode()}"? root\n'


def _reason(printed: bytes, text: str) -> str:
    """Why llama.cpp could not read a grammar: its own words, without what they quote."""
    _, found, said = printed.partition(_LINE_OF_ERROR)
    if not found:
        return ""
    # What it prints is "REASON at REST", an empty line and the whole grammar again.
    said = said[: len(said) - len(text.encode()) - 3]
    words, _, rest = said.decode("utf-8", "replace").partition(" at ")
    if words.startswith("sto"):  # the name of a function of C++
        words = "a number is too large"
    if words.startswith(("Undefined rule identifier", "invalid token")):
        words = words.partition(" '")[0]
    line = text.count("\n", 0, len(text) - len(rest)) + 1
    return f"line {line}: {words}" if rest and words != _NEEDS_VOCABULARY else words


@contextlib.contextmanager
def _caught_stderr() -> Iterator[list[bytes]]:
    """Catches what C code prints on standard error; it is in the list behind the block."""
    printed: list[bytes] = []
    try:
        saved = os.dup(2)
    except OSError:  # there is none, so nothing can be printed on it
        yield printed
        return
    reading, writing = os.pipe()

    def read() -> None:
        with open(reading, "rb") as stream:
            printed.append(stream.read())

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    os.dup2(writing, 2)
    os.close(writing)
    try:
        yield printed
    finally:
        os.dup2(saved, 2)  # the last writer has gone, so the reader ends
        os.close(saved)
        reader.join()
