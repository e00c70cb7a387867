"""Queues, items and agents of the W&B sandbox, driven by wandb.Api() and LaunchApi()."""

from __future__ import annotations

import json

import pytest

from prefect_vertex_launch.sandbox.records import Records
from prefect_vertex_launch.sandbox.wandb.backend import WandbBackend
from tests.sandbox.real_wandb import API_KEY, ClientError, WandbClient, WandbSandbox

pytestmark = pytest.mark.asyncio(loop_scope="session")

_CONFIG = {
    "spec": {
        "worker_pool_specs": [
            {"machine_spec": {"machine_type": "{{machine}}"}, "replica_count": "{{replicas}}"}
        ],
        "staging_bucket": "gs://bucket/{{machine}}-{{replicas}}",
    }
}
_VARIABLES = {
    "machine": {
        "schema": {"type": "string", "default": "n1-standard-4", "enum": ["n1-standard-4", "a2-highgpu-1g"]}
    },
    "replicas": {"schema": {"type": "integer", "default": 1, "minimum": 1, "maximum": 8}},
}


async def create_queue(client: WandbClient, name: str, **options: object) -> None:
    arguments = {"name": name, "type": "gcp-vertex", "entity": "team", "config": {"spec": {}}, **options}
    await client.run(f"api.create_run_queue(**{arguments!r})")


async def push(client: WandbClient, queue: str, spec: dict, *, variables=None, priority=None) -> dict | None:
    call = f"'team', 'model-registry', {queue!r}, {json.dumps(spec)!r}, {variables!r}, {priority!r}"
    return await client.run(f"result = launch_api.push_to_run_queue_by_name({call})")


async def pop(client: WandbClient, queue: str, agent_id: str | None = None) -> dict | None:
    return await client.run(
        f"result = launch_api.pop_from_run_queue({queue!r}, 'team', 'model-registry', {agent_id!r})"
    )


async def state_of(client: WandbClient, queue: str, item_id: str) -> str:
    return await client.run(
        f"result = api.queued_run('team', 'p', {queue!r}, {item_id!r}, project_queue='model-registry').state"
    )


def spec(**extra: object) -> dict:
    return {"entity": "team", "project": "p", "docker": {"docker_image": "image:1"}, **extra}


async def test_a_created_queue_reads_back_with_its_config_and_variables(wandb_client):
    await create_queue(
        wandb_client, "created", config=_CONFIG, template_variables=_VARIABLES, prioritization_mode="V0"
    )

    queue = await wandb_client.run(
        "q = api.run_queue('team', 'created')\n"
        "result = [q.type, q.access, q.prioritization_mode, q.default_resource_config]\n"
        "result += [q.template_variables, q.items]"
    )

    assert queue[:4] == ["gcp-vertex", "PROJECT", "V0", {"resource_args": {"gcp-vertex": _CONFIG}}]
    assert {variable["name"]: json.loads(variable["schema"]) for variable in queue[4]} == {
        name: variable["schema"] for name, variable in _VARIABLES.items()
    }
    assert queue[5] == []


async def test_an_upsert_creates_a_queue_and_then_replaces_its_config_but_not_its_items(wandb_client):
    upsert = (
        "q = api.upsert_run_queue(name='upserted', entity='team', resource_type='gcp-vertex',"
        " resource_config={}, prioritization_mode={mode!r}, external_links={{'docs': 'https://example.com'}})\n"
        "result = [q.id, q.prioritization_mode, q.external_links, q.default_resource_config]"
    )
    first = await wandb_client.run(upsert.format("{'spec': 1}", mode="DISABLED"))
    pushed = await push(wandb_client, "upserted", spec())
    second = await wandb_client.run(upsert.format("{'spec': 2}", mode="V0"))

    links = {"links": [{"label": "docs", "url": "https://example.com"}]}
    assert first[1:] == ["DISABLED", links, {"resource_args": {"gcp-vertex": {"spec": 1}}}]
    assert second == [first[0], "V0", links, {"resource_args": {"gcp-vertex": {"spec": 2}}}]
    items = await wandb_client.run("result = [item.id for item in api.run_queue('team', 'upserted').items]")
    assert items == [pushed["runQueueItemId"]]


async def test_a_queue_name_is_taken_once(wandb_client):
    await create_queue(wandb_client, "taken")
    with pytest.raises(ClientError, match="already exists"):
        await create_queue(wandb_client, "taken")


async def test_a_deleted_queue_is_gone_with_its_items(wandb_client, wandb_sandbox: WandbSandbox):
    await create_queue(wandb_client, "deleted")
    pushed = await push(wandb_client, "deleted", spec())
    await wandb_client.run("api.run_queue('team', 'deleted').delete()")

    assert wandb_sandbox.backend.item(pushed["runQueueItemId"]) is None
    with pytest.raises(ClientError):
        await wandb_client.run("result = api.run_queue('team', 'deleted').id")


async def test_an_item_goes_from_pending_over_leased_to_claimed(wandb_client):
    await create_queue(wandb_client, "life")
    item_id = (await push(wandb_client, "life", spec()))["runQueueItemId"]
    states = [await state_of(wandb_client, "life", item_id)]

    popped = await pop(wandb_client, "life")
    states.append(await state_of(wandb_client, "life", item_id))
    await wandb_client.run(f"launch_api.ack_run_queue_item({item_id!r}, 'run12345')")
    states.append(await state_of(wandb_client, "life", item_id))

    assert popped["runQueueItemId"] == item_id
    assert states == ["pending", "leased", "claimed"]
    assert await pop(wandb_client, "life") is None
    run = await wandb_client.run(
        f"result = api.queued_run('team', 'p', 'life', {item_id!r}, project_queue='model-registry')"
        "._get_item()['associatedRunId']"
    )
    assert run == "run12345"


async def test_who_pushed_a_run_can_wait_until_it_runs_and_until_it_has_finished(wandb_client):
    await create_queue(wandb_client, "awaited")
    item_id = (await push(wandb_client, "awaited", spec()))["runQueueItemId"]
    await pop(wandb_client, "awaited")
    running = await wandb_client.run(
        f"launch_api.ack_run_queue_item({item_id!r}, 'awaited')\n"
        "settings = wandb.Settings(silent=True, console='off')\n"
        "job = wandb.init(project='p', entity='team', id='awaited', settings=settings)\n"
        f"queued = api.queued_run('team', 'p', 'awaited', {item_id!r}, project_queue='model-registry')\n"
        "run = queued.wait_until_running()\n"
        "result = [run.id, run.state]"
    )
    finished = await wandb_client.run(
        "job.log({'loss': 0.5})\n"
        "job.finish()\n"
        "run = queued.wait_until_finished()\n"
        "result = [run.id, run.state, run.summary['loss']]"
    )
    assert running == ["awaited", "running"]
    assert finished == ["awaited", "finished", 0.5]


async def test_a_popped_item_carries_the_queues_resource_args_and_an_author(wandb_client):
    await create_queue(wandb_client, "completed", config={"spec": {"staging_bucket": "gs://queue"}})
    pushed = await push(wandb_client, "completed", spec())
    await push(
        wandb_client,
        "completed",
        spec(author="ann", resource="gcp-vertex", resource_args={"gcp-vertex": {"a": 1}}),
    )

    queues, own = (
        (await pop(wandb_client, "completed"))["runSpec"],
        (await pop(wandb_client, "completed"))["runSpec"],
    )

    assert queues["resource"] == "gcp-vertex"
    assert queues["resource_args"] == {"gcp-vertex": {"spec": {"staging_bucket": "gs://queue"}}}
    assert queues["author"] == "sandbox-user"
    assert pushed["runSpec"] == queues
    assert (own["author"], own["resource_args"]) == ("ann", {"gcp-vertex": {"a": 1}})


async def test_a_lease_returns_the_item_to_its_old_place_after_its_time(
    wandb_client, wandb_sandbox: WandbSandbox
):
    await create_queue(wandb_client, "leases")
    first = (await push(wandb_client, "leases", spec()))["runQueueItemId"]
    await push(wandb_client, "leases", spec())
    await pop(wandb_client, "leases")

    wandb_sandbox.clock.advance(wandb_sandbox.backend.items.lease_seconds - 5)
    assert await state_of(wandb_client, "leases", first) == "leased"
    wandb_sandbox.clock.advance(5)
    assert await state_of(wandb_client, "leases", first) == "pending"

    with pytest.raises(ClientError, match="already claimed or not eligible"):
        await wandb_client.run(f"launch_api.ack_run_queue_item({first!r}, 'toolate')")
    assert (await pop(wandb_client, "leases"))["runQueueItemId"] == first


async def test_a_second_ack_is_refused_and_changes_nothing(wandb_client, wandb_sandbox: WandbSandbox):
    await create_queue(wandb_client, "acks")
    item_id = (await push(wandb_client, "acks", spec()))["runQueueItemId"]
    await pop(wandb_client, "acks")
    await wandb_client.run(f"launch_api.ack_run_queue_item({item_id!r}, 'first')")

    with pytest.raises(ClientError, match="item already claimed or not eligible to be claimed"):
        await wandb_client.run(f"launch_api.ack_run_queue_item({item_id!r}, 'second')")

    assert wandb_sandbox.backend.item(item_id).associated_run_id == "first"


async def test_a_failure_and_a_warning_stay_on_the_item(wandb_client, wandb_sandbox: WandbSandbox):
    await create_queue(wandb_client, "notices")
    item_id = (await push(wandb_client, "notices", spec()))["runQueueItemId"]
    await wandb_client.run(
        f"launch_api.update_run_queue_item_warning({item_id!r}, 'slow', 'Kubernetes', ['a.log'])"
    )
    await wandb_client.run(f"launch_api.fail_run_queue_item({item_id!r}, 'no such image', 'agent')")

    item = wandb_sandbox.backend.item(item_id)
    assert await state_of(wandb_client, "notices", item_id) == "failed"
    assert item.warning == {"message": "slow", "stage": "Kubernetes", "filePaths": ["a.log"]}
    assert item.error == {"message": "no such image", "stage": "agent", "filePaths": []}
    assert [notice["kind"] for notice in item.notices] == ["warning", "error"]
    assert await pop(wandb_client, "notices") is None


async def test_a_pushed_item_can_be_taken_off_the_queue(wandb_client):
    await create_queue(wandb_client, "withdrawn")
    item_id = (await push(wandb_client, "withdrawn", spec()))["runQueueItemId"]
    await wandb_client.run(
        f"api.queued_run('team', 'p', 'withdrawn', {item_id!r}, project_queue='model-registry').delete()"
    )
    assert await pop(wandb_client, "withdrawn") is None


async def test_priority_comes_before_age_and_medium_is_the_default(wandb_client):
    await create_queue(wandb_client, "ranked", prioritization_mode="V0")
    for priority in (3, 2, None, 0, 1):
        await push(wandb_client, "ranked", spec(name=str(priority)), priority=priority)

    order = [(await pop(wandb_client, "ranked"))["runSpec"]["name"] for _ in range(5)]

    assert order == ["0", "1", "2", "None", "3"]


async def test_a_priority_on_a_queue_without_priorities_is_refused(wandb_client):
    await create_queue(wandb_client, "unranked")
    assert await push(wandb_client, "unranked", spec(), priority=0) is None
    assert await pop(wandb_client, "unranked") is None


async def test_template_variables_are_filled_in_with_their_type_when_pushed(wandb_client):
    await create_queue(wandb_client, "templates", config=_CONFIG, template_variables=_VARIABLES)
    await push(wandb_client, "templates", spec(), variables={"machine": "a2-highgpu-1g", "replicas": 2})
    await push(wandb_client, "templates", spec())

    chosen, default = [
        (await pop(wandb_client, "templates"))["runSpec"]["resource_args"]["gcp-vertex"]["spec"] for _ in "12"
    ]

    pool = {"machine_spec": {"machine_type": "a2-highgpu-1g"}, "replica_count": 2}
    assert chosen == {"worker_pool_specs": [pool], "staging_bucket": "gs://bucket/a2-highgpu-1g-2"}
    pool = {"machine_spec": {"machine_type": "n1-standard-4"}, "replica_count": 1}
    assert default == {"worker_pool_specs": [pool], "staging_bucket": "gs://bucket/n1-standard-4-1"}


@pytest.mark.parametrize(
    "values",
    [
        {"replicas": 9},
        {"replicas": 0},
        {"replicas": "2"},
        {"replicas": True},
        {"machine": "tpu"},
        {"unknown": 1},
    ],
)
async def test_a_template_value_that_breaks_its_schema_is_refused(wandb_client, values):
    name = "schemas-" + "-".join(f"{key}-{value}" for key, value in values.items())
    await create_queue(wandb_client, name, config=_CONFIG, template_variables=_VARIABLES)
    assert await push(wandb_client, name, spec(), variables=values) is None


async def test_a_template_schema_that_makes_no_sense_is_refused(wandb_client):
    with pytest.raises(ClientError, match="default 'x' is not of type 'integer'"):
        await create_queue(
            wandb_client,
            "nonsense",
            template_variables={"n": {"schema": {"type": "integer", "default": "x"}}},
        )


async def test_pushing_to_a_queue_that_does_not_exist_comes_back_empty_handed(wandb_client):
    assert await push(wandb_client, "nowhere", spec()) is None
    with pytest.raises(ClientError, match="could not find run queue nowhere in team/model-registry"):
        await pop(wandb_client, "nowhere")
    with pytest.raises(ClientError, match="check that you have access"):
        await wandb_client.run("launch_api.get_project_run_queues('strangers', 'model-registry')")


async def test_an_agent_registers_reports_and_is_told_to_stop(wandb_client, wandb_sandbox: WandbSandbox):
    await create_queue(wandb_client, "served")
    agent_id = await wandb_client.run(
        "config = {'max_jobs': 2}\n"
        "agent = launch_api.create_launch_agent('team', 'model-registry', ['served'], config, '1.0')\n"
        "result = agent['launchAgentId']"
    )
    await wandb_client.run(f"launch_api.update_launch_agent_status({agent_id!r}, 'RUNNING')")
    before = await wandb_client.run(f"result = launch_api.get_launch_agent({agent_id!r})")
    await push(wandb_client, "served", spec())
    popped = await pop(wandb_client, "served", agent_id)
    wandb_sandbox.backend.stop_polling(agent_id)
    after = await wandb_client.run(f"result = launch_api.get_launch_agent({agent_id!r})")

    assert (before["agentStatus"], before["stopPolling"], after["stopPolling"]) == ("RUNNING", False, True)
    assert before["heartbeatAt"] is not None
    assert before["runQueues"] == [wandb_sandbox.backend.queue("served").id]
    assert wandb_sandbox.backend.item(popped["runQueueItemId"]).agent_id == agent_id


async def test_everything_is_still_there_after_a_restart(tmp_path, wandb_sandbox: WandbSandbox):
    """The state file alone carries queues, items, leases, agents and runs over."""

    def opened() -> tuple[Records, WandbBackend]:
        records = Records(tmp_path / "state.db")
        return records, WandbBackend(records, entity="team", api_key=API_KEY, clock=wandb_sandbox.clock)

    records, backend = opened()
    config = backend.queues.create_config("team", "gcp-vertex", '{"resource_args": {}}', None)
    queue = backend.queues.create(
        "team", "model-registry", "kept", created_by="ann", resource_config_id=config.id
    )
    leased, claimed = backend.push_raw("kept", "{}"), backend.push_raw("kept", '{"a": 1}')
    agent = backend.agents.register([queue.id], "host", config=None, version=None)
    backend.items.pop(queue, agent.id)
    backend.items.pop(queue, agent.id)
    backend.items.acknowledge(claimed, "run1")
    run, _ = backend.runs.upsert("team", "model-registry", {"name": "run1"})
    backend.runs.stop(run)
    records.close()

    _, again = opened()
    assert again.queue("kept") == queue
    assert again.queues.config(config.id) == config
    assert again.item(leased).state == "LEASED"
    assert (again.item(claimed).state, again.item(claimed).associated_run_id) == ("CLAIMED", "run1")
    assert again.agents.get(agent.id) == agent
    assert again.run("model-registry", "run1").stopped
    wandb_sandbox.clock.advance(61)
    assert again.items.pop(again.queue("kept"), None).id == leased
    assert again.push_raw("kept", "{}") not in {leased, claimed}
