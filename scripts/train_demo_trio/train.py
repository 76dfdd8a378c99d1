"""The training loop of one stage: schedule, checkpoints, held-out loss."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from scripts.train_demo_trio.model import Llama, make_optimizers
from scripts.train_demo_trio.stages import STREAMS, TURNS, Preset, Shape, Stage
from scripts.train_demo_trio.streams import Packer, Stream, Vocab, read_streams

SAVE_EVERY = 120.0  # seconds
_LOG_EVERY = 25  # steps
_MEASURED = 5  # times a stage's held-out text is measured on the way


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
    """One stage's training.

    Args:
        stage: what is trained.
        preset: its size.
        work: folder of streams, vocabulary and checkpoints.
        device: "auto" takes a GPU where there is one.
        seed: of weights and rows.
    """

    def __init__(
        self, stage: Stage, preset: Preset, work: Path, *, device: str = "auto", seed: int = 1
    ) -> None:
        self.stage, self.preset, self.work, self.seed = stage, preset, work, seed
        self.vocab, self.path = Vocab(work), checkpoint(work, stage.name)
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        self.device = torch.device(device)
        torch.set_float32_matmul_precision("high")
        torch.manual_seed(seed)
        self.model = Llama(preset.shape)
        if stage.start_from:
            parent = torch.load(checkpoint(work, stage.start_from), "cpu", weights_only=False)
            self.model.load_state_dict(parent["model"])
        self.model.to(self.device)
        self.optimizers = make_optimizers(self.model, stage.lr, stage.decay)
        self._losses: Callable[..., torch.Tensor] = self.model.losses
        if preset.compiled:
            self._losses = torch.compile(self._losses)

    def run(self, stop_at: float = math.inf, tokens: int = 0) -> bool:
        """Trains to the end of the stage, or to a time; a later run goes on from there.

        Args:
            stop_at: time (of time.time()) at which this run saves and ends.
            tokens: instead of those that the epochs give.

        Returns:
            Whether the stage is done.
        """
        streams = read_streams(self.work, tuple(self.stage.epochs))
        epochs, context = self.preset.epochs(self.stage), self.model.shape.context
        total = tokens or sum(round(epochs[n] * len(s.ids)) for n, s in streams.items())
        packer = Packer(streams, epochs, context, self.seed)
        steps, step = max(1, round(total / (self.preset.rows * context))), 0
        if self.path.exists():
            step = self._resume(packer)
        saved_at, mean = time.monotonic(), None
        while step < steps and time.time() < stop_at:
            loss = self._step(packer, step / steps)
            mean = loss if mean is None else mean.lerp(loss, 0.05)
            step += 1
            if step % _LOG_EVERY == 0:
                self._log(step=step, of=steps, loss=round(float(mean), 4))
            if step % max(1, steps // _MEASURED) == 0 or step == steps:
                held = read_streams(self.work, self._held_names(), held=True)
                bits = held_out_bits(self.model, held, self.vocab)
                self._log(step=step, held={name: round(one, 4) for name, one in bits.items()})
            if time.monotonic() - saved_at > SAVE_EVERY:
                self._save(packer, step)
                saved_at = time.monotonic()
        self._save(packer, step)
        if step >= steps:
            (self.work / f"{self.stage.name}.done").touch()
        return step >= steps

    def _step(self, packer: Packer, progress: float) -> torch.Tensor:
        rows, shares = (torch.from_numpy(part) for part in packer.rows(self.preset.rows))
        ids, weights = rows.to(self.device), shares.to(self.device)[:, 1:].flatten()
        losses = self._losses(ids[:, :-1].contiguous(), ids[:, 1:])
        loss = (losses * weights).sum() / weights.sum()
        loss.backward()
        warmup = self.stage.warmup
        factor = max(min(progress / warmup, (1 - progress) / (1 - warmup), 1.0), 1e-3)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = self.stage.lr * factor
            optimizer.step()
            optimizer.zero_grad()
        return loss.detach()

    def _save(self, packer: Packer, step: int) -> None:
        state = {
            "shape": asdict(self.model.shape),
            "model": self.model.state_dict(),
            "optimizers": [each.state_dict() for each in self.optimizers],
            "packer": packer.state(),
            "step": step,
        }
        torch.save(state, self.path.with_suffix(".tmp"))
        self.path.with_suffix(".tmp").replace(self.path)

    def _resume(self, packer: Packer) -> int:
        """Takes up a checkpoint of this stage; the steps that it has done."""
        saved = torch.load(self.path, map_location=self.device, weights_only=False)
        self.model.load_state_dict(saved["model"])
        for optimizer, state in zip(self.optimizers, saved["optimizers"], strict=True):
            optimizer.load_state_dict(state)
        packer.restore(saved["packer"])
        return int(saved["step"])

    def _held_names(self) -> list[str]:
        """Streams whose held-out part says how the stage goes: its own, and what its heir reads."""
        turns = any(name.startswith(TURNS) for name in self.stage.epochs)
        return [name for name in STREAMS if turns or not name.startswith(TURNS)]

    def _log(self, **values: object) -> None:
        line = json.dumps({"stage": self.stage.name, **values})
        print(line, flush=True)
        with (self.work / f"{self.stage.name}.log").open("a", encoding="utf-8") as log:
            log.write(line + "\n")
