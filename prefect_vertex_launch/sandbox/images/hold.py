"""A training run that goes on until somebody stops it."""

from __future__ import annotations

import itertools
import time

import wandb


def main() -> None:
    """Train without end."""
    with wandb.init() as run:
        for step in itertools.count():
            run.log({"step": step})
            time.sleep(1)


if __name__ == "__main__":
    main()
