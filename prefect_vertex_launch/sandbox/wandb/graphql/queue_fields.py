"""The GraphQL fields about run queues, their items and the agents that serve them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from prefect_vertex_launch.sandbox.wandb.agents import LaunchAgent
from prefect_vertex_launch.sandbox.wandb.backend import USERNAME, WandbBackend
from prefect_vertex_launch.sandbox.wandb.graphql.user_fields import RawJson, Resolver, View, page
from prefect_vertex_launch.sandbox.wandb.items import QueueItem
from prefect_vertex_launch.sandbox.wandb.queues import RunQueue, template_variable_views
from prefect_vertex_launch.sandbox.wandb.refusal import WandbRefusal

Args = Mapping[str, Any]
_SUCCESS: View = {"success": True, "clientMutationId": None}


def _queue_view(queue: RunQueue) -> View:
    return {
        "id": queue.id,
        "name": queue.name,
        "createdBy": queue.created_by,
        "createdAt": queue.created_at,
        "access": queue.access,
        "prioritizationMode": queue.prioritization_mode,
        "defaultResourceConfigID": queue.resource_config_id,
        "externalLinks": queue.external_links,
    }


def _item_view(backend: WandbBackend, item: QueueItem) -> View:
    return {
        "id": item.id,
        "state": item.state,
        "priority": item.priority,
        "associatedRunId": item.associated_run_id,
        "launchAgentId": item.agent_id,
        "createdAt": item.created_at,
        "updatedAt": item.updated_at,
        "runSpec": lambda _info: RawJson(backend.items.run_spec_text(item)),  # pyright: ignore[reportUnknownLambdaType]
        "error": item.error,
        "warning": item.warning,
    }


def _agent_view(agent: LaunchAgent) -> View:
    return {
        "id": agent.id,
        "name": agent.name,
        "runQueues": agent.queue_ids,
        "hostname": agent.hostname,
        "agentStatus": agent.status,
        "agentConfig": agent.config,
        "version": agent.version,
        "stopPolling": agent.stop_polling,
        "heartbeatAt": agent.heartbeat_at,
        "createdAt": agent.created_at,
    }


def _run_queues(project: View, backend: WandbBackend, _args: Args) -> list[View]:
    return [_queue_view(queue) for queue in backend.queues.of_project(project["entityName"], project["name"])]


def _run_queue(project: View, backend: WandbBackend, args: Args) -> View | None:
    queue = backend.queues.named(project["entityName"], project["name"], args["name"])
    return _queue_view(queue) if queue else None


def _run_queue_item(queue: View, backend: WandbBackend, args: Args) -> View | None:
    item = backend.items.get(args["id"])
    return _item_view(backend, item) if item and item.queue_id == queue["id"] else None


def _run_queue_items(queue: View, backend: WandbBackend, args: Args) -> View:
    row = backend.queues.get(queue["id"])
    items = backend.items.of_queue(row) if row else []
    return page([_item_view(backend, item) for item in items], args, default_size=100)


def _default_resource_config(entity: View, backend: WandbBackend, args: Args) -> View | None:
    config = backend.queues.config(args["id"])
    if config is None or config.entity != entity["name"]:
        return None
    return {
        "id": config.id,
        "resource": config.resource,
        "config": config.config,
        "templateVariables": template_variable_views(config),
    }


def _launch_agent(_root: None, backend: WandbBackend, args: Args) -> View | None:
    agent = backend.agents.get(args["id"])
    if agent is None:
        return None
    backend.agents.beat(agent)
    return _agent_view(agent)


def _create_default_resource_config(_root: None, backend: WandbBackend, values: Args) -> View:
    config = backend.queues.create_config(
        values["entityName"], values["resource"], values["config"], values.get("templateVariables")
    )
    return {"defaultResourceConfigID": config.id, "success": True}


def _create_run_queue(_root: None, backend: WandbBackend, values: Args) -> View:
    project = backend.ensure_project(values["entityName"], values["projectName"])
    queue = backend.queues.create(
        project.entity,
        project.name,
        values["queueName"],
        created_by=USERNAME,
        access=values["access"],
        prioritization_mode=values.get("prioritizationMode"),
        resource_config_id=values.get("defaultResourceConfigID"),
    )
    return {"success": True, "queueID": queue.id}


def _upsert_run_queue(_root: None, backend: WandbBackend, values: Args) -> View:
    project = backend.ensure_project(values["entityName"], values["projectName"])
    backend.queues.upsert(
        project.entity,
        project.name,
        values["queueName"],
        created_by=USERNAME,
        resource=values["resourceType"],
        config=values["resourceConfig"],
        variables=values.get("templateVariables"),
        prioritization_mode=values.get("prioritizationMode"),
        external_links=values.get("externalLinks"),
    )
    return {"success": True, "configSchemaValidationErrors": []}


def _delete_run_queues(_root: None, backend: WandbBackend, values: Args) -> View:
    for queue_id in values["queueIDs"]:
        backend.delete_queue(_known_queue(backend, queue_id))
    return _SUCCESS


def _push_by_name(_root: None, backend: WandbBackend, values: Args) -> View:
    queue = backend.queue_in(values["entityName"], values["projectName"], values["queueName"])
    item = _push(backend, queue, values)
    return {"runQueueItemId": item.id, "runSpec": backend.items.run_spec_text(item)}


def _push_by_id(_root: None, backend: WandbBackend, values: Args) -> View:
    return {"runQueueItemId": _push(backend, _known_queue(backend, values["queueID"]), values).id}


def _push(backend: WandbBackend, queue: RunQueue, values: Args) -> QueueItem:
    return backend.items.push(
        queue,
        backend.queues.config(queue.resource_config_id),
        values["runSpec"],
        author=USERNAME,
        priority=values.get("priority"),
        variable_values=values.get("templateVariableValues"),
    )


def _pop(_root: None, backend: WandbBackend, values: Args) -> View | None:
    queue = backend.queue_in(values["entityName"], values["projectName"], values["queueName"])
    agent = backend.agents.get(values.get("launchAgentId"))
    item = backend.items.pop(queue, agent.id if agent else None)
    if item is None:
        return None
    return {"runQueueItemId": item.id, "runSpec": RawJson(backend.items.run_spec_text(item))}


def _acknowledge(_root: None, backend: WandbBackend, values: Args) -> View:
    backend.items.acknowledge(values["runQueueItemId"], values["runName"])
    return _SUCCESS


def _fail(_root: None, backend: WandbBackend, values: Args) -> View:
    backend.items.fail(values["runQueueItemId"], values["message"], values["stage"], values.get("filePaths"))
    return _SUCCESS


def _warn(_root: None, backend: WandbBackend, values: Args) -> View:
    backend.items.warn(values["runQueueItemId"], values["message"], values["stage"], values.get("filePaths"))
    return _SUCCESS


def _delete_item(_root: None, backend: WandbBackend, values: Args) -> View:
    item = backend.items.get(values["runQueueItemId"])
    if item is None or item.queue_id != values["queueID"]:
        raise WandbRefusal(404, f"run queue item {values['runQueueItemId']} not found")
    backend.items.delete(item)
    return _SUCCESS


def _create_launch_agent(_root: None, backend: WandbBackend, values: Args) -> View:
    for queue_id in values["runQueues"]:
        _known_queue(backend, queue_id)
    agent = backend.agents.register(
        values["runQueues"],
        values["hostname"],
        config=values.get("agentConfig"),
        version=values.get("version"),
    )
    return {"launchAgentId": agent.id}


def _update_launch_agent(_root: None, backend: WandbBackend, values: Args) -> View:
    backend.agents.update(values["launchAgentId"], values.get("agentStatus"))
    return _SUCCESS


def _known_queue(backend: WandbBackend, queue_id: str) -> RunQueue:
    queue = backend.queues.get(queue_id)
    if queue is None:
        raise WandbRefusal(400, f"could not find run queue {queue_id}")
    return queue


QUEUE_FIELDS: Mapping[str, Resolver] = {
    "Entity.defaultResourceConfig": _default_resource_config,
    "Project.runQueues": _run_queues,
    "Project.runQueue": _run_queue,
    "RunQueue.runQueueItem": _run_queue_item,
    "RunQueue.runQueueItems": _run_queue_items,
    "Query.launchAgent": _launch_agent,
    "Mutation.createDefaultResourceConfig": _create_default_resource_config,
    "Mutation.createRunQueue": _create_run_queue,
    "Mutation.upsertRunQueue": _upsert_run_queue,
    "Mutation.deleteRunQueues": _delete_run_queues,
    "Mutation.pushToRunQueueByName": _push_by_name,
    "Mutation.pushToRunQueue": _push_by_id,
    "Mutation.popFromRunQueue": _pop,
    "Mutation.ackRunQueueItem": _acknowledge,
    "Mutation.failRunQueueItem": _fail,
    "Mutation.updateRunQueueItemWarning": _warn,
    "Mutation.deleteFromRunQueue": _delete_item,
    "Mutation.createLaunchAgent": _create_launch_agent,
    "Mutation.updateLaunchAgent": _update_launch_agent,
}
