"""`generate`: the answer alone on standard output, exit codes, and no text in any error."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path

import pytest

from capt_local import Runtime
from capt_local.cli.generate import QUESTION, demo_note
from capt_local.decoding.options import Method
from capt_local.errors import ContextOverflow, ModelError, UsageError
from capt_local.prompting.messages import Message
from capt_local.report.json import answer_from
from tests.cli.conftest import CANARY, Run, Stdin
from tests.cli.fake_runtime import FakeGeneration, Script
from tests.small_trio import SMALL_TRIO
from tests.tiny_models import tiny_gguf


def test_the_answer_alone_is_on_standard_output(run: Run, script: Script) -> None:
    result = run("generate", "{models}", "-p", "What is it?")
    assert (result.code, result.out) == (0, "It is pneumonia.\n")
    for notice in ("The models were given as files", "a notice of the generation"):
        assert result.err.count(f"note: {notice}") == 1
    assert result.err.splitlines()[-1].startswith("3 tokens (3.0/s) | prompt 10 tokens (20.0/s)")
    assert script.calls[1]["asked"] == [Message("user", "What is it?")]
    assert script.calls[-1] == {"closed": True}


def test_flags_reach_the_decoder(run: Run, script: Script) -> None:
    run(
        "generate", "{models}", "-p", "x", "--system", "Be short.", "--method", "capt",
        "--alpha", "0.5", "--plausibility", "0.1", "-n", "9", "--temp", "0.7", "--top-k", "5",
        "--top-p", "0.9", "--min-p", "0.05", "--repeat-penalty", "1.1", "-s", "3",
        "--stop", "END", "--stop", "a b", "-ngl", "7", "-c", "1024", "-t", "2",
        "--date", "2024-02-29", "--verify", "never",
    )  # fmt: skip
    opened, asked = script.calls[0], script.calls[1]
    assert (opened["load"].gpu_layers, opened["load"].context, opened["load"].threads) == (
        7, 1024, 2,
    )  # fmt: skip
    assert opened["date"].isoformat() == "2024-02-29"
    assert opened["check"] == "never"
    assert asked["asked"][0] == Message("system", "Be short.")
    options = asked["options"]
    assert (options.method, options.max_tokens, options.stop) == (Method.CAPT, 9, ("END", "a b"))
    assert (options.combine.alphas, options.combine.plausibility) == ((0.5,), 0.1)
    sample = options.sample
    assert (sample.temperature, sample.top_k, sample.top_p, sample.min_p) == (0.7, 5, 0.9, 0.05)
    assert (sample.repeat_penalty, sample.seed) == (1.1, 3)


def test_standard_input_is_read_when_it_is_no_terminal(run: Run, script: Script) -> None:
    for arguments in ([], ["-p", "-"], ["-f", "-"]):
        script.calls.clear()
        result = run("generate", "{models}", *arguments, stdin=Stdin("Fièvre?\n".encode()))
        assert result.code == 0
        assert script.calls[1]["asked"] == [Message("user", "Fièvre?\n")]


def test_a_question_and_a_file_are_one_prompt(run: Run, script: Script, tmp_path: Path) -> None:
    (note := tmp_path / "note.txt").write_text("Aspirin 100 mg.\n")
    (empty := tmp_path / "empty.txt").write_text(" \n")
    both = "What is the dose?\n\nAspirin 100 mg.\n"
    for text, file in (("What is the dose?", str(note)), ("-", str(note))):
        script.calls.clear()
        stdin = Stdin(b"What is the dose?") if text == "-" else Stdin(terminal=True)
        assert run("generate", "{models}", "-p", text, "-f", file, stdin=stdin).code == 0
        assert script.calls[1]["asked"] == [Message("user", both)]
    script.calls.clear()
    stdin = Stdin(b"Aspirin 100 mg.\n")
    assert run("generate", "{models}", "-p", "Dose?", "-f", "-", "--raw", stdin=stdin).code == 0
    assert script.calls[1]["asked"] == "Dose?\n\nAspirin 100 mg.\n"
    for text, file in (("-", "-"), ("", str(note)), ("Dose?", str(empty))):
        result = run("generate", "{models}", "-p", text, "-f", file, stdin=Stdin(b"x"))
        assert (result.code, result.out, result.err.count("\n")) == (2, "", 1)


def test_an_empty_prompt_and_bytes_that_are_not_utf8_are_refused(run: Run, script: Script) -> None:
    for data in (b"", b" \n\t ", b"\xef\xbb\xbf"):
        assert run("generate", "{models}", stdin=Stdin(data)).code == 2
    for option in ("-p", "--system", "--stop"):
        result = run("generate", "{models}", "-p", "x", option, CANARY + "\udcb0")
        assert result.code == 2 and CANARY not in result.err and option in result.err
    result = run("generate", "{models}", stdin=Stdin(CANARY.encode() + b" 38\xb0C"))
    assert result.code == 2
    assert f"byte {len(CANARY) + 3} " in result.err
    assert "0xb0" in result.err
    assert CANARY not in result.err
    result = run("generate", "{models}", stdin=Stdin(b"Fever\0"))
    assert result.code == 2 and "holds a NUL byte (0x00) at byte 5 (counted from 0)" in result.err
    result = run("generate", "{models}", "-f", f"/nowhere/{CANARY}.txt")
    assert result.code == 2 and CANARY not in result.err
    assert not script.calls


@pytest.mark.parametrize("raw", [False, True])
def test_a_nul_byte_is_refused_in_python_too(raw: bool) -> None:
    with Runtime.open(SMALL_TRIO) as runtime:
        for call in (
            lambda: list(runtime.generate("one\0two", raw=raw)),
            lambda: runtime.score(b"one\0two"),
            lambda: runtime.score_answer("one", b"two\0", raw=raw),
        ):
            with pytest.raises(UsageError, match="NUL byte"):
                call()


FAILURES = [
    (ModelError("The target is broken."), 3),
    (ContextOverflow({"target": 300}, 256), 5),
    (ValueError(f"cannot handle {CANARY}"), 1),
    (UnicodeDecodeError("utf-8", CANARY.encode(), 0, 1, CANARY), 1),
    (KeyboardInterrupt(), 130),
]


@pytest.mark.parametrize(("error", "code"), FAILURES, ids=lambda x: type(x).__name__)
@pytest.mark.parametrize(("place", "form"), [(-1, []), (2, []), (2, ["--json"])])
def test_no_failure_anywhere_tells_the_text(
    error: BaseException, code: int, place: int, form: list[str], run: Run, script: Script
) -> None:
    script.fail_at, script.error = place, error
    result = run("generate", "{models}", *form, "-p", f"{CANARY} {CANARY}", "--system", CANARY)
    assert result.code == code
    assert CANARY not in result.err + result.out
    assert "Traceback" not in result.err
    if place >= 1 and form == ["--json"] and isinstance(error, Exception):
        assert json.loads(result.out)["choices"][0]["finish_reason"] == "error"
        return
    errors = [line for line in result.err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert result.out == ("It is pneumonia\n" if place == 2 and not form else "")


def test_json(run: Run, script: Script) -> None:
    flags = ["--stop", CANARY, "-t", "3", "--date", "2024-02-29", "--json"]
    result = run("generate", "{models}", "-p", CANARY, *flags)
    found = json.loads(result.out)
    assert found["model"] == "files"
    assert found["choices"][0]["message"]["content"] == "It is pneumonia."
    assert found["capt"]["changed"] == 1
    assert found["provenance"]["method"] == "capt"
    said = found["choices"][0]["message"]["content"].encode()
    assert found["provenance"]["output_sha256"] == hashlib.sha256(said).hexdigest()
    assert found["provenance"]["models"]["target"]["sha256"] is None
    assert found["provenance"]["loading"]["threads"] == 3
    assert found["provenance"]["date"] == "2024-02-29"
    assert found["provenance"]["versions"]["llama_cpp_python"] == "0.3.36"
    assert CANARY not in result.out + result.err
    assert result.out.count("\n") == 1


def test_models_given_by_path(run: Run, tmp_path: Path) -> None:
    odd = Path(os.fsdecode(os.fsencode(tmp_path) + b"/a\xffb.gguf"))  # no UTF-8
    shutil.move(tiny_gguf(tmp_path / "a.gguf", seed=1), odd)
    flags = ["--target", str(odd), "--method", "target", "-p", "x", "-n", "2", "-t", "1"]
    result = run("generate", *flags, "--json")
    assert result.code == 0, result.err
    target = json.loads(result.out)["provenance"]["models"]["target"]
    assert target["sha256"] == hashlib.sha256(odd.read_bytes()).hexdigest()
    assert (target["verified"], target["quantization"]) == ("no manifest names it", "all F32")
    assert target["file"].startswith("a") and target["file"].endswith("b.gguf")


def test_thoughts_are_never_on_standard_output_and_apart_in_json(run: Run, script: Script) -> None:
    thought = "a \x1b]52;c;x\x07 \u00b0"
    data = thought.encode()
    script.thoughts = [b"", data[:-1], data[-1:]]
    hidden = run("generate", "{models}", "-p", "x")
    assert hidden.out == "It is pneumonia.\n" and "\\x1b" not in hidden.err
    for flag in ("show", "dim"):
        shown = run("generate", "{models}", "-p", "x", "--thoughts", flag)
        assert shown.out == hidden.out
        # Not a terminal: no style; what a terminal would obey is spelled out.
        assert "\n" in shown.err and shown.err.count("a \\x1b]52;c;x\\x07 \u00b0\n") == 1
        assert "\x1b" not in shown.err
    told = json.loads(run("generate", "{models}", "-p", "x", "--json").out)
    message = told["choices"][0]["message"]
    assert message["content"] == "It is pneumonia."
    assert message["reasoning_content"] == thought
    assert told["usage"]["completion_tokens"] == 6
    assert told["usage"]["completion_tokens_details"] == {"reasoning_tokens": 3}
    assert len(told["choices"][0]["logprobs"]["content"]) == 3
    read = answer_from(told)
    assert (read.thoughts.decode(), read.thought_tokens, read.tokens) == (thought, 3, 6)


def test_both_answers_are_shown_with_marks_and_a_table(run: Run, script: Script) -> None:
    result = run("demo", "{models}")
    assert result.code == 0
    assert result.out.startswith("DRAFT")
    assert "  It is [pneumonia].\n" in result.out
    assert '"a cold"' in result.out
    assert "not medical" in result.out
    assert "Note: a notice of the generation" in result.out
    calls = [call for call in script.calls if "asked" in call]
    assert [call["options"].method for call in calls] == [Method.TARGET, Method.CAPT]
    prompts = {call["asked"][0].content for call in calls}
    assert prompts == {f"{demo_note()}\n\n{QUESTION}"}


# Structured answers.


@pytest.mark.parametrize(
    ("flags", "text", "said"),
    [
        (["--json-schema"], f"The patient {CANARY}", "is not JSON"),
        (["--json-schema"], f'{{"anyOf": [{{}}, {{"type": "{CANARY}"}}]}}', "at anyOf[2].type"),
        (["--stop", "x", "--json-schema"], "{}", "stop string"),
    ],
)
def test_a_schema_that_cannot_be_used_is_one_line_before_any_model(
    run: Run, script: Script, tmp_path: Path, flags: list[str], text: str, said: str
) -> None:
    (path := tmp_path / f"{CANARY}.txt").write_text(text)
    result = run("generate", "{models}", "-p", "x", *flags, str(path))
    assert (result.code, result.out, result.err.count("\n")) == (2, "", 1)
    assert said in result.err and CANARY not in result.err
    assert script.calls == []


@pytest.mark.parametrize("whole", [True, False])
def test_whether_an_answer_has_its_form_is_told(
    run: Run, script: Script, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: bool
) -> None:
    told_form = property(lambda _: whole, lambda *_: None)
    monkeypatch.setattr(FakeGeneration, "structured", told_form, raising=False)
    schema = f'{{"enum": ["{CANARY}"]}}'
    (path := tmp_path / "schema.json").write_text(schema)
    result = run("generate", "{models}", "-p", "x", "--json-schema", str(path), "--json")
    assert script.calls[1]["options"].structure.source == schema
    told = json.loads(result.out)
    state = "complete" if whole else "incomplete"
    assert (result.code, told["capt"]["structured"]) == (0 if whole else 6, state)
    assert ("not valid" in result.err) != whole
    assert any("not valid" in line for line in told["warnings"]) != whole
    # The schema itself may hold words of a note.
    assert told["provenance"]["parameters"]["structure"]["kind"] == "json-schema"
    assert CANARY not in result.out
    assert answer_from(told).structured is whole


# Documents.

DATA = Path(__file__).parents[1] / "documents" / "data"


def test_the_text_of_a_document_is_the_prompt(run: Run, script: Script, tmp_path: Path) -> None:
    result = run("generate", "{models}", "-p", "Which drugs?", "-f", str(DATA / "visit.pdf"))
    asked = script.calls[1]["asked"][0].content
    assert result.code == 0 and asked.startswith("Which drugs?\n\nInvented Hospital\nVisit of")
    data = (DATA / "visit.docx").read_bytes()
    assert run("generate", "{models}", stdin=Stdin(data)).code == 0
    assert "metformin | 500 mg" in script.calls[-2]["asked"][0].content
    note = tmp_path / "note.txt"
    note.write_bytes("Fieber 39 °C".encode("windows-1252"))
    refused = run("generate", "{models}", "-f", str(note))
    assert refused.code == 2 and "byte 10 (counted from 0) is 0xb0" in refused.err
    assert run("generate", "{models}", "-f", str(note), "--encoding", "windows-1252").code == 0
    assert script.calls[-2]["asked"][0].content == "Fieber 39 °C"


def test_a_document_that_cannot_be_read_ends_with_2(run: Run, script: Script) -> None:
    result = run("generate", "{models}", "-f", str(DATA / "locked.pdf"))
    assert (result.code, result.out) == (2, "") and script.calls == []
    assert "The prompt file (-f) needs a password" in result.err and "locked" not in result.err


def test_facts_without_a_source_are_told(run: Run, script: Script, tmp_path: Path) -> None:
    note = tmp_path / "note.txt"
    note.write_text("Takes aspirin 81 mg daily for the heart.")
    script.pieces = [(b"Takes aspirin 81 mg", None), (b" and warfarin 5 mg daily.", None)]
    told = run("generate", "{models}", "-p", "Drugs?", "-f", str(note), "--json")
    sources = json.loads(told.out)["capt"]["sources"]
    assert told.code == 0 and sources["of"] == "document"
    assert "2 of 4 facts not found in the document: warfarin; 5 mg" in told.err
    places = {fact["text"]: (fact["match"], fact["source"]) for fact in sources["facts"]}
    assert places["aspirin"] == ("exact", [6, 13]) and places["warfarin"] == ("unsupported", None)
    # Without a note, figures alone are looked for in the prompt.
    told = run("generate", "{models}", "-p", "Drugs?")
    assert "2 of 2 facts not found in the prompt: 81 mg; 5 mg." in told.err


def test_no_answer_without_sources(run: Run, script: Script, tmp_path: Path) -> None:
    note = tmp_path / "note.txt"
    note.write_text("Takes aspirin 81 mg daily for the heart.")
    script.pieces = [(b"Takes warfarin.", None)]
    refused = run("generate", "{models}", "-f", str(note), "--require-sources")
    assert (refused.code, refused.out) == (6, "")
    assert "nothing is answered (--require-sources): 1 of 1 facts" in refused.err
    written = run("generate", "{models}", "-f", str(note), "--require-sources", "--json")
    choice = json.loads(written.out)["choices"][0]
    assert choice["finish_reason"] == "abstained" and choice["message"]["content"] == ""
    script.pieces = [(b"Takes aspirin daily.", None)]
    answered = run("generate", "{models}", "-f", str(note), "--require-sources")
    assert (answered.code, answered.out) == (0, "Takes aspirin daily.\n")
    assert run("generate", "{models}", "-p", "x", "--require-sources").code == 2
