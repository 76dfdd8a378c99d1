"""What a model is by its weights alone, whatever context it runs in."""

from __future__ import annotations

from capt_local.llama.grammar import Grammar
from capt_local.llama.weights import Metadata, Weights
from capt_local.tokenization.vocabulary import Vocabulary


class OnWeights:
    """The part of `decoding.proxy.Model` that all contexts on the same weights share.

    Attributes:
        weights: of the model.
    """

    weights: Weights

    @property
    def vocabulary(self) -> Vocabulary:
        """The model's tokens."""
        return self.weights.vocabulary

    @property
    def metadata(self) -> Metadata:
        """What the model says about itself."""
        return self.weights.metadata

    @property
    def size(self) -> int:
        """Bytes of the weights."""
        return self.metadata.size

    def price(self, count: int) -> float:
        """What a batch of so many tokens costs, in batches of one; see `decoding.proxy.Model`."""
        kernels = self.metadata.kernels
        return kernels.cost(kernels.filled(count))

    def tokenize(self, text: bytes, *, special: bool) -> list[int]:
        """Splits UTF-8 text the way llama.cpp does, without adding BOS or EOS."""
        return self.weights.tokenize(text, special=special)

    def constraint(self, grammar: str, lead: bytes = b"") -> Grammar:
        """What a grammar allows in an answer; see `llama.grammar.Grammar`."""
        self.weights.check_open()
        return Grammar(self.weights, grammar, lead)
