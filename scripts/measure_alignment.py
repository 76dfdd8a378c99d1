"""Measures the alignment and the weights on texts, and prints Markdown tables (or JSON).

    python -m scripts.measure_alignment weights FILE --limit 12 --max-bytes 700
    python -m scripts.measure_alignment limits FILE --limit 12 --max-bytes 700
    python -m scripts.measure_alignment constants FILE --limit 12 --max-bytes 600
    python -m scripts.measure_alignment exact FILE --limit 3 --max-bytes 300
    python -m scripts.measure_alignment loss FILE --limit 6 --max-bytes 400
    python -m scripts.measure_alignment positions FILE --limit 20 --max-bytes 2000

FILE is JSON Lines with a `text` each, or one text; --skip leaves out its first texts. All but
`positions` run the models of a bundle whose target has another vocabulary than its expert and
base. A text must fit into the context. With $OPENBLAS_NUM_THREADS=1 they are faster.

weights: one walk along each text, then any weights and any evidence from what it found;
limits: plausibility, number of candidates and alignment, each with each; constants: those that the
projection was built with; exact: against all tokenizations; loss: of the expert, and what would
win it back; positions: new positions a step, also on real vocabularies (fetched once through pip).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from capt_local.errors import CaptError
from capt_local.evaluate.score import read_texts
from scripts.alignment.beam import Limits
from scripts.alignment.constants import constants
from scripts.alignment.exact import compare
from scripts.alignment.grids import limits_table, weights_tables
from scripts.alignment.loss import Loss, own_bits
from scripts.alignment.positions import positions
from scripts.alignment.table import Table, told
from scripts.alignment.walk import Models
from scripts.real_vocabularies import VocabulariesUnavailable

STUDIES = ("weights", "limits", "constants", "exact", "loss", "positions")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one study; returns the exit code."""
    asked = _parser().parse_args(arguments)
    try:
        end = None if asked.limit is None else asked.skip + asked.limit
        texts = [
            text.data
            for text in read_texts(asked.file, "The file (FILE)", limit=end, size=asked.max_bytes)
        ][asked.skip :]
        if not texts:
            print("--skip leaves no text.", file=sys.stderr)
            return 2
        tables = _measure(asked, texts)
    except (CaptError, VocabulariesUnavailable) as error:
        print(error, file=sys.stderr)
        return 2
    print(told(tables, as_json=asked.json))
    return 0


def _measure(asked: argparse.Namespace, texts: Sequence[bytes]) -> list[Table]:
    if asked.study == "positions":
        return positions(texts, asked.bundle)
    with Models(asked.bundle, asked.threads) as models:
        if asked.study == "weights":
            return weights_tables(models, texts)
        if asked.study == "limits":
            return limits_table(models, texts)
        if asked.study == "constants":
            return constants(models, texts)
        beam = Limits(asked.width, asked.drop)
        if asked.study == "exact":
            return compare(models, texts, beam, asked.plausibility)
        loss = Loss(models)
        for text in texts:
            loss.add(text)
        return [*own_bits(models, texts, beam), *loss.tables()]


def _parser() -> argparse.ArgumentParser:
    assert __doc__ is not None
    parser = argparse.ArgumentParser(
        prog="python -m scripts.measure_alignment",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("study", choices=STUDIES)
    parser.add_argument("file", type=Path, metavar="FILE")
    parser.add_argument("--bundle", default="demo", help="Default: demo.")
    parser.add_argument("--skip", type=_count, default=0, metavar="N", help="The first N texts.")
    parser.add_argument("--limit", type=_positive, metavar="N", help="At most N texts.")
    parser.add_argument("--max-bytes", type=_positive, metavar="B", help="Of each text.")
    parser.add_argument("-t", "--threads", type=_positive, default=1, metavar="N")
    parser.add_argument("--json", action="store_true", help="JSON instead of Markdown.")
    group = parser.add_argument_group("exact and loss")
    group.add_argument("--width", type=_positive, default=8, help="Of the beams. Default: 8.")
    group.add_argument("--drop", type=float, default=1e-3, help="See Coverings. Default: 0.001.")
    group.add_argument(
        "--plausibility", type=float, default=1e-5, help="Of exact's candidates. Default: 1e-5."
    )
    return parser


def _count(text: str) -> int:
    number = int(text)
    if number < 0:
        raise ValueError
    return number


def _positive(text: str) -> int:
    number = _count(text)
    if not number:
        raise ValueError
    return number


if __name__ == "__main__":
    sys.exit(main())
