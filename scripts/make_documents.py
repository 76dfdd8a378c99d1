"""Makes the documents on which the reading of documents is measured, and measures it.

Twelve layouts (tables, two columns, footnotes, ligatures, soft hyphens, right to left, 200 pages
and others) of invented clinical sentences are written as flat OpenDocument files; LibreOffice saves
each as PDF, DOCX, ODT, RTF and HTML. The words that were written have to come back, in order.

    python scripts/make_documents.py FOLDER            # makes and measures; needs soffice
    python scripts/make_documents.py FOLDER --measure  # measures what was made
"""

from __future__ import annotations

import json
import random
import re
import subprocess
import time
from pathlib import Path
from typing import Annotated
from xml.sax.saxutils import escape

import typer

from capt_local.documents import DocumentError, read_path

KINDS = ("pdf", "docx", "odt", "rtf", "html")
_NAMES = (
    "office:office text:text style:style table:table draw:drawing fo:xsl-fo-compatible "
    "svg:svg-compatible"
)
_DRUGS = ("metformin", "lisinopril", "apixaban", "furosemide", "prednisone", "insulin", "warfarin")
_SIGNS = "cough dyspnea oedema chest pain|dizziness|a rash|joint pain|headache|palpitations"
_SIDES = ("left", "right", "both")
_HEBREW = "המטופל מתלונן על כאבים בחזה מאז אתמול ללא קוצר נשימה ונוטל תרופות קבועות בבוקר"
_ARABIC = "يشكو المريض من ألم في الصدر منذ أمس دون ضيق في التنفس ويتناول أدويته صباحا"


def sentence(random_: random.Random) -> str:
    sign = random_.choice(_SIGNS.split("|"))
    drug, dose = random_.choice(_DRUGS), random_.choice((2.5, 5, 10, 20, 40, 500))
    return random_.choice(
        (
            f"The patient reports {sign} for {random_.randint(2, 30)} days on the "
            f"{random_.choice(_SIDES)} side, worse at night.",
            f"Continue {drug} {dose} mg by mouth, {random_.randint(1, 3)} times a day.",
            f"BP {random_.randint(95, 180)}/{random_.randint(55, 99)} mmHg, pulse "
            f"{random_.randint(50, 120)}/min, temperature {random_.randint(360, 399) / 10} °C.",
            f"No evidence of {sign}; the follow-up office visit is in {random_.randint(2, 12)} "
            "weeks.",
            "Sufficient relief after the first infusion, efficacy and final effect are difficult "
            f"to define; {sign} affects the fifth finger.",
        )
    )


class Layout:
    """A document as flat ODF, with the streams of words that it holds."""

    def __init__(self, name: str) -> None:
        self.name, self.random = name, random.Random(name)
        self.body: list[str] = []
        self.streams: list[list[str]] = [[]]
        self.columns = self.header = self.hyphens = ""

    def say(self, text: str, style: str = "P", stream: int = 0) -> None:
        self.streams[stream] += text.replace("\u00ad", "").split()
        self.body.append(f'<text:p text:style-name="{style}">{escape(text)}</text:p>')

    def sentences(self, count: int) -> str:
        return " ".join(sentence(self.random) for _ in range(count))

    def table(self, rows: int, columns: int = 4) -> None:
        self.body.append("<table:table>" + "<table:table-column/>" * columns)
        for row in range(rows):
            cells = [self.random.choice(_DRUGS), f"{self.random.randint(1, 900)} mg"]
            cells += [f"r{row}c{column}" for column in range(2, columns)]
            self.streams[0] += " ".join(cells).split()
            inside = "".join(
                f"<table:table-cell><text:p>{cell}</text:p></table:table-cell>" for cell in cells
            )
            self.body.append(f"<table:table-row>{inside}</table:table-row>")
        self.body.append("</table:table>")

    def fodt(self) -> str:
        names = " ".join(
            f'xmlns:{prefix}="urn:oasis:names:tc:opendocument:xmlns:{name}:1.0"'
            for prefix, _, name in (each.partition(":") for each in _NAMES.split())
        )
        header = ""
        if self.header:
            header = f"<style:header><text:p>{self.header}</text:p></style:header>"
        return f"""<?xml version="1.0" encoding="UTF-8"?>
<office:document {names} office:version="1.2"
 office:mimetype="application/vnd.oasis.opendocument.text">
<office:styles><style:style style:name="Standard" style:family="paragraph">
<style:text-properties fo:font-size="11pt" fo:language="en" fo:country="US" {self.hyphens}/>
</style:style></office:styles>
<office:automatic-styles>
<style:style style:name="P" style:family="paragraph" style:parent-style-name="Standard"/>
<style:style style:name="R" style:family="paragraph" style:parent-style-name="Standard">
<style:paragraph-properties fo:text-align="end" style:writing-mode="rl-tb"/></style:style>
<style:style style:name="J" style:family="paragraph" style:parent-style-name="Standard">
<style:paragraph-properties fo:text-align="justify"/></style:style>
<style:style style:name="B" style:family="paragraph" style:parent-style-name="Standard">
<style:paragraph-properties fo:break-before="page"/></style:style>
<style:style style:name="S" style:family="section"><style:section-properties>{self.columns}
</style:section-properties></style:style>
<style:page-layout style:name="L"><style:page-layout-properties
 fo:page-width="21cm" fo:page-height="29.7cm" fo:margin="2cm"/></style:page-layout>
</office:automatic-styles>
<office:master-styles><style:master-page style:name="Standard" style:page-layout-name="L">{header}
</style:master-page></office:master-styles>
<office:body><office:text>{"".join(self.body)}</office:text></office:body></office:document>"""


def layouts() -> list[Layout]:
    names = (
        "plain tables columns footnotes ligatures hyphens hebrew arabic pages header frames list"
    )
    made = {name: Layout(name) for name in names.split()}
    for _ in range(30):
        made["plain"].say(made["plain"].sentences(3))
        made["ligatures"].say(made["ligatures"].sentences(2).replace("The", "Office, flow: the"))
        made["header"].say(made["header"].sentences(4))
    made["header"].header = "Invented Hospital, record 4711"
    made["header"].streams.append(["Invented", "Hospital,", "record", "4711"])
    tables = made["tables"]
    for rows in (5, 60, 3):
        tables.say(tables.sentences(2))
        tables.table(rows)
    columns = made["columns"]
    columns.columns = '<style:columns fo:column-count="2" fo:column-gap="0.6cm"/>'
    columns.body.append('<text:section text:style-name="S" text:name="two">')
    for _ in range(40):
        columns.say(columns.sentences(3), "J")
    columns.body.append("</text:section>")
    notes = made["footnotes"]
    notes.streams.append([])
    for number in range(24):
        text, below = notes.sentences(2), f"Note {number}: " + notes.sentences(1)
        notes.streams[0] += text.split()
        notes.streams[1] += below.split()
        notes.body.append(
            f'<text:p>{escape(text)}<text:note text:note-class="footnote" text:id="f{number}">'
            f"<text:note-citation>{number + 1}</text:note-citation><text:note-body>"
            f"<text:p>{escape(below)}</text:p></text:note-body></text:note></text:p>"
        )
    hyphens = made["hyphens"]
    hyphens.columns = '<style:columns fo:column-count="3" fo:column-gap="0.4cm"/>'
    hyphens.hyphens = 'fo:hyphenate="true"'
    hyphens.body.append('<text:section text:style-name="S" text:name="three">')
    for _ in range(20):
        text = hyphens.sentences(3).replace("temperature", "tem\u00adpera\u00adture")
        word = "Suf\u00adfi\u00adcient elec\u00adtro\u00adcardio\u00adgraphy"
        hyphens.say(text.replace("Sufficient", word), "J")
    hyphens.body.append("</text:section>")
    for name, words in (("hebrew", _HEBREW), ("arabic", _ARABIC)):
        for number in range(20):
            chosen = made[name].random.sample(words.split(), 10)
            made[name].say(" ".join([*chosen[:5], f"{number + 10}", *chosen[5:]]), "R")
    for number in range(200):
        text = f"Page {number + 1}. " + made["pages"].sentences(6)
        made["pages"].say(text, "B" if number else "P")
    frames = made["frames"]
    frames.streams.append([])
    for number in range(8):
        frames.say(frames.sentences(3))
        box = f"Box {number}: {sentence(frames.random)}"
        frames.streams[1] += box.split()
        frames.body.append(
            f'<text:p><draw:frame draw:name="b{number}" text:anchor-type="as-char" '
            f'svg:width="15cm" svg:height="1.5cm"><draw:text-box><text:p>{escape(box)}</text:p>'
            "</draw:text-box></draw:frame></text:p>"
        )
    listed = made["list"]
    for _ in range(6):
        listed.say(listed.sentences(1))
        items = [sentence(listed.random) for _ in range(5)]
        listed.streams[0] += " ".join(items).split()
        inside = "".join(
            f"<text:list-item><text:p>{escape(item)}</text:p></text:list-item>" for item in items
        )
        listed.body.append(f"<text:list>{inside}</text:list>")
    return list(made.values())


def recovered(wanted: list[str], text: str) -> float:
    """The share of words that are there in order (longest common subsequence)."""
    from rapidfuzz.distance import LCSseq

    marks = re.compile(r"\[\d+\]|^[|\-•]$")
    words = [marks.sub("", word) for word in text.replace("|", " ").split()]
    return LCSseq.similarity(wanted, [word for word in words if word]) / max(1, len(wanted))


def make(folder: Path) -> None:
    """Writes all documents, and `words.json` with what they hold."""
    folder.mkdir(parents=True, exist_ok=True)
    made = layouts()
    (folder / "words.json").write_text(json.dumps({one.name: one.streams for one in made}))
    for one in made:
        (folder / f"{one.name}.fodt").write_text(one.fodt(), "utf-8")
    sources = [str(folder / f"{one.name}.fodt") for one in made]
    for kind in KINDS:
        form = {"html": "html:HTML (StarWriter)", "docx": "docx:MS Word 2007 XML"}.get(kind, kind)
        command = ["soffice", "--headless", "--convert-to", form, "--outdir", str(folder), *sources]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def measure(folder: Path) -> None:
    """Prints the share of words that are recovered, for each document, and the seconds."""
    words = json.loads((folder / "words.json").read_text())
    totals: dict[str, list[float]] = {kind: [] for kind in KINDS}
    for name, streams in words.items():
        line = f"{name:<11}"
        for kind in KINDS:
            started = time.perf_counter()
            try:
                text = read_path(folder / f"{name}.{kind}", "The document").text
            except DocumentError as error:
                line += f"  {kind} {error}"
                continue
            seconds = time.perf_counter() - started
            size = sum(map(len, streams))
            share = sum(recovered(stream, text) * len(stream) for stream in streams) / size
            totals[kind].append(share)
            line += f"  {kind} {share:.4f} ({seconds:.2f} s)"
        print(line)
    for kind, shares in totals.items():
        print(f"{kind}: {len(shares)} documents, mean {sum(shares) / max(1, len(shares)):.4f}, "
              f"worst {min(shares, default=0):.4f}")  # fmt: skip


def main(folder: Path, only: Annotated[bool, typer.Option("--measure")] = False) -> None:
    """Makes the documents in FOLDER and measures them; with --measure those that were made."""
    if not only:
        make(folder)
    measure(folder)


if __name__ == "__main__":
    typer.run(main)
