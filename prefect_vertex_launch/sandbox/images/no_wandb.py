"""A program that does its work and never calls wandb."""

from __future__ import annotations

import sys


def main() -> None:
    """Say hello."""
    sys.stdout.write("hello from a job without wandb\n")


if __name__ == "__main__":
    main()
