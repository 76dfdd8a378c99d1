"""How far an answer and a reference are the same words: ROUGE, and the rules of SQuAD."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

from capt_local.evaluate.extra import library

ROUGE = ("rouge1", "rouge2", "rougeL")
_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def rouge(answer: str, references: Sequence[str]) -> dict[str, float]:
    """ROUGE-1, -2 and -L, F measures with Porter's stemmer; the best over the references each.

    As Google's `rouge-score` computes them (Lin 2004): words of ASCII letters and digits alone;
    an answer or reference without any scores 0.

    Raises:
        UsageError: rouge-score is not installed.
    """
    scorer = _scorer()
    found = [scorer.score(reference, answer) for reference in references]
    return {name: max(float(one[name].fmeasure) for one in found) for name in ROUGE}


def exact_match(answer: str, references: Sequence[str]) -> float:
    """1 if the answer is a reference, but for capitals, punctuation, articles and spaces; else 0.

    The normalisation is that of the SQuAD evaluation (Rajpurkar et al. 2016).
    """
    return max(float(_normal(answer) == _normal(reference)) for reference in references)


def token_f1(answer: str, references: Sequence[str], no_answer: str = "") -> float:
    """The F measure of the words that answer and reference share; the best over the references.

    As in SQuAD 2 (Rajpurkar et al. 2018), a question without an answer is right or wrong: where
    either side is `no_answer`, only the same gives 1.
    """
    return max(_f1(_normal(answer), _normal(one), _normal(no_answer)) for one in references)


def _f1(answer: str, reference: str, no_answer: str) -> float:
    found, wanted = answer.split(), reference.split()
    if not found or not wanted or no_answer in (answer, reference):
        return float(found == wanted)
    shared = (Counter(found) & Counter(wanted)).total()
    return 2 * shared / (len(found) + len(wanted))


def _normal(text: str) -> str:
    bare = text.lower().translate(_PUNCTUATION)
    return " ".join(_ARTICLES.sub(" ", bare).split())


@cache
def _scorer() -> Any:
    make: Callable[..., Any] = library("rouge_score.rouge_scorer").RougeScorer
    return make(list(ROUGE), use_stemmer=True)
