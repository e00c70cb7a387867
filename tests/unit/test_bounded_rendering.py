"""Whatever an item holds, the steps that it takes grow with its size and no faster."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

import pytest

from prefect_vertex_launch.core.errors import InvalidRunSpec, Permanent
from prefect_vertex_launch.core.json_value import json_problems
from prefect_vertex_launch.jobspec.config.queue_config import parse_queue_config
from tests.unit.full_items import SHAPES, whole_way
from tests.unit.rendered_launch import launch, pool, read_run_spec, refused

# What takes the most takes four fifths of them: about a third of a second, a second on a slow core.
MAX_STEPS = 2_000_000


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


# Those that take the most steps; `make slow` looks at all of them.
MOST = {
    ("args in another alphabet", True), ("run config of depth", False), ("unknown macros", True),
    ("scheduler's args", False),
}  # fmt: skip


@pytest.mark.parametrize(
    ("shape", "is_locked"),
    [
        pytest.param(name, is_locked, marks=[] if (name, is_locked) in MOST else [pytest.mark.slow])
        for name in SHAPES
        for is_locked in (False, True)
    ],
)
def test_the_steps_of_a_full_item(shape: str, is_locked: bool) -> None:
    payload = SHAPES[shape]()
    assert not json_problems(payload, where="it is not too large")
    assert 0 < steps(lambda: whole_way(payload, is_locked=is_locked)) < MAX_STEPS


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


def test_a_job_with_too_much_to_look_for_is_masked_as_a_whole() -> None:
    env = [{"name": f"A_KEY_{number}", "value": f"secret-{number:03}"} for number in range(80)]
    task = pool(env=env, args=["plain", "${author}" * 800])
    rendering = launch(task, item={"author": "x" * 1_000})
    (seen,) = rendering.redacted()["job_spec"]["worker_pool_specs"]
    assert seen["container_spec"]["args"] == ["********"] * 2
    assert {variable["value"] for variable in seen["container_spec"]["env"]} == {"********"}


def mounts(count: int) -> dict[str, Any]:
    return {**pool(), "nfs_mounts": [{"server": "s", "path": "/p", "mount_point": "m"}] * count}


def test_a_list_is_no_longer_than_vertex_ai_takes_or_anybody_needs() -> None:
    ranges = [f"r{number}" for number in range(1_001)]
    assert launch(mounts(1_000), run={"reserved_ip_ranges": ranges[:1_000]})
    (mounted,) = refused(mounts(1_001)).values()
    assert "nfs_mounts: a list of 1001 (at most 1,000 may be in it). Remove some." in mounted
    (ranged,) = refused(run={"reserved_ip_ranges": ranges}).values()
    assert "reserved_ip_ranges: a list of 1001 (at most 1,000 may be in it)" in ranged
    (named,) = refused(pool(env=[{"name": f"A{number}"} for number in range(101)])).values()
    assert "env: a list of 101 (at most 100 may be in it)" in named
    (labelled,) = refused(spec={"labels": {f"a{number}": "" for number in range(65)}}).values()
    assert "labels: 65 labels (a job has at most 64). Remove some." in labelled


def test_a_long_machine_type_is_quoted_short() -> None:
    pools = [{**pool(), "machine_spec": {"machine_type": "n" * 400_000}}]
    spec = {"worker_pool_specs": pools, "staging_bucket": "gs://my-bucket"}
    (warning,) = parse_queue_config({"spec": spec}).warnings
    assert len(warning) < 300
