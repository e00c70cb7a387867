"""Whatever an item holds, the steps that it takes grow with its size and no faster."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

import pytest

from prefect_vertex_launch.core.errors import InvalidRunSpec, Permanent
from tests.unit.rendered_launch import launch, pool, read_run_spec

KIB_480 = 470_000
# About a second on a slow core.
MAX_STEPS = 8_000_000


def steps(function: Callable[[], Any]) -> int:
    """Return how many functions are called, those of C among them."""
    count = 0

    def called(_frame: FrameType, event: str, _argument: Any) -> None:
        nonlocal count
        count += event in {"call", "c_call"}

    sys.setprofile(called)
    try:
        function()
    except Permanent:
        pass
    finally:
        sys.setprofile(None)
    return count


SHAPES: dict[str, Callable[[], Any]] = {
    "ranges": lambda: launch(run={"reserved_ip_ranges": ["A"] * (KIB_480 // 5)}),
    "pools": lambda: launch(*[pool()] + [{}] * (KIB_480 // 5)),
    "variables": lambda: launch(pool(env=[{}] * (KIB_480 // 4))),
    "unknown keys": lambda: launch(spec={f"x{number}": 1 for number in range(KIB_480 // 12)}),
    "unknown keys of a pool": lambda: launch({**pool(), **{f"x{n}": 1 for n in range(KIB_480 // 12)}}),
    "template variables": lambda: read_run_spec(
        template_variables={f"x{number}": 1 for number in range(KIB_480 // 14)}
    ),
    "labels": lambda: launch(spec={"labels": {f"k{number}": "" for number in range(KIB_480 // 14)}}),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_the_steps_of_a_full_item(shape: str) -> None:
    assert 0 < steps(SHAPES[shape]) < MAX_STEPS


def test_a_sweeps_id_is_not_long() -> None:
    """It stands in for a placeholder that an item may hold at any number of places."""
    scheduler = {
        "uri": "placeholder-uri-scheduler",
        "docker": {"docker_image": "python"},
        "overrides": {"args": ["WANDB_SWEEP_ID" * 10]},
    }
    assert read_run_spec(**scheduler, run_id="s" * 128).overrides.args == ("s" * 1_280,)
    with pytest.raises(InvalidRunSpec, match="does not name the sweep"):
        read_run_spec(**scheduler, run_id="s" * 129)


@pytest.mark.parametrize(
    ("account", "is_right"),
    [
        ("a@p.iam", True), ("a@.p.iam", True), ("a@.p", False), ("a@p.", False), ("a@p", False),
        ("@p.iam", False),
        ("a@..", False), ("a@...", True), ("a@p.iam@x", False), ("a@" + "." * 400_000 + "@", False),
    ],
)  # fmt: skip
def test_the_form_of_an_account(account: str, is_right: bool) -> None:
    """The last one would take hours if each of its dots were tried."""
    if is_right:
        assert launch(run={"service_account": account})
    else:
        with pytest.raises(Permanent, match="does not have the right form"):
            launch(run={"service_account": account})


def test_a_hundred_secrets_are_looked_for_in_all_texts_at_once() -> None:
    env = [{"name": f"A_KEY_{number}", "value": f"secret-{number:03}"} for number in range(80)]
    rendering = launch(pool(env=env, args=["a secret-007", *["a"] * 5_000]))
    assert steps(rendering.redacted) < 100_000
    (seen,) = rendering.redacted()["job_spec"]["worker_pool_specs"]
    assert seen["container_spec"]["args"][:2] == ["a ********", "a"]
