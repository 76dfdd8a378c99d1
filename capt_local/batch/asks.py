"""One record as it goes to the worker: the prompt and what it changes in the run's options."""

from __future__ import annotations

import dataclasses
from typing import Any

from capt_local.batch.packing import packed, unpacked
from capt_local.batch.records import Record, RecordSettings
from capt_local.batch.seeds import record_seed
from capt_local.batch.wire import Message
from capt_local.decoding.options import GenerateOptions
from capt_local.prompting.messages import Message as Turn


def settings_of(record: Record, options: GenerateOptions) -> RecordSettings:
    """What the record changes, its seed among them.

    Raises:
        UsageError: a value of the record has no meaning, or does not go with the run's options.
    """
    seed = record.settings.seed
    if seed is None:
        seed = record_seed(options.sample.seed, record.id)
    settings = dataclasses.replace(record.settings, seed=seed)
    settings.applied(options)
    return settings


def as_message(key: int, record: Record, settings: RecordSettings) -> Message:
    """For the worker.

    Args:
        key: by which the worker names the record.
        record: whose prompt it is.
        settings: see `settings_of`.
    """
    prompt: Any = record.prompt
    if not isinstance(prompt, str):
        prompt = [packed(turn) for turn in prompt]
    return {"ask": key, "prompt": prompt, "settings": packed(settings)}


def from_message(
    message: Message, options: GenerateOptions
) -> tuple[str | list[Turn], GenerateOptions]:
    """The prompt and the options of a record.

    Raises:
        UsageError: see `settings_of`.
    """
    prompt = message["prompt"]
    if not isinstance(prompt, str):
        prompt = [unpacked(Turn, turn) for turn in prompt]
    return prompt, unpacked(RecordSettings, message["settings"]).applied(options)
