"""Runs of the W&B sandbox: logged by wandb.init(), read back by wandb.Api(), stopped and lost."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from tests.sandbox.real_wandb import ClientError, WandbClient, WandbSandbox

pytestmark = pytest.mark.asyncio(loop_scope="session")

_DOCUMENT = Path(__file__).parents[2] / "docs" / "sandbox.md"
_NOT_ANSWERED = _DOCUMENT.read_text().partition("## What it does not answer")[2]
_TRAIN = """
import sys, wandb
run = wandb.init(project="train", entity="team", id=sys.argv[1], name="nice", config={"lr": 0.1}, tags=["a"])
for step in range(3):
    run.log({"loss": 1 / (step + 1)})
run.log({"accuracy": 0.9})
run.summary["best"] = 42
run.finish(exit_code=int(sys.argv[2]))
"""
_DIE = """
import os, time, wandb
run = wandb.init(project="train", entity="team", id="silent")
run.log({"loss": 1})
os.kill(os.getpid(), 9)
"""


async def read(client: WandbClient, run: str, expression: str) -> object:
    return await client.run(f"run = api.run({run!r})\nrun.load(force=True)\nresult = {expression}")


async def test_what_a_job_logs_is_read_back(wandb_client, wandb_sandbox: WandbSandbox):
    finished, failed = await asyncio.gather(
        wandb_sandbox.run("python", "-c", _TRAIN, "good", "0"),
        wandb_sandbox.run("python", "-c", _TRAIN, "bad", "3"),
    )
    assert (finished.exit_code, failed.exit_code) == (0, 0), finished.output + failed.output

    state, name, tags, config, summary, last_step, files = await read(
        wandb_client,
        "team/train/good",
        "[run.state, run.name, run.tags, run.config, run.summary._json_dict, run.lastHistoryStep,"
        " [file.name for file in run.files()]]",
    )
    assert (state, name, tags, config, last_step) == ("finished", "nice", ["a"], {"lr": 0.1}, 3)
    assert (summary["loss"], summary["accuracy"], summary["best"]) == (1 / 3, 0.9, 42)
    assert {"wandb-metadata.json", "config.yaml", "wandb-summary.json"} <= set(files)

    rows = await read(wandb_client, "team/train/good", "list(run.scan_history())")
    assert [(row["_step"], row.get("loss"), row.get("accuracy")) for row in rows] == [
        (0, 1, None),
        (1, 0.5, None),
        (2, 1 / 3, None),
        (3, None, 0.9),
    ]
    paged = "[row['_step'] for row in run.scan_history(page_size=2)]"
    assert await read(wandb_client, "team/train/good", paged) == [0, 1, 2, 3]
    losses = [{"_step": step, "loss": 1 / (step + 1)} for step in range(3)]
    assert (
        await read(wandb_client, "team/train/good", "list(run.scan_history(['loss'], page_size=2))") == losses
    )
    assert await read(wandb_client, "team/train/good", "run.history(keys=['loss'], pandas=False)") == losses
    sampled = await read(wandb_client, "team/train/good", "run.history(samples=2, pandas=False)")
    assert [row["_step"] for row in sampled] == [0, 2]
    assert len(await read(wandb_client, "team/train/good", "run.history(pandas=False)")) == 4

    assert await read(wandb_client, "team/train/bad", "run.state") == "failed"
    runs = await wandb_client.run(
        "result = [[run.id, run.state] for run in api.runs('team/train', order='-created_at')]"
    )
    assert sorted(runs) == [["bad", "failed"], ["good", "finished"]]


async def test_a_running_run_that_falls_silent_has_crashed(wandb_client, wandb_sandbox: WandbSandbox):
    await wandb_sandbox.python(_DIE)
    assert await read(wandb_client, "team/train/silent", "run.state") == "running"

    wandb_sandbox.clock.advance(wandb_sandbox.backend.runs.heartbeat_seconds + 1)

    assert await read(wandb_client, "team/train/silent", "run.state") == "crashed"


@pytest.mark.slow
async def test_a_run_created_for_later_is_pending_until_its_job_starts(
    wandb_client, wandb_sandbox: WandbSandbox
):
    await wandb_client.run(
        "wandb.apis.public.Run.create(api, run_id='later', project='train', entity='team', state='pending')"
    )
    assert await read(wandb_client, "team/train/later", "run.state") == "pending"

    finished = await wandb_sandbox.run("python", "-c", _TRAIN, "later", "0", WANDB_RESUME="allow")

    assert finished.exit_code == 0, finished.output
    assert await read(wandb_client, "team/train/later", "run.state") == "finished"


async def test_editing_an_ended_run_does_not_bring_it_back(wandb_client, wandb_sandbox: WandbSandbox):
    run, _ = wandb_sandbox.backend.runs.upsert("team", "edited", {"name": "ended"})
    wandb_sandbox.backend.ensure_project("team", "edited")
    wandb_sandbox.backend.runs.update_state(run, "failed")

    await read(wandb_client, "team/edited/ended", "[setattr(run, 'notes', 'why'), run.update()]")

    assert await read(wandb_client, "team/edited/ended", "[run.state, run.notes]") == ["failed", "why"]


async def test_a_runs_state_is_set_from_outside_only_as_wandb_allows_it(
    wandb_client, wandb_sandbox: WandbSandbox
):
    wandb_sandbox.backend.runs.upsert("team", "edited", {"name": "requeued"})
    wandb_sandbox.backend.ensure_project("team", "edited")

    assert await read(wandb_client, "team/edited/requeued", "run.update_state('pending')")
    assert await read(wandb_client, "team/edited/requeued", "run.state") == "pending"
    with pytest.raises(ClientError, match="cannot update run state"):
        await read(wandb_client, "team/edited/requeued", "run.update_state('finished')")


async def test_a_deleted_run_is_gone(wandb_client, wandb_sandbox: WandbSandbox):
    wandb_sandbox.backend.runs.upsert("team", "edited", {"name": "deleted"})
    wandb_sandbox.backend.ensure_project("team", "edited")
    await read(wandb_client, "team/edited/deleted", "run.delete()")
    with pytest.raises(ClientError, match="Could not find run"):
        await read(wandb_client, "team/edited/deleted", "run.state")
    with pytest.raises(ClientError):
        await wandb_client.run("launch_api.get_run_state('team', 'edited', 'deleted')")


async def test_a_run_of_a_hidden_entity_is_written_but_not_shown(wandb_client, wandb_sandbox: WandbSandbox):
    wandb_sandbox.backend.hide_entity("other")
    await wandb_client.run(
        "settings = wandb.Settings(silent=True, console='off')\n"
        "job = wandb.init(project='p', entity='other', id='hidden', settings=settings)\n"
        "job.log({'loss': 0.5})\n"
        "job.finish()\n"
    )
    run = wandb_sandbox.backend.runs.get("other", "p", "hidden")
    assert (run.state, run.summary["loss"]) == ("finished", 0.5)
    with pytest.raises(ClientError, match="Could not find run"):
        await wandb_client.run("api.run('other/p/hidden')")
    with pytest.raises(ClientError, match="Error fetching run state"):
        await wandb_client.run("launch_api.get_run_state('other', 'p', 'hidden')")


async def test_a_sweep_is_read_and_cancelled_by_wandbs_client(wandb_client, wandb_sandbox: WandbSandbox):
    sweep = wandb_sandbox.backend.put_sweep("swept", "s1")
    wandb_sandbox.backend.runs.upsert("team", "swept", {"name": "trial", "sweep": "s1", "state": "pending"})
    steps = (
        "from wandb.apis.public import sweeps\n"
        "def state(): return sweeps._get_sweep_state(api, 's1', entity='team', project='swept')\n"
        "found = sweeps._sweep_with_runs(api, 's1', '{}', entity='team', project='swept')\n"
        "result = [state(), api.sweep('team/swept/s1').state, [run['state'] for run in found['runs']]]\n"
        "sweeps._set_sweep_state(api, 's1', 'CANCELED', entity='team', project='swept')\n"
        "result.append(state())\n"
    )
    assert await wandb_client.run(steps) == ["RUNNING", "RUNNING", ["pending"], "CANCELED"]
    assert sweep.state == "CANCELED"
    with pytest.raises(ClientError, match="already canceled"):
        await wandb_client.run(
            "sweeps._set_sweep_state(api, 's1', 'FINISHED', entity='team', project='swept')"
        )
    with pytest.raises(ClientError, match="not found"):
        await wandb_client.run("sweeps._sweep_with_runs(api, 's9', '{}', entity='team', project='swept')")


@pytest.mark.parametrize(
    ("documented", "call", "missing"),
    [
        ("run.logged_artifacts()", "list(api.run('team/gaps/one').logged_artifacts())", "outputArtifacts"),
        ("run.used_artifacts()", "list(api.run('team/gaps/one').used_artifacts())", "inputArtifacts"),
        ("api.projects()", "list(api.projects('team'))", "models"),
        ("api.runs(path, filters=…)", "len(api.runs('team/gaps', filters={'config.lr': 1}))", "filters"),
        ("api.artifact_types()", "list(api.artifact_types('team/gaps'))", "artifactTypes"),
        ("api.artifacts()", "list(api.artifacts('model', 'team/gaps/x'))", "artifactCollection"),
        (
            "wandb.sweep()",
            "wandb.sweep({'method': 'grid'}, project='gaps', entity='team')",
            "UpsertSweepInput",
        ),
        ("api.team()", "api.team('team').members", "Entity"),
        ("api.user()", "api.user('ann')", "users"),
    ],
)
async def test_what_it_does_not_answer_is_documented_and_refused_by_name(
    wandb_client, wandb_sandbox: WandbSandbox, documented, call, missing
):
    wandb_sandbox.backend.ensure_project("team", "gaps")
    wandb_sandbox.backend.runs.upsert("team", "gaps", {"name": "one"})
    assert f"`{documented}`" in _NOT_ANSWERED
    with pytest.raises(ClientError, match=missing):
        await wandb_client.run(f"result = {call}")


async def test_what_it_answers_instead_is_as_documented(wandb_client, wandb_sandbox: WandbSandbox):
    wandb_sandbox.backend.ensure_project("team", "instead")
    wandb_sandbox.backend.runs.upsert("team", "instead", {"name": "one"})
    answers = await wandb_client.run(
        "result = [[run.id for run in api.runs('team/instead', order='+created_at')],"
        " api.project('instead', 'team').name, bool(api.viewer.username)]"
    )
    assert answers == [["one"], "instead", True]
