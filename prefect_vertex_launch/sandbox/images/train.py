"""A training run: reads its arguments and its run config, logs a falling loss, and finishes."""

from __future__ import annotations

import argparse
from typing import Any

import wandb


def main() -> None:
    """Train."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--learning-rate", type=float, default=0.1)
    parser.add_argument("--epochs", type=int, default=3)
    arguments = parser.parse_args()
    with wandb.init(config=vars(arguments)) as run:
        # The launch's run config wins over the program's own defaults.
        config: dict[str, Any] = dict(run.config)
        epochs, learning_rate = int(config["epochs"]), float(config["learning_rate"])
        loss = 1.0
        for epoch in range(epochs):
            loss *= 1 - min(learning_rate, 0.9)
            run.log({"epoch": epoch, "loss": loss})
        run.log({"learning_rate": learning_rate, "epochs": epochs, "final_loss": loss})


if __name__ == "__main__":
    main()
