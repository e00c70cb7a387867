"""The container images that the sandbox knows: for each name the local program that stands for it."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path

_HERE = Path(__file__).parent


def _program(name: str) -> tuple[str, ...]:
    return (sys.executable, str(_HERE / f"{name}.py"))


IMAGES: Mapping[str, tuple[str, ...]] = {
    "sandbox/train": _program("train"),
    "sandbox/fail": _program("fail"),
    "sandbox/hold": _program("hold"),
    "sandbox/no-wandb": _program("no_wandb"),
    "python": (sys.executable,),
}
