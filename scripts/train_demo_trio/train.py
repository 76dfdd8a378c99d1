"""The training loop of one stage: schedule, checkpoints, held-out loss."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from scripts.train_demo_trio.batches import Packer, Stream
from scripts.train_demo_trio.head import head_loss, part
from scripts.train_demo_trio.model import Llama
from scripts.train_demo_trio.optim import make_optimizers
from scripts.train_demo_trio.shapes import Shape
from scripts.train_demo_trio.stages import STREAMS, TURNS, Preset, Stage
from scripts.train_demo_trio.vocab import Vocab

SAVE_EVERY = 120.0  # seconds
_LOG_EVERY = 25  # steps
_MEASURED = 5  # times a stage's held-out text is measured on the way


@dataclass
class Clock:
    """How much of a stage's budget is gone: tokens or minutes, whichever is nearer to its end.

    A slow machine therefore still decays its learning rate to zero in time.
    """

    tokens_total: int
    minutes: float
    tokens: int = 0
    spent: float = 0.0
    since: float = field(default_factory=time.monotonic)

    def seconds(self) -> float:
        """Seconds of training, over all resumed runs."""
        return self.spent + time.monotonic() - self.since

    def progress(self) -> float:
        """From 0 to 1."""
        return max(self.tokens / self.tokens_total, self.seconds() / (60 * self.minutes))


@dataclass(frozen=True, slots=True)
class Limits:
    """Of one run of a stage.

    Attributes:
        tokens: after which the stage is done.
        minutes: of training after which it is done all the same, over all runs.
        stop_at: time (of time.time()) at which this run saves and ends, done or not.
    """

    tokens: int
    minutes: float = math.inf
    stop_at: float = math.inf


def pick_device(name: str) -> torch.device:
    """`auto` takes a GPU when there is one."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)


def checkpoint(work: Path, stage: str) -> Path:
    """Where a stage's checkpoint is."""
    return work / f"{stage}.pt"


def is_done(work: Path, stage: str) -> bool:
    """Whether a stage has reached its end."""
    return (work / f"{stage}.done").exists()


def load_model(path: Path, dtype: torch.dtype = torch.bfloat16) -> Llama:
    """The model of a checkpoint."""
    saved = torch.load(path, map_location="cpu", weights_only=False)
    model = Llama(Shape(**saved["shape"]), dtype)
    model.load_state_dict(saved["model"])
    return model


@torch.no_grad()
def held_out_bits(model: Llama, streams: Mapping[str, Stream], vocab: Vocab) -> dict[str, float]:
    """Bits per byte of held-out units, the first context window of each.

    Of turns only the answer counts; its bytes are those of its tokens.
    """
    lengths, device = np.array(vocab.byte_lengths()), model.token_embd.device
    at_once = 16 if device.type == "cuda" else 1
    bits: dict[str, float] = {}
    for name, stream in streams.items():
        nats, size = 0.0, 0
        for first in range(0, len(stream), at_once):
            ids, counted = _padded(stream, first, at_once, model.shape.context + 1)
            row = torch.from_numpy(ids).to(device)
            losses = model.losses(row[:, :-1], row[:, 1:]).double().cpu().numpy()
            nats += float(losses[counted.ravel()].sum())
            size += int(lengths[ids[:, 1:][counted]].sum())
        bits[name] = nats / math.log(2) / max(size, 1)
    return bits


def _padded(
    stream: Stream, first: int, count: int, longest: int
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Units as rows of one length, and which tokens behind the first of each row count."""
    units = [stream.unit(i) for i in range(first, min(first + count, len(stream)))]
    length = min(max(len(ids) for ids, _ in units), longest)
    rows = np.zeros((len(units), length), np.int64)
    counted = np.zeros((len(units), length), np.bool_)
    for row, (ids, weights) in enumerate(units):
        rows[row, : len(ids)] = ids[:length]
        counted[row, : len(ids)] = weights[:length] == 1.0
    return rows, counted[:, 1:]


class Trainer:
    """One stage's training; `run` goes to the end of the stage or of the time given."""

    def __init__(
        self, stage: Stage, preset: Preset, vocab: Vocab, work: Path, *, device: str, seed: int,
        compiled: bool,
    ) -> None:  # fmt: skip
        """Make the model, from its parent's weights where the stage has one."""
        self.stage, self.preset, self.vocab, self.work = stage, preset, vocab, work
        self.path, self.seed = checkpoint(work, stage.name), seed
        self.device = pick_device(device)
        torch.set_float32_matmul_precision("high")
        torch.manual_seed(seed)
        self.model = Llama(preset.shapes[stage.role])
        if stage.start_from:
            parent = torch.load(checkpoint(work, stage.start_from), "cpu", weights_only=False)
            self.model.load_state_dict(parent["model"])
        self.model.to(self.device)
        self.optimizers = make_optimizers(self.model, stage.lr, stage.embed_lr, stage.decay)
        self._hidden: Callable[..., torch.Tensor] = self.model.hidden
        self._part = part
        if compiled:
            self._hidden, self._part = torch.compile(self._hidden), torch.compile(part)

    def _lr_factor(self, progress: float) -> float:
        warmup = self.stage.warmup
        return max(min(progress / warmup, (1 - progress) / (1 - warmup), 1.0), 1e-3)

    def _step(self, packer: Packer, progress: float, step: int) -> torch.Tensor:
        rows, shares = (torch.from_numpy(part) for part in packer.rows(self.preset.rows))
        ids = rows.to(self.device, non_blocking=True)
        weights = shares.to(self.device, non_blocking=True)[:, 1:]
        if self.stage.noise:  # a resumed run draws the same noise
            torch.manual_seed(self.seed * 1_000_003 + step)
        x = self._hidden(ids[:, :-1].contiguous(), noise=self.stage.noise)
        loss = head_loss(x, self.model.token_embd, ids[:, 1:], weights, self._part)
        loss.backward()
        factor = self._lr_factor(progress)
        rates = (self.stage.lr, self.stage.embed_lr)
        for optimizer, rate in zip(self.optimizers, rates, strict=True):
            for group in optimizer.param_groups:
                group["lr"] = rate * factor
            optimizer.step()
            optimizer.zero_grad()
        return loss.detach()

    def _save(self, packer: Packer, clock: Clock, step: int) -> None:
        state = {
            "stage": self.stage.name,
            "shape": self.model.shape.to_dict(),
            "model": self.model.state_dict(),
            "optimizers": [o.state_dict() for o in self.optimizers],
            "packer": packer.state(),
            "tokens": clock.tokens,
            "seconds": clock.seconds(),
            "step": step,
        }
        torch.save(state, self.path.with_suffix(".tmp"))
        os.replace(self.path.with_suffix(".tmp"), self.path)

    def _resume(self, packer: Packer, clock: Clock) -> int:
        saved: dict[str, Any] = torch.load(self.path, "cpu", weights_only=False)
        self.model.load_state_dict(saved["model"])
        for optimizer, state in zip(self.optimizers, saved["optimizers"], strict=True):
            optimizer.load_state_dict(state)
        packer.restore(saved["packer"])
        clock.tokens, clock.spent = saved["tokens"], saved["seconds"]
        return int(saved["step"])

    def run(self, train: dict[str, Stream], held: dict[str, Stream], limits: Limits) -> bool:
        """Train; returns whether the stage is done (else it was stopped in time)."""
        packer = Packer(train, self.preset.epochs(self.stage), self.model.shape.context, self.seed)
        clock = Clock(limits.tokens, limits.minutes)
        step = begun = self._resume(packer, clock) if self.path.exists() else 0
        clock.since = saved_at = time.monotonic()
        measured, mean = int(clock.progress() * _MEASURED), None
        while (progress := clock.progress()) < 1 and time.time() < limits.stop_at:
            loss = self._step(packer, progress, step)
            mean = loss if mean is None else mean.lerp(loss, 0.05)
            clock.tokens += self.preset.rows * self.model.shape.context
            step += 1
            if step == begun + 1:
                clock.since = time.monotonic()  # compiling is not training
            if step % _LOG_EVERY == 0:
                self._tell(step, mean, clock)
            if int(progress * _MEASURED) > measured:
                measured = int(progress * _MEASURED)
                self._measure(held, clock)
            if time.monotonic() - saved_at > SAVE_EVERY:
                self._save(packer, clock, step)
                saved_at = time.monotonic()
        self._save(packer, clock, step)
        done = progress >= 1
        self._log(ended=step, done=done, tokens=clock.tokens, seconds=round(clock.seconds()))
        if done:
            self._measure(held, clock)
            self._log(epochs=packer.epochs)
            (self.work / f"{self.stage.name}.done").touch()
        return done

    def _tell(self, step: int, mean: torch.Tensor, clock: Clock) -> None:
        """A line of the log; the only place where the CPU waits for the GPU."""
        self._log(
            step=step,
            loss=round(float(mean), 4),
            tokens=clock.tokens,
            seconds=round(clock.seconds(), 1),
            progress=round(clock.progress(), 4),
        )

    def _measure(self, held: dict[str, Stream], clock: Clock) -> None:
        """Held-out loss: tells from where on a stage stops paying. Not part of the time."""
        before = time.monotonic()
        bits = held_out_bits(self.model, held, self.vocab)
        clock.since += time.monotonic() - before
        told = {name: round(value, 4) for name, value in bits.items()}
        self._log(progress=round(clock.progress(), 3), held=told)

    def _log(self, **values: object) -> None:
        line = json.dumps({"stage": self.stage.name, **values})
        print(line, flush=True)
        with (self.work / f"{self.stage.name}.log").open("a", encoding="utf-8") as log:
            log.write(line + "\n")


def held_names(stage: Stage) -> list[str]:
    """Streams whose held-out part tells how a stage goes: its own, and what its heir reads."""
    turns = any(name.startswith(TURNS) for name in stage.epochs)
    return [n for n in STREAMS[stage.role] if turns or not n.startswith(TURNS)]
