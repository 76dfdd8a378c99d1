"""How many new positions a proxy decodes for each token of the target; no model runs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from capt_local.alignment.context import CanonicalContext
from capt_local.bundles import store
from capt_local.llama.weights import Weights
from capt_local.tokenization.tokenizer import TextTokenizer
from scripts.alignment.table import Table
from scripts.real_vocabularies import vocabulary

# Target and proxy, by the names of llama.cpp's vocabulary files.
REAL = (("qwen2", "llama-spm"), ("qwen2", "llama-bpe"), ("llama-bpe", "llama-spm"))
_TITLES = {"qwen2": "Qwen2", "llama-spm": "Llama-2", "llama-bpe": "Llama-3"}


def positions(texts: Sequence[bytes], bundle: str) -> list[Table]:
    """Real vocabularies, and those of a bundle."""
    rows = []
    for target, proxy in REAL:
        name = f"{_TITLES[target]} against {_TITLES[proxy]}"
        rows.append(
            (name, *counted(_opened(vocabulary(target)), _opened(vocabulary(proxy)), texts))
        )
    models = store.find(bundle).models
    own = (_opened(models["target"].path), _opened(models["expert"].path))
    rows.append((f"bundle {bundle}", *counted(*own, texts)))
    columns = (
        "target against proxy", "steps", "new positions a step", "steps that take tokens back",
        "tokens taken back a step", "most new positions",
    )  # fmt: skip
    return [Table("New positions of a proxy along texts", columns, tuple(rows))]


def counted(
    target: TextTokenizer, proxy: TextTokenizer, texts: Sequence[bytes]
) -> tuple[int, float, float, float, int]:
    """Steps, new positions a step, share of steps with rollback, tokens taken back, the most."""
    steps = new = rolled = back = most = 0
    for text in texts:
        context = CanonicalContext(proxy, [], start=True)
        lead = target.lead
        for token in target.encode(text, start=True):
            before = len(context.tokens)
            same = context.append(target.vocabulary.piece(token).removeprefix(lead))
            lead = b""
            # A row is needed at the end even where no token is new.
            grown = max(len(context.tokens) - same, 1)
            steps, new, most = steps + 1, new + grown, max(most, grown)
            rolled, back = rolled + (same < before), back + before - same
    return steps, new / steps, rolled / steps, back / steps, most


def _opened(path: Path) -> TextTokenizer:
    weights = Weights(path, vocabulary_only=True)
    return TextTokenizer(weights.vocabulary, weights.tokenize)
