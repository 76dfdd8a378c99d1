"""The trio of the tests: trained as the demo trio is, but less than 1 MB together.

It has real vocabularies, templates and ends of answers, and an expert that knows clinical text
better than its base. What it writes is worth nothing, so a test that needs an answer that is any
good takes the demo trio.
"""

from __future__ import annotations

from pathlib import Path

SMALL_TRIO = Path(__file__).parent / "data" / "trio"
