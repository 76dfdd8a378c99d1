"""LoRA adapters: on one context of several, and refused where they do not fit."""

from __future__ import annotations
