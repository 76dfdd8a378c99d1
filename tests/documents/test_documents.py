"""Documents to text: what LibreOffice wrote comes back, and bad input is refused in one line."""

from __future__ import annotations

import json
import random
import zipfile
from io import BytesIO
from pathlib import Path

import pytest

from capt_local.documents import Document, DocumentError, document, read
from capt_local.errors import UsageError

DATA = Path(__file__).parent / "data"
CANARY = "zyzzyva"
LINES = (
    "Visit of 3 May 2024",
    "Ms. Zyzzyva denies chest pain. Leukocytes 11.2 x 10^9/L, BMI 24 kg/m^2.[1]",
    "Electrocardiography: sufficient, without findings.", "metformin | 500 mg | twice daily",
    "lisinopril | 2.5 mg | once daily", "- Follow-up in 3 weeks.",
    "Second page: the left knee is swollen.",
)  # fmt: skip


def file(name: str, **how: str) -> Document:
    return read((DATA / name).read_bytes(), name=name, **how)


def refusal(data: bytes, name: str = "", **how: str) -> str:
    with pytest.raises(UsageError) as caught:
        read(data, name=name, **how)
    message = str(caught.value)
    assert CANARY not in message.lower() and "\n" not in message and message.endswith(".")
    return message


@pytest.mark.parametrize("kind", ["docx", "odt", "rtf", "html", "pdf"])
def test_what_libreoffice_wrote_comes_back(kind: str) -> None:
    """Exponents stay exponents, words that were divided are whole, rows are lines."""
    visit = file(f"visit.{kind}")
    assert visit.kind == kind and visit.notices == ()
    bars = " " if kind == "pdf" else " | "
    found = [line.strip() for line in visit.text.splitlines()]
    wanted = [line.replace(" | ", bars) for line in LINES]
    assert [line for line in found if line in wanted] == wanted
    assert found[0] == "Invented Hospital" and any("Measured at home." in line for line in found)
    if kind == "pdf":
        assert [visit.page(visit.text.index(word)) for word in ("Visit", "knee")] == [1, 2]
        start, end = visit.pages[1]
        assert visit.text[start:end].endswith("swollen.")
    else:
        assert visit.pages == () and visit.page(0) is None


@pytest.mark.parametrize(
    "data, encoding, text",
    [
        ("Größe".encode(), None, "Größe"),
        ("\ufeffGröße".encode(), None, "Größe"),
        ("Größe".encode("utf-16"), None, "Größe"),
        (b"\xfe\xff" + "Größe".encode("utf-16-be"), None, "Größe"),
        ("Größe".encode("utf-16-le"), "utf-16-le", "Größe"),
        ("5 € – Größe".encode("windows-1252"), "windows-1252", "5 € – Größe"),
        (b"one\r\n\ttwo \xc2\xa0", None, "one\r\n\ttwo \xa0"),  # plain text stays as it is
    ],
)
def test_text_is_read_by_its_mark_or_the_encoding_that_is_named(
    data: bytes, encoding: str | None, text: str
) -> None:
    assert read(data, name="a.txt", encoding=encoding) == Document(text)


@pytest.mark.parametrize(
    "data, encoding, says",
    [
        (f"{CANARY} \xe9".encode("latin-1"), None, "byte 8 (counted from 0) is 0xe9"),
        (b"\xef\xbb\xbf\xff", None, "byte 3"),
        (b"a\x81", "windows-1252", "is not valid cp1252: byte 1"),
        (CANARY.encode("utf-16-le"), None, "a NUL byte (0x00) at byte 1 (counted from 0); is it"),
        (CANARY.encode("utf-16"), "windows-1252", "the mark of utf-16-le"),
        (b"x", "nonsense", "--encoding takes"),
        (b"x", "base64", "--encoding takes"),
        (b"x", "rot13", "--encoding takes"),
        (b"+2AA-", "utf-7", "half of a character"),
    ],
)
def test_an_encoding_is_never_guessed(data: bytes, encoding: str | None, says: str) -> None:
    assert says in refusal(data, encoding=encoding)


def docx(body: str, **parts: bytes | str) -> bytes:
    """A document of Word's with a body and further parts, `__` in their names for a slash."""
    stream, space = BytesIO(), 'xmlns:w="http://schemas.openxmlformats.org/w"'
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        if body:
            archive.writestr("word/document.xml", f"<w:d {space}><w:body>{body}</w:body></w:d>")
        for name, data in parts.items():
            archive.writestr(name.replace("__", "/").replace("_xml", ".xml"), data)
    return stream.getvalue()


def paragraph(text: str, properties: str = "") -> str:
    return f"<w:p><w:r><w:rPr>{properties}</w:rPr><w:t>{text}</w:t></w:r></w:p>"


def test_what_a_reader_of_word_does_not_see_is_left_out_and_told() -> None:
    body = (
        paragraph("no allergies") + paragraph(CANARY, "<w:vanish/>")
        + f"<w:p><w:del><w:r><w:delText>{CANARY}</w:delText></w:r></w:del>"
        "<w:ins><w:r><w:t>allergic to </w:t></w:r></w:ins><w:r><w:t>latex</w:t></w:r></w:p>"
        "<w:p><w:r><w:instrText>MERGEFIELD</w:instrText><w:tab/><w:sym w:char='F0FE'/></w:r></w:p>"
    )  # fmt: skip
    seen = read(docx(body, **{"word__vbaProject.bin": b"Sub AutoOpen()"}), name="x.docm")
    assert seen.text == "no allergies\n\nallergic to latex\n\t[x]"
    assert seen.notices == (
        "its macros were ignored", "hidden text was left out",
        "deleted text of tracked changes was left out",
    )  # fmt: skip
    rtf = rb"{\rtf1\ansi a {\v zyzzyva}{\deleted zyzzyva}\u8364 ?{\*\unknown zyzzyva}\'e9}"
    seen = read(rtf, name="x.doc")
    assert seen.text == "a €é" and len(seen.notices) == 2
    page = b"<html><p hidden>zyzzyva</p><script>zyzzyva</script><pre>a\n  b</pre>&eacute;<!-- x -->"
    assert read(page).text == "a\n  b\né"


def entities() -> bytes:
    bomb = '<!DOCTYPE x [<!ENTITY a "zyzzyva"><!ENTITY b "&a;&a;&a;&a;&a;">]><x>&b;</x>'
    return docx("", word__document_xml=bomb)


def pdf(content: bytes) -> bytes:
    """A page with that content stream."""
    parts = [
        b"<</Type/Catalog/Pages 2 0 R>>", b"<</Type/Pages/Kids[3 0 R]/Count 1>>",
        b"<</Type/Page/Parent 2 0 R/MediaBox[0 0 9 9]/Contents 4 0 R>>",
        b"<</Length %d>>stream\n%s\nendstream" % (len(content), content),
    ]  # fmt: skip
    body = b"".join(b"%d 0 obj%s endobj\n" % (i, part) for i, part in enumerate(parts, 1))
    return b"%PDF-1.4\n" + body + b"trailer<</Root 1 0 R>>\n%%EOF"


VISIT = {path.suffix: path.read_bytes() for path in DATA.glob("visit.*")}
BAD = {
    "password": ((DATA / "locked.pdf").read_bytes(), "x.pdf", "needs a password"),
    "locked docx": (
        b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + "EncryptedPackage".encode("utf-16-le"), "x.docx",
        "needs a password",
    ),
    "old word": (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(600), "x.doc", "old Word format"),
    "scan": (pdf(b"0 0 5 5 re f"), "x.pdf", "has no text layer"),
    "truncated pdf": (VISIT[".pdf"][:400], "x.pdf", "is damaged"),
    "truncated docx": (VISIT[".docx"][:4000], "x.docx", "is damaged"),
    "truncated odt": (VISIT[".odt"][:-3000], "x.odt", "is damaged"),
    "truncated rtf": (VISIT[".rtf"][:5000], "x.rtf", "is damaged"),
    "zip bomb": (docx(" " * (70 << 20)), "x.docx", "unpacks to more"),
    "entities": (entities(), "x.docx", "XML entities"),
    "deep xml": (docx("<w:p>" * 5000 + "</w:p>" * 5000), "x.docx", "nested too deeply"),
    "deep rtf": (b"{\\rtf" + b"{" * 5000 + b"}" * 5001, "x.rtf", "nested too deeply"),
    "deep html": (b"<div>" * 50_000, "x.html", "nested too deeply"),
    "no body": (docx("", word__document_xml="<x/>"), "x.docx", "holds no text"),
    "empty": (docx(paragraph(" ")), "x.docx", "holds no text"),
    "pdf as docx": (VISIT[".pdf"], "x.docx", "is a PDF by its content"),
    "pdf as text": (VISIT[".pdf"], "x.txt", "is a PDF by its content"),
    "docx as pdf": (VISIT[".docx"], "x.pdf", "is a DOCX file by its content"),
    "text as pdf": (b"zyzzyva", "x.pdf", "is not a PDF, though its name says so"),
    "image": (b"\x89PNG\r\n\x1a\n", "", "is an image"),
    "other zip": (docx("", xl__workbook_xml="<x/>"), "", "ZIP archive of an unknown kind"),
    "html of another encoding": ("<html>é".encode("latin-1"), "", "declares no encoding"),
    "large": (bytes((64 << 20) + 1), "x.pdf", "is larger than 64 MiB"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_refused_in_one_line(name: str) -> None:
    data, called, says = BAD[name]
    assert says in refusal(data, called)


def test_any_damage_ends_in_a_text_or_in_one_line() -> None:
    draw = random.Random(1)
    for suffix in (".pdf", ".docx", ".odt", ".rtf", ".html"):
        for _ in range(6):
            data = bytearray(VISIT[suffix])
            for _ in range(draw.choice((1, 30, 300))):
                data[draw.randrange(8, len(data))] = draw.randrange(256)
            try:
                assert isinstance(read(bytes(data), name=f"x{suffix}"), Document)
            except DocumentError as error:
                assert "\n" not in str(error) and len(str(error)) < 200


@pytest.mark.parametrize("begun", ["<!--", "<![CDATA[", "</ ", '<a b="'])
def test_a_page_of_things_that_never_end_is_read_at_once(
    begun: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(document, "_SECONDS", 20.0)
    text = read(b"<html><p>Fever.</p>" + begun.encode() * 400_000).text
    assert text.startswith("Fever.") and begun.strip() in text


@pytest.mark.parametrize(
    "program, says",
    [
        ("import time; time.sleep(60)", "kept its reader busy"),
        ("import os; os.abort()", "it ended the process that reads it"),
        ("import sys; sys.stdout.write('x' * (1 << 20))", "it ended the process that reads it"),
        ("print('{\"text\": \"a\", \"pages\": [[0, 9]]}')", "is damaged"),
        ("print('{\"refused\": \"zyzzyva\"}')", "is damaged"),
        ("import sys; sys.stdout.write('unconfined')", "seccomp"),
        # The process itself, which tries to write and to reach others once it is confined.
        (
            "import os, socket; from capt_local.hardening import confine; assert confine()\n"
            "for act in (lambda: os.open('/tmp/zyzzyva', os.O_CREAT), socket.socket, os.fork):\n"
            "    try: act(); print('{\"text\": \"done\"}')\n"
            "    except PermissionError: pass",
            "it ended the process",
        ),
    ],
)  # fmt: skip
def test_whatever_the_reading_process_does_one_line_comes_of_it(
    program: str, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(document, "_PROGRAM", program)
    monkeypatch.setattr(document, "_SECONDS", 3.0)
    assert says in refusal(VISIT[".pdf"], "x.pdf")


@pytest.mark.parametrize("how", ["absolute", "above", "link", "circle", "zero byte"])
def test_records_name_no_document_outside_their_folder(how: str, tmp_path: Path) -> None:
    """Who wrote the records does not choose which other file of the user a model reads."""
    from capt_local.batch.readers import check_input

    (tmp_path / "in").mkdir()
    secret = tmp_path / "secret.txt"
    secret.write_text(CANARY)
    (tmp_path / "in" / "link.txt").symlink_to("../secret.txt")
    (tmp_path / "in" / "circle.txt").symlink_to("circle.txt")
    path = {"absolute": str(secret), "above": "../in/../secret.txt", "link": "link.txt",
            "circle": "circle.txt", "zero byte": "a\0.txt"}[how]  # fmt: skip
    table = tmp_path / "in" / "in.jsonl"
    table.write_text(json.dumps({"id": "1", "prompt": path}) + "\n")
    with pytest.raises(UsageError, match="line 1: its document ") as caught:
        check_input(table, document_field="prompt")
    assert CANARY not in str(caught.value)
