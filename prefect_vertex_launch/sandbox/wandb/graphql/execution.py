"""Runs the GraphQL documents of W&B's clients against the sandbox's schema and fields."""

from __future__ import annotations

import json
import logging
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Any, cast

from graphql import (
    DocumentNode,
    ExecutionResult,
    FieldNode,
    GraphQLError,
    GraphQLObjectType,
    GraphQLResolveInfo,
    GraphQLSchema,
    OperationDefinitionNode,
    execute_sync,  # pyright: ignore[reportUnknownVariableType]  # its middleware type is partial
    parse,
    validate,
)

from prefect_vertex_launch.sandbox.faults.wandb_answers import RootCall, resolve_at_root
from prefect_vertex_launch.sandbox.json_text import read_json
from prefect_vertex_launch.sandbox.wandb.backend import WandbBackend
from prefect_vertex_launch.sandbox.wandb.graphql.artifact_fields import ARTIFACT_FIELDS
from prefect_vertex_launch.sandbox.wandb.graphql.queue_fields import QUEUE_FIELDS
from prefect_vertex_launch.sandbox.wandb.graphql.run_fields import RUN_FIELDS
from prefect_vertex_launch.sandbox.wandb.graphql.schema import wandb_schema
from prefect_vertex_launch.sandbox.wandb.graphql.sweep_fields import SWEEP_FIELDS
from prefect_vertex_launch.sandbox.wandb.graphql.user_fields import FIELDS, RawJson, Resolver
from prefect_vertex_launch.sandbox.wandb.refusal import WandbRefusal

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class GraphqlAnswer:
    """One answer: the HTTP status and the body as JSON text."""

    http_status: int
    body: str


def answer(backend: WandbBackend, text: bytes) -> GraphqlAnswer:
    """Run one request body, `{"query", "variables"?, "operationName"?}`.

    Everything a client does wrong is an answer with status 400, or the status of the rule it broke, and
    an `errors` list; the clients stop at those instead of repeating the request.
    """
    try:
        request = read_json(text)
        query = request["query"]
        variables: dict[str, Any] = {**(request.get("variables") or {})}
        operation_name = request.get("operationName") or None
        document, errors = _checked(query)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return _refused(400, "request body must be JSON with a GraphQL document in `query`")
    except GraphQLError as error:
        return _encoded(400, None, [error])
    if errors:
        return _encoded(400, None, errors)
    result = execute_sync(
        _schema(),
        document,
        context_value=backend,
        variable_values=variables,
        operation_name=operation_name or _only_operation(document),
    )
    return _encoded(_status(result), result.data, result.errors or [])


def refusal(http_status: int, message: str) -> GraphqlAnswer:
    """Return an answer that refuses the whole request."""
    return _refused(http_status, message)


def operation_names(text: bytes) -> frozenset[str]:
    """Return what faults may call a request body by: its operation and the fields of its root."""
    try:
        request = read_json(text)
        document, _errors = _checked(request["query"])
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError, GraphQLError):
        return frozenset()
    names: set[str] = set()
    for definition in document.definitions:
        if isinstance(definition, OperationDefinitionNode):
            fields = definition.selection_set.selections
            names |= {field.name.value for field in fields if isinstance(field, FieldNode)}
            names |= {definition.name.value} if definition.name else set()
    return frozenset(names)


@cache
def _schema() -> GraphQLSchema:
    schema = wandb_schema()
    fields = {**FIELDS, **QUEUE_FIELDS, **RUN_FIELDS, **SWEEP_FIELDS, **ARTIFACT_FIELDS}
    for path, resolve in fields.items():
        type_name, field_name = path.split(".")
        object_type = cast("GraphQLObjectType", schema.type_map[type_name])
        object_type.fields[field_name].resolve = _bound(resolve)
    return schema


def _bound(resolve: Resolver) -> Callable[..., Any]:
    def resolve_field(source: Any, info: GraphQLResolveInfo[WandbBackend], **args: Any) -> Any:
        values = args.get("input", args)
        if source is not None or not info.context.faults.are_on("wandb"):
            return resolve(source, info.context, values)
        name = info.operation.name.value if info.operation.name else ""
        return resolve_at_root(
            resolve, info.context, RootCall(info.field_name, name, values, info.variable_values.coerced)
        )

    return resolve_field


@lru_cache(maxsize=256)
def _checked(query: str) -> tuple[DocumentNode, list[GraphQLError]]:
    document = parse(query)
    return document, [_in_wandb_words(error) for error in validate(_schema(), document)]


def _in_wandb_words(error: GraphQLError) -> GraphQLError:
    # W&B's server quotes names with ", and its clients look for exactly that to detect an old server.
    return GraphQLError(error.message.replace("'", '"'), error.nodes)


def _only_operation(document: DocumentNode) -> str | None:
    # Clients send an empty operation name; of several operations the first one is meant.
    for definition in document.definitions:
        if isinstance(definition, OperationDefinitionNode):
            return definition.name.value if definition.name else None
    return None


def _status(result: ExecutionResult) -> int:
    for error in result.errors or []:
        cause = error.original_error
        if isinstance(cause, WandbRefusal):
            return cause.http_status
        if isinstance(
            cause, RecursionError
        ):  # only a document is nested so deeply, by itself or by fragments
            return 400
        if cause is not None and not isinstance(cause, GraphQLError):
            _logger.error("A field of the W&B sandbox failed", exc_info=cause)
            return 500
    return 400 if result.errors else 200


def _refused(http_status: int, message: str) -> GraphqlAnswer:
    return _encoded(http_status, None, [GraphQLError(message)])


def _encoded(http_status: int, data: Mapping[str, Any] | None, errors: list[GraphQLError]) -> GraphqlAnswer:
    body: dict[str, Any] = {"data": data}
    if errors:
        body["errors"] = [error.formatted for error in errors]
    raw: dict[str, str] = {}
    mark = uuid.uuid4().hex

    def keep(value: object) -> str:
        if not isinstance(value, RawJson):
            raise TypeError(f"{type(value).__name__} is not JSON")
        place = f"{mark}-{len(raw)}"
        raw[place] = value.text
        return place

    text = json.dumps(body, default=keep)
    for place, value in raw.items():
        text = text.replace(f'"{place}"', value)
    return GraphqlAnswer(http_status, text)
