"""What the models of a runtime have done between two moments."""

from __future__ import annotations

from types import SimpleNamespace

from capt_local.evaluate.speed.modes import Counts


def test_what_was_done_since_is_time_of_all_models_and_batches_by_size() -> None:
    models = {
        "target": SimpleNamespace(seconds=2.0, sizes={1: 5, 4: 1}),
        "expert": SimpleNamespace(seconds=1.0, sizes={1: 3}),
    }
    decoded = {"target": 8, "expert": 3}
    runtime = SimpleNamespace(models=models, decoded=lambda: dict(decoded))
    before = Counts.of(runtime)  # type: ignore[arg-type]
    models["target"].seconds, models["expert"].seconds = 2.5, 1.25
    models["target"].sizes.update({4: 3, 8: 1})  # the same object, as that of a model
    decoded["target"] = 20
    found = Counts.of(runtime).since(before)  # type: ignore[arg-type]
    assert found.seconds == 0.75
    assert found.sizes == {"target": {4: 2, 8: 1}, "expert": {}}
    assert found.decoded == {"target": 12, "expert": 0}
