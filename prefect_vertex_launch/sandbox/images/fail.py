"""A training run with a bug: it logs once and then raises."""

from __future__ import annotations

import wandb


def main() -> None:
    """Fail."""
    with wandb.init() as run:
        run.log({"loss": float("inf")})
        raise RuntimeError("loss is not finite")


if __name__ == "__main__":
    main()
