"""Where models go, by flags, settings and defaults."""

from __future__ import annotations

from typing import Any

import pytest

from capt_local import config as site_config
from capt_local.llama.options import LoadOptions, Placement
from tests.cli.conftest import Run
from tests.cli.fake_runtime import Script

ASK = ("generate", "{models}", "-p", "x")


def opened(script: Script) -> LoadOptions:
    load: Any = script.calls[0]["load"]
    assert isinstance(load, LoadOptions)
    return load


def test_each_model_has_its_own_place(run: Run, script: Script) -> None:
    flags = [
        *("-ngl", "20", "-ngl", "expert:all", "--device", "G0", "--device", "expert:G1,G2"),
        *("--device", "base:CPU", "--tensor-split", "expert:3,1", "--kv-type", "q4_0"),
    ]
    assert run(*ASK, *flags).code == 0
    load = opened(script)
    assert load.kv_type == "q4_0"
    assert load.placement("target") == Placement(20, ("G0",))
    assert load.placement("expert") == Placement("all", ("G1", "G2"), (3.0, 1.0))
    assert load.placement("base") == Placement("auto", ("CPU",))  # a place stands above a number
    one = load.of("expert")
    assert (one.gpu_layers, one.devices, one.tensor_split) == ("all", ("G1", "G2"), (3.0, 1.0))


def test_without_flags_everything_is_automatic(run: Run, script: Script) -> None:
    assert run(*ASK).code == 0
    assert opened(script) == LoadOptions()


def test_settings_say_it_too(run: Run, script: Script, monkeypatch: pytest.MonkeyPatch) -> None:
    user = site_config.user_file()
    user.parent.mkdir(parents=True)
    # One value needs no brackets, whatever its kind; the numbers of a split are one text.
    user.write_text("[options]\ngpu-layers = 12\ndevice = 'G0,G1'\ntensor-split = ['1,2']\n")
    assert run(*ASK).code == 0
    assert opened(script).placement("expert") == Placement(12, ("G0", "G1"), (1.0, 2.0))
    user.write_text("[options]\ntensor-split = [1, 2]\n")
    assert "--tensor-split is given twice" in run(*ASK).err
    monkeypatch.setenv("CAPT_LOCAL_TENSOR_SPLIT", "1,2 base:1")
    monkeypatch.setenv("CAPT_LOCAL_GPU_LAYERS", "7 base:0")
    monkeypatch.setenv("CAPT_LOCAL_KV_TYPE", "q8_0")
    script.calls.clear()
    assert run(*ASK).code == 0
    load = opened(script)
    assert (load.placement("expert"), load.kv_type) == (Placement(7, (), (1.0, 2.0)), "q8_0")
    assert load.placement("base") == Placement(0, (), (1.0,))


@pytest.mark.parametrize(
    "flags",
    [
        "--device judge:G0", "--device G0,G0", "--device G0 --device G0", "--device target:CPU,G0",
        "--device base:CPU -ngl base:3", "-ngl some", "-ngl expert:-1", "-ngl 3 -ngl 4",
        "--tensor-split 1,x", "--tensor-split nan,1", "--tensor-split=-1,2", "--tensor-split 0,0",
        "--device G0,G1 --tensor-split 1", "--tensor-split expert:", "--device expert:",
        "--kv-type f32",
    ],
)  # fmt: skip
def test_what_has_no_meaning_is_one_line_and_exit_2(run: Run, script: Script, flags: str) -> None:
    result = run(*ASK, *flags.split())
    assert result.code == 2 and not script.calls
    assert result.err.startswith("error: ") and result.err.count("\n") == 1
