"""The public face: open a bundle, ask, read the answer step by step."""

from capt_local.runtime.opened import Progress, Runtime

__all__ = ["Progress", "Runtime"]
