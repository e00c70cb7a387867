"""The eight runs of the demo: how each is pushed, and how it must come out in all three systems."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

POOL: dict[str, Any] = {
    "machine_spec": {"machine_type": "n1-standard-4"},
    "replica_count": 1,
    "container_spec": {"image_uri": "${image_uri}"},
}
_CAMEL_CASE_POOL = {
    "machine_spec": {"machine_type": "n1-standard-4"},
    "replicaCount": 1,
    "container_spec": {"image_uri": "${image_uri}"},
}
_ANSWER = "import wandb; run = wandb.init(); run.log({'answer': 42}); run.finish()"
# Deaf to W&B's own stop signal, so that it is the job that has to be cancelled; told to end by Vertex AI
# it says so to W&B, as a training program should.
_ENDLESS = """
import signal, sys, time, wandb
signal.signal(signal.SIGINT, signal.SIG_IGN)
signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
with wandb.init() as run:
    for step in range(600):
        run.log({"step": step})
        time.sleep(1)
"""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a run: None where a system has nothing to say of it.

    `item` is the state of the queue item and `run` that of the run at W&B, `job` that of the
    CustomJob, `launch` that of the flow run; `summary` and `config` are the run's, as W&B has them.
    """

    item: str | None = None
    run: str | None = None
    job: str | None = None
    launch: str | None = None
    summary: Mapping[str, Any] = field(default_factory=dict[str, Any])
    config: Mapping[str, Any] = field(default_factory=dict[str, Any])
    message: str = ""


@dataclass(frozen=True, slots=True)
class DemoRun:
    """One run: the options of `wandb launch` that push it, and its expected outcome.

    Of `summary` and `config` the expected entries must be there, and `message` must be part of what
    the launch says.
    """

    name: str
    shows: str
    expected: Outcome
    image: str = "sandbox/train"
    entry_point: str | None = None
    overrides: Mapping[str, Any] = field(default_factory=dict[str, Any])
    resource_args: Mapping[str, Any] | None = None
    is_stopped: bool = False

    def deviations(self, outcome: Outcome) -> list[str]:
        """Return what did not come out as it should, one line each."""
        expected = self.expected
        found = [
            f"{what} is {there!r}, not {wanted!r}"
            for what, wanted, there in (
                ("the W&B item", expected.item, outcome.item),
                ("the W&B run", expected.run, outcome.run),
                ("the Vertex AI job", expected.job, outcome.job),
                ("the Prefect flow run", expected.launch, outcome.launch),
            )
            if wanted != there
        ]
        for place, wanted, there in (
            ("summary", expected.summary, outcome.summary),
            ("config", expected.config, outcome.config),
        ):
            found += [
                f"{place} {key!r} of the W&B run is {there.get(key)!r}, not {value!r}"
                for key, value in wanted.items()
                if there.get(key) != value
            ]
        if expected.message not in outcome.message:
            found.append(f"the launch says {outcome.message!r}, not {expected.message!r}")
        return found


def _trained(**summary: Any) -> Outcome:
    return Outcome("claimed", "finished", "succeeded", "Completed", summary)


RUNS = (
    # The first one: the agent has something to do until the others are pushed and this one is stopped.
    DemoRun(
        "stopped",
        "stopped at W&B",
        Outcome("failed", "killed", "cancelled", "Cancelled", message="Stopped at W&B by a user"),
        image="python",
        entry_point=shlex.join(["python", "-c", _ENDLESS]),
        is_stopped=True,
    ),
    DemoRun("plain", "image as it is", _trained(epochs=3, learning_rate=0.1)),
    DemoRun(
        "with-args",
        "args reach the program",
        _trained(epochs=3, learning_rate=0.02),
        overrides={"args": ["--learning-rate", "0.02"]},
    ),
    DemoRun(
        "with-config",
        "run config reaches it",
        _trained(epochs=7, learning_rate=0.1),
        overrides={"run_config": {"epochs": 7}},
    ),
    DemoRun(
        "with-both",
        "args and run config",
        _trained(epochs=2, learning_rate=0.5),
        overrides={"args": ["--learning-rate", "0.5"], "run_config": {"epochs": 2}},
    ),
    DemoRun(
        "entry-point",
        "--entry-point is the command",
        _trained(answer=42),
        image="python",
        entry_point=shlex.join(["python", "-c", _ANSWER]),
    ),
    DemoRun(
        "failing",
        "the program raises",
        Outcome("failed", "failed", "failed", "Failed", message="exited with 1"),
        image="sandbox/fail",
    ),
    DemoRun(
        "broken-spec",
        "camelCase in the spec",
        Outcome("failed", None, None, "Refused", message="replica_count"),
        resource_args={
            "gcp-vertex": {
                "spec": {"worker_pool_specs": [_CAMEL_CASE_POOL], "staging_bucket": "gs://demo-staging"}
            }
        },
    ),
)
