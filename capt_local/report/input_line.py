"""The input line of a chat. The only file that imports prompt_toolkit.

Nothing is written to the disk: the history for the arrow keys lasts until the session ends.
Characters that would move the cursor or reverse the direction of text are shown escaped, as
everywhere; the text itself is not changed.
"""

from __future__ import annotations

import asyncio
import contextlib
import termios
import time
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from prompt_toolkit import PromptSession
from prompt_toolkit.application import Application
from prompt_toolkit.clipboard import InMemoryClipboard
from prompt_toolkit.completion import CompleteEvent, Completer, Completion
from prompt_toolkit.document import Document
from prompt_toolkit.formatted_text import (
    StyleAndTextTuples,
    fragment_list_to_text,
)
from prompt_toolkit.history import InMemoryHistory
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
from prompt_toolkit.layout.controls import BufferControl
from prompt_toolkit.layout.processors import Processor, Transformation, TransformationInput
from prompt_toolkit.layout.utils import explode_text_fragments
from prompt_toolkit.output.defaults import create_output
from prompt_toolkit.styles import Style as TypedStyle

from capt_local.report.views import visible_line

Offers = Callable[[str], Iterable[tuple[str, int]]]
_PROMPT, _MORE = ">>> ", "... "
_TAB = " " * 4
_STYLE = TypedStyle.from_dict({"prompt": "bold", "spelled": "reverse"})


class Idle(Exception):
    """Nothing was typed for too long."""


class Woken(Exception):
    """Somebody called `InputLine.wake`."""


class InputLine:
    """Reads one text after another; `typed` is the content of the line when `ask` ended.

    `offers` is what Tab offers for the text before the cursor: (text, how much it replaces); `idle`
    are the seconds without a key after which `ask` gives up.
    """

    def __init__(self, offers: Offers, idle: float | None = None) -> None:
        self.typed = ""
        self._idle = idle
        self._last_key = 0.0
        self._woken = False
        output = create_output(always_prefer_tty=True)
        # A terminal replies to a query of the cursor position with a delay: the reply would appear
        # as text in the shell if the session has ended meanwhile.
        if hasattr(output, "enable_cpr"):
            output.enable_cpr = False
        self._session: PromptSession[str] = PromptSession(
            [("class:prompt", _PROMPT)],
            output=output,
            multiline=True,
            prompt_continuation=lambda width, *_: [("class:prompt", _MORE[:width])],
            key_bindings=self._keys(),
            completer=_Offered(offers),
            complete_while_typing=False,
            history=InMemoryHistory(),
            input_processors=[_SpelledOut()],
            style=_STYLE,
            include_default_pygments_style=False,
            reserve_space_for_menu=6,
        )
        self._session.app.key_processor.before_key_press += self._note_key

    def ask(self, draft: str = "") -> str:
        """Reads one text, possibly of several lines; the line initially holds `draft`.

        Raises:
            KeyboardInterrupt: Ctrl-C; `typed` is what was there.
            EOFError: Ctrl-D on an empty line, or the terminal has gone.
            Idle: nothing was typed for too long.
            Woken: `wake` was called.
        """
        try:
            return self._session.prompt(default=draft, pre_run=self._begun)
        finally:
            self.typed = self._session.default_buffer.text

    def wake(self) -> None:
        """Ends `ask`; may be called from a signal handler."""
        self._woken = True  # the line may only be about to be asked for
        app = self._session.app
        if app.loop is not None:
            app.loop.call_soon_threadsafe(_leave, app, Woken())

    def forget(self) -> None:
        """Clears history, clipboard and searches."""
        session = self._session
        self.typed = ""
        session.clipboard = InMemoryClipboard()
        session.history = InMemoryHistory()
        session.default_buffer.history = session.history
        session.search_buffer.history = InMemoryHistory()
        session.default_buffer.reset()
        session.search_buffer.reset()
        for control in session.app.layout.find_all_controls():
            if isinstance(control, BufferControl):
                control.search_state.text = ""

    @contextlib.contextmanager
    def quiet(self) -> Iterator[None]:
        """Turns echo off during an answer; keys typed meanwhile go to the next line."""
        terminal, output, before = self._session.input.fileno(), self._session.output, None
        with contextlib.suppress(termios.error):
            before = termios.tcgetattr(terminal)
            silent = termios.tcgetattr(terminal)
            silent[3] &= ~(termios.ECHO | termios.ICANON)
            termios.tcsetattr(terminal, termios.TCSADRAIN, silent)
        try:
            # So a text that is pasted meanwhile is not sent line by line.
            output.enable_bracketed_paste()
            output.flush()
            yield
        finally:
            try:
                output.disable_bracketed_paste()
                output.flush()
            finally:
                if before is not None:
                    with contextlib.suppress(termios.error):  # the terminal may have gone
                        termios.tcsetattr(terminal, termios.TCSADRAIN, before)

    def _begun(self) -> None:
        self._note_key()
        if self._woken:
            _leave(self._session.app, Woken())
        if self._idle is not None:
            self._session.app.create_background_task(self._watch(self._idle))

    def _note_key(self, _: object = None) -> None:
        self._last_key = time.monotonic()

    async def _watch(self, idle: float) -> None:
        while (left := self._last_key + idle - time.monotonic()) > 0:
            await asyncio.sleep(left)
        _leave(self._session.app, Idle())

    def _keys(self) -> KeyBindings:
        keys = KeyBindings()

        @keys.add("escape", "enter")
        def _new_line(event: KeyPressEvent) -> None:
            event.current_buffer.insert_text("\n")

        @keys.add("enter")
        def _send(event: KeyPressEvent) -> None:
            event.current_buffer.validate_and_handle()

        return keys


class _Offered(Completer):
    """Completions from a plain function; names of files are sanitised where they are shown."""

    def __init__(self, offers: Offers) -> None:
        self._offers = offers

    def get_completions(self, document: Document, event: CompleteEvent) -> Iterator[Completion]:
        for text, back in self._offers(document.text_before_cursor):
            yield Completion(text, -back, display=visible_line(text))


class _SpelledOut(Processor):
    r"""Shows control characters escaped, such as `\x1b`; see `views.visible`."""

    def apply_transformation(self, transformation_input: TransformationInput) -> Transformation:
        text = fragment_list_to_text(transformation_input.fragments)
        if visible_line(text) == text:  # quick: this is done at every key, for a whole note
            return Transformation(transformation_input.fragments)
        fragments: StyleAndTextTuples = []
        places = [0]  # offset of each character in the displayed text
        for style, character, *_ in explode_text_fragments(transformation_input.fragments):
            shown = _TAB if character == "\t" else visible_line(character)
            spelled = shown not in (character, _TAB)
            fragments.append((f"{style} class:spelled" if spelled else style, shown))
            places.append(places[-1] + len(shown))

        def shown_at(place: int) -> int:
            over = place - (len(places) - 1)
            return places[place] if over <= 0 else places[-1] + over

        def source_at(place: int) -> int:
            return bisect_right(places, place) - 1 + max(0, place - places[-1])

        return Transformation(fragments, shown_at, source_at)


def _leave(app: Application[Any], error: Exception) -> None:
    if app.is_running and not app.is_done:
        app.exit(exception=error)
