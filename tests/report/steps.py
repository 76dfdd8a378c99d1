"""Steps written by hand."""

from __future__ import annotations

from capt_local.decoding.step import Choice, FinishReason, Step


def step(
    index: int,
    piece: bytes,
    *,
    instead: bytes | None = None,
    logp: float = -0.5,
    target_logp: float = -2.0,
    contrast: float = 1.5,
    finish: FinishReason | None = None,
) -> Step:
    """A step; `instead` is what the target alone would have said, if that was another token."""
    token = 10 + index
    own = Choice(token, piece, target_logp)
    other = Choice(1000 + index, instead, -0.25) if instead is not None else own
    return Step(
        index=index,
        token=token,
        piece_bytes=piece,
        logp=logp,
        target_logp=target_logp,
        target_rank=0 if instead is None else 3,
        target_choice=other,
        contrast=contrast,
        top=(Choice(token, piece, logp), Choice(7, b"\xc2", -3.0)),
        target_top=(other,),
        expert_top=(Choice(3, piece, -0.1),),
        base_top=(Choice(4, b"x", -0.2),),
        finish=finish,
    )
