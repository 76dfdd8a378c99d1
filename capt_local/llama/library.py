"""The llama.cpp library, loaded once: its log, backends, devices and build information.

llama.cpp has process-wide state (one log, one set of backends), so there is a single `Library`,
made on first use; importing this module does not load llama.cpp. Helpers for code that calls into
the library follow: closing, and Ctrl-C while C code runs.
"""

from __future__ import annotations

import _thread
import contextlib
import ctypes
import os
import signal
import sys
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import FrameType
from typing import Any, Self

from capt_local.errors import BackendFailed, UsageError
from capt_local.hardening import keep_memory_private
from capt_local.llama.devices import (
    DEVICE_KINDS,
    Device,
    DeviceProperties,
    disable_crashing_formats,
)
from capt_local.llama.resources import busy_cores, limit_spinning

# The ctypes structures of the binding fit only the library that it was built with.
BINDING_VERSION = "0.3.36"

_WARN, _ERROR, _CONTINUED = 3, 4, 5
_LONGEST = 300  # characters of an error
_MOST_LINES = 512  # of the log


@dataclass(frozen=True, slots=True)
class BuildInfo:
    """What `doctor` shows about llama.cpp."""

    binding: str  # version of llama-cpp-python
    llama_cpp: str  # version
    gpu_offload: bool  # whether the build can put layers on a GPU
    system_info: str  # instruction sets and build flags
    left_out: tuple[str, ...]  # repacked weight formats that are disabled since they crash
    devices: tuple[Device, ...]


class Library:
    """llama.cpp's functions (`api` is the binding's module) and its captured log."""

    def __init__(self) -> None:
        keep_freed_memory()
        limit_spinning()
        busy_cores()  # starts to measure
        self.api: Any = _import_binding()
        self._lines: deque[tuple[int, str]] = deque(maxlen=_MOST_LINES)
        # llama.cpp keeps only the address, so the callback has to live as long as the library.
        self._callback = self.api.llama_log_callback(self._log)
        self.api.llama_log_set(self._callback, None)
        self._abort_callback = ctypes.CFUNCTYPE(None, ctypes.c_char_p)(self._aborted)
        self.function("ggml_set_abort_callback", ctypes.c_void_p, ctypes.c_void_p)(
            self._abort_callback
        )
        self.api.llama_backend_init()
        self.formats = disable_crashing_formats(self.function, Path(self.api._lib._name).parent)

    def function(self, name: str, result: Any, *arguments: Any) -> Callable[..., Any]:
        """A C function of llama.cpp or ggml, with its own prototype instead of the binding's."""
        found = self.api._lib[name]
        found.restype = result
        found.argtypes = list(arguments)
        return found

    def forget_errors(self) -> None:
        """Clears the captured log, so that `last_error` reports later errors only."""
        self._lines.clear()

    def last_error(self) -> str:
        """The first error that llama.cpp logged since `forget_errors`, without its function name.

        The first one gives the cause; those after it only report that something failed. It may
        quote contents of a file, so only printable characters are kept, and it is truncated.
        """
        lines = list(self._lines)
        for wanted in (_ERROR, _WARN):
            for level, line in lines:
                if level == wanted and line.strip():
                    return _reason(line)
        return ""

    def warnings(self) -> list[str]:
        """The warnings that llama.cpp logged since `forget_errors`."""
        return [line for level, line in self._lines if level == _WARN]

    def build_info(self) -> BuildInfo:
        """Versions, build flags and devices."""
        api = self.api
        return BuildInfo(
            binding=BINDING_VERSION,
            llama_cpp=_text(api.llama_version()),
            gpu_offload=bool(api.llama_supports_gpu_offload()),
            system_info=_text(api.llama_print_system_info()).strip(),
            left_out=self.formats.left_out,
            devices=self.devices(),
        )

    def devices(self) -> tuple[Device, ...]:
        """llama.cpp's devices, with their free memory now."""
        address, size = ctypes.c_void_p, ctypes.c_size_t
        get = self.function("ggml_backend_dev_get", address, size)
        describe = self.function("ggml_backend_dev_get_props", None, address, address)
        found = []
        for index in range(self.function("ggml_backend_dev_count", size)()):
            about = DeviceProperties()
            describe(get(index), ctypes.byref(about))
            found.append(
                Device(
                    name=_text(about.name),
                    description=_text(about.description),
                    kind=DEVICE_KINDS[about.type],
                    free=about.memory_free,
                    total=about.memory_total,
                    identity=_text(about.device_id),
                )
            )
        return tuple(found)

    def _log(self, level: int, text: bytes, _data: object) -> None:
        try:
            line = text.decode("utf-8", "replace")
            if level == _CONTINUED:
                if self._lines:
                    last, before = self._lines.pop()
                    self._lines.append((last, before + line))
            elif level in (_WARN, _ERROR):
                self._lines.append((level, line))
        except KeyboardInterrupt:
            # An exception cannot leave a C callback; the interrupt is raised again afterwards.
            _thread.interrupt_main()

    def _aborted(self, message: bytes) -> None:
        """Called before ggml aborts the process, on any thread: after a GPU failure, for example.

        An exception cannot leave a callback, so Python passes it to `sys.unraisablehook`: there the
        command line prints the message and exits with its code.
        """
        place, colon, what = message.decode("utf-8", "replace").partition(": ")
        reason = f"{place.rpartition('/')[2]}{colon}{what}"[:_LONGEST]
        errors = [line for level, line in list(self._lines) if level == _ERROR and line.strip()]
        known = f" ({_reason(errors[-1])})" if errors else ""
        raise BackendFailed(f"A device of llama.cpp failed, or it found a defect: {reason}{known}.")


def _reason(line: str) -> str:
    """A log line without its function name, printable and truncated."""
    _, _, reason = line.strip().partition(": ")
    return "".join(char for char in reason or line.strip() if char.isprintable())[:_LONGEST]


def _import_binding() -> Any:
    if os.environ.get("LLAMA_CPP_LIB_PATH"):
        raise UsageError(
            "LLAMA_CPP_LIB_PATH points to another llama.cpp library. Unset it: only the library "
            "that was installed together with the binding is safe to use."
        )
    # A failed assertion in ggml would start a debugger on the process and dump patient text.
    os.environ["GGML_NO_BACKTRACE"] = "1"
    keep_memory_private()
    try:
        import llama_cpp
    except ImportError:
        raise UsageError(
            f"llama-cpp-python is not installed: pip install llama-cpp-python=={BINDING_VERSION}"
        ) from None
    except (OSError, RuntimeError) as error:  # its own library, or one that that needs
        raise UsageError(
            f"llama-cpp-python is installed, but llama.cpp cannot be loaded: {error}. On Linux it "
            "needs libstdc++.so.6 and libgomp.so.1."
        ) from None
    if llama_cpp.__version__ != BINDING_VERSION:
        raise UsageError(
            f"llama-cpp-python {llama_cpp.__version__} is installed, but this version needs "
            f"exactly {BINDING_VERSION}: pip install llama-cpp-python=={BINDING_VERSION}"
        )
    return llama_cpp.llama_cpp


def _text(value: bytes | None) -> str:
    return (value or b"").decode("utf-8", "replace")


@cache
def library() -> Library:
    """The library of this process, loaded on the first call (0.3 s)."""
    return Library()


class Closing:
    """Base class of context managers that call `close` on exit."""

    def close(self) -> None:
        raise NotImplementedError

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class DeferredInterrupts:
    """Records Ctrl-C inside a `with` block and delivers it at the end.

    Python runs signal handlers inside callbacks from C code, where an exception is printed and
    lost. So the interrupt is recorded, and delivered once the C code has returned.
    """

    def __init__(self) -> None:
        self.requested = False  # polled by C callbacks, to stop early
        self._handler: object = None
        self._frame: FrameType | None = None

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._handler = signal.getsignal(signal.SIGINT)
            if callable(self._handler):
                signal.signal(signal.SIGINT, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        handler, frame = self._handler, self._frame
        self._handler = self._frame = None
        if callable(handler):
            signal.signal(signal.SIGINT, handler)
            if self.requested:
                handler(signal.SIGINT, frame)

    def _note(self, _signal: int, frame: FrameType | None) -> None:
        self.requested = True
        self._frame = frame


_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # <malloc.h>
# Larger than any array of a step, except rows of many prompt positions.
_LARGEST = 8 << 20
_KEPT = 32 << 20  # bytes at the end of the heap that may stay unused


def keep_freed_memory() -> None:
    """Lets this process keep some freed memory, where its C library can be set so (glibc).

    A step allocates and frees some dozen arrays of 0.1 to 1 MB. By default glibc returns memory of
    that size to the kernel at once and requests it again a moment later, with a page fault for each
    page. That was half of the time of numpy in a step. Settings that somebody made
    for the process stay as they are.
    """
    settled = any(name.startswith("MALLOC_") for name in os.environ)
    settled = settled or "glibc.malloc" in os.environ.get("GLIBC_TUNABLES", "")
    if sys.platform == "linux" and not settled:
        with contextlib.suppress(OSError, AttributeError):
            mallopt = ctypes.CDLL(None).mallopt
            mallopt(_MMAP_THRESHOLD, _LARGEST)
            mallopt(_TRIM_THRESHOLD, _KEPT)
