"""Where a prompt ends and a given answer begins, in tokens.

After a turn the answer begins a text of its own. Raw text goes on, and its last word may go on in
the answer: then the canonical tokens of the whole have no boundary where the answer begins. So the
whole is tokenized. Tokens that lie in the prompt are the prompt, and the token that straddles the
boundary is scored given the bytes of the prompt that it begins with.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass

from capt_local.alignment.context import CanonicalContext
from capt_local.errors import ModelError
from capt_local.prompting.build import build_raw
from capt_local.prompting.messages import Prompt, Segment
from capt_local.tokenization.tokenizer import TextTokenizer


@dataclass(frozen=True, slots=True)
class Placed:
    """A given answer behind a prompt.

    Attributes:
        prompts: by role; of raw text perhaps without its last bytes.
        given: these last bytes, which the first token begins with.
        tokens: of the target, from the end of its prompt to the end of the answer.
        size: bytes of the answer.
        counts: tokens of prompt and answer together, by role.
    """

    prompts: Mapping[str, Prompt]
    given: bytes
    tokens: tuple[int, ...]
    size: int
    counts: Mapping[str, int]


def place(
    role: str,
    prompts: Mapping[str, Prompt],
    tokenizers: Mapping[str, TextTokenizer],
    answer: bytes,
) -> Placed:
    """Finds the tokens of an answer.

    Args:
        role: whose tokens are scored.
        prompts: by role.
        tokenizers: by role.
        answer: UTF-8, not empty.

    Raises:
        ModelError: the vocabulary cannot spell the answer.
    """
    try:
        placed = _placed(role, prompts, tokenizers, answer)
    except ValueError:
        # The reason names a byte of the text.
        raise ModelError(
            f"The vocabulary of the {role} cannot spell every byte of the answer."
        ) from None
    counts = {role: len(placed.prompts[role].tokens) + len(placed.tokens)}
    for other, prompt in prompts.items():
        if other != role:
            counts[other] = _proxy_tokens(prompt, tokenizers[other], answer)
    return dataclasses.replace(placed, counts=counts)


def _placed(
    role: str,
    prompts: Mapping[str, Prompt],
    tokenizers: Mapping[str, TextTokenizer],
    answer: bytes,
) -> Placed:
    own, tokenizer = prompts[role], tokenizers[role]
    if not own.goes_on:
        tokens = tokenizer.encode(answer, start=own.starts_fresh)
        return Placed(prompts, b"", tuple(tokens), len(answer), {})
    text = own.segments[-1].text or b""
    tokens = tokenizer.encode(text + answer, start=True)
    count, end = _inside(tokens, tokenizer, len(tokenizer.lead + text))
    cut = end - len(tokenizer.lead)
    if cut <= 0:  # one word from the very beginning: its parts are scored as generating makes them
        tokens = tokenizer.encode(answer, start=False)
        return Placed(prompts, b"", tuple(tokens), len(answer), {})
    known = Segment(tuple(tokens[:count]), text[:cut], evidence=True)
    shorter = {role: dataclasses.replace(own, segments=(*own.segments[:-1], known))}
    for other, prompt in prompts.items():
        if other != role:
            same = cut == len(text)
            shorter[other] = (
                prompt if same else build_raw(text[:cut], tokenizers[other], role=other)
            )
    return Placed(shorter, text[cut:], tuple(tokens[count:]), len(answer), {})


def _inside(tokens: list[int], tokenizer: TextTokenizer, size: int) -> tuple[int, int]:
    """How many tokens lie within the first `size` bytes, and where the last of them ends."""
    end = 0
    for count, token in enumerate(tokens):
        behind = end + len(tokenizer.vocabulary.piece(token))
        if behind > size:
            return count, end
        end = behind
    return len(tokens), end


def _proxy_tokens(prompt: Prompt, tokenizer: TextTokenizer, answer: bytes) -> int:
    """Tokens that prompt and answer take in a proxy; see `Proxy.start`."""
    if prompt.goes_on:
        last = prompt.segments[-1]
        head = prompt.tokens[: len(prompt.tokens) - len(last.tokens)]
        context = CanonicalContext(tokenizer, head, last.text or b"", start=True)
    else:
        context = CanonicalContext(tokenizer, prompt.tokens, start=prompt.starts_fresh)
    context.append(answer)
    return len(context.tokens)
