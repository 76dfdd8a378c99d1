"""What the check of a batch input costs: processor seconds, memory, and reading a record again.

    python -m scripts.measure_batch_check [--records 100000] [--bytes 500]

Invented text, in a temporary folder; no model is loaded.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import tempfile
import time
from pathlib import Path

from capt_local.batch.readers import check_input
from capt_local.batch.records import RecordParser, RecordTemplate

_WORDS = "The patient has a mild cough since three days and denies chest pain. "


def measure(path: Path, parser: RecordParser) -> str:
    """One line about one input."""
    began = time.process_time()
    source = check_input(path, parser=parser)
    checked = time.process_time() - began
    began, count = time.process_time(), 1000
    for index in range(0, len(source), max(1, len(source) // count)):
        source.record(index)
    again = (time.process_time() - began) / count * 1e6
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
    size = path.stat().st_size >> 20
    return (
        f"{len(source)} records, {size} MiB: checked in {checked:.1f} s, at most {most} MiB; read "
        f"again in {again:.0f} us each"
    )


def main() -> None:
    """Measures JSON Lines, with and without a template, and CSV."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--records", type=int, default=100_000)
    arguments.add_argument("--bytes", type=int, default=500)
    options = arguments.parse_args()
    text = (_WORDS * (1 + options.bytes // len(_WORDS)))[: options.bytes]
    template = RecordParser(template=RecordTemplate(b"Summarise: {{ prompt }}"))
    with tempfile.TemporaryDirectory() as folder:
        lines, table = Path(folder) / "in.jsonl", Path(folder) / "in.csv"
        with lines.open("w") as stream:
            for number in range(options.records):
                stream.write(json.dumps({"id": f"r{number}", "prompt": text}) + "\n")
        with table.open("w") as stream:
            stream.write("id,prompt\n")
            stream.writelines(f'r{number},"{text}"\n' for number in range(options.records))
        for name, path, parser in (
            ("JSON Lines", lines, RecordParser()),
            ("JSON Lines with a template", lines, template),
            ("CSV", table, RecordParser()),
        ):
            sys.stdout.write(f"{name}: {measure(path, parser)}\n")


if __name__ == "__main__":
    main()
