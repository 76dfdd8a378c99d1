"""What a record may set for itself, by OpenAI's names.

What is not supported is refused by name, never left out: an answer that was made without it would
be another answer. A name that nobody knows is not repeated, since it may be anything.
"""

from __future__ import annotations

from collections.abc import Mapping

from capt_local.batch.records import RecordSettings
from capt_local.strict.problems import NotReadable

_UNSET = RecordSettings()
_MOST_TOKENS = 1 << 24
_HOTTEST = 100
_LARGEST_SEED = (1 << 63) - 1
_MOST_STOPS = 16
_MOST_CANDIDATES = 100

# Of OpenAI's and of servers that follow it: what each means when it changes nothing.
_WITHOUT_EFFECT: Mapping[str, tuple[object, ...]] = {
    "n": (1,),
    "best_of": (1,),
    "stream": (False,),
    "store": (False,),
    "echo": (False,),
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "repetition_penalty": (1,),
    "min_p": (0,),
    "top_k": (0, -1),
    "logit_bias": ({},),
    "tools": ([],),
    "functions": ([],),
    "tool_choice": ("none", "auto"),
    "function_call": ("none", "auto"),
    "modalities": (["text"],),
    "response_format": ({"type": "text"},),
}
_REFUSED = frozenset(
    ("audio", "chat_template", "chat_template_kwargs", "grammar", "guided_choice",
     "guided_grammar", "guided_json", "guided_regex", "json_schema", "metadata", "min_tokens",
     "parallel_tool_calls", "prediction", "prompt_cache_key", "reasoning_effort",
     "safety_identifier", "service_tier", "stop_token_ids", "stream_options", "structured_outputs",
     "suffix", "user", "verbosity", "web_search_options")
)  # fmt: skip
_INSTEAD = {
    "response_format": "give --json-schema for the whole run",
    "json_schema": "give --json-schema for the whole run",
    "guided_json": "give --json-schema for the whole run",
    "grammar": "give --grammar-file for the whole run",
    "guided_grammar": "give --grammar-file for the whole run",
    "top_k": "give --top-k for the whole run",
    "min_p": "give --min-p for the whole run",
    "repetition_penalty": "give --repeat-penalty for the whole run",
}


def settings_of(fields: Mapping[str, object]) -> RecordSettings:
    """What the fields of a record set; nothing else may be among them.

    Args:
        fields: without those of the prompt. Null is as good as not there.

    Raises:
        NotReadable: a field is not supported, or its value has no meaning.
    """
    if not fields:  # as most records
        return _UNSET
    given = _Given(fields)
    tokens = given.whole("max_tokens", 1, _MOST_TOKENS)
    other = given.whole("max_completion_tokens", 1, _MOST_TOKENS)
    if tokens is not None and other is not None:
        raise NotReadable('"max_tokens" and "max_completion_tokens" do not go together')
    settings = RecordSettings(
        max_tokens=other if tokens is None else tokens,
        temperature=given.number("temperature", _HOTTEST),
        top_p=given.number("top_p", 1, above=True),
        seed=given.whole("seed", 0, _LARGEST_SEED),
        stop=given.texts("stop"),
        logprobs=given.flag("logprobs"),
        top_logprobs=given.whole("top_logprobs", 0, _MOST_CANDIDATES),
    )
    if settings.top_logprobs is not None and not settings.logprobs:
        raise NotReadable('"top_logprobs" goes with "logprobs": true')
    given.check_rest()
    return settings


class _Given:
    """The fields that are not null, taken one by one."""

    def __init__(self, fields: Mapping[str, object]) -> None:
        self._left = {name: value for name, value in fields.items() if value is not None}

    def whole(self, name: str, least: int, most: int) -> int | None:
        value = self._left.pop(name, None)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            raise NotReadable(f'"{name}" must be a whole number from {least} to {most}')
        return value

    def number(self, name: str, most: float, *, above: bool = False) -> float | None:
        value = self._left.pop(name, None)
        if value is None:
            return None
        # A whole number may be too large for `float`, so it is compared first.
        least = "above 0" if above else "0 or above"
        wrong = NotReadable(f'"{name}" must be a number {least} and at most {most}')
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise wrong
        if not 0 <= value <= most or (above and value == 0):
            raise wrong
        return float(value)

    def flag(self, name: str) -> bool | None:
        value = self._left.pop(name, None)
        if value is not None and not isinstance(value, bool):
            raise NotReadable(f'"{name}" must be true or false')
        return value

    def texts(self, name: str) -> tuple[str, ...] | None:
        value = self._left.pop(name, None)
        if value is None:
            return None
        listed = [value] if isinstance(value, str) else value
        if not isinstance(listed, list) or len(listed) > _MOST_STOPS:
            raise NotReadable(f'"{name}" must be a text, or a list of at most {_MOST_STOPS}')
        if not all(isinstance(one, str) and one for one in listed):
            raise NotReadable(f'"{name}" must hold texts that are not empty')
        return tuple(listed)

    def check_rest(self) -> None:
        """Refuses what is left, unless it changes nothing."""
        for name, value in self._left.items():
            if name in _WITHOUT_EFFECT:
                if not any(_same(value, neutral) for neutral in _WITHOUT_EFFECT[name]):
                    hint = f": {_INSTEAD[name]}" if name in _INSTEAD else ""
                    raise NotReadable(f'this "{name}" is not supported{hint}')
            elif name in _REFUSED:
                hint = f": {_INSTEAD[name]}" if name in _INSTEAD else ""
                raise NotReadable(f'"{name}" is not supported{hint}')
            else:
                raise NotReadable("it has a field that capt-local does not know")


def _same(value: object, other: object) -> bool:
    """As JSON: true is not 1."""
    return isinstance(value, bool) == isinstance(other, bool) and value == other
