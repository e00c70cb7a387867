"""Which entities an item may name, where what it names is acted on with the key of the queue's block."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from prefect_vertex_launch.core.errors import Problem
from prefect_vertex_launch.core.json_value import shown
from prefect_vertex_launch.jobspec.patterns import matches_with_gaps
from prefect_vertex_launch.jobspec.run_spec import RunSpec


def is_own_or_allowed(entity: str, own: str, allowed: Sequence[str]) -> bool:
    """Tell whether an entity is the queue's own, or one that the queue's block allows; `*` is any text."""
    return entity == own or any(matches_with_gaps(pattern.split("*"), entity) for pattern in allowed)


def foreign_entities(spec: RunSpec, own: str, allowed: Sequence[str], *, has_key: bool) -> Iterator[Problem]:
    """Yield a problem for each entity that an item names and for which the queue's key may not be used.

    Args:
        spec: The item's run spec.
        own: The queue's entity.
        allowed: The other entities that its block allows.
        has_key: Whether the job logs in with a key that the item itself brought.
    """
    if not has_key and not is_own_or_allowed(spec.entity, own, allowed):
        yield _foreign("entity", spec.entity, own, "the run would be logged there")
    # The job is read here, before there is any container: with the queue's own key.
    if spec.job is not None and not is_own_or_allowed(entity := spec.job.split("/", 1)[0], own, allowed):
        yield _foreign("job", entity, own, "its job would be read there")


def _foreign(where: str, entity: str, own: str, what_for: str) -> Problem:
    return Problem(
        where,
        f"{shown(entity)} is not the queue's entity, {own}",
        why=f"{what_for} with the key of the queue's block",
        fix=f"Push the run to a queue of {shown(entity)}, or add it to Other entities of the queue's block.",
    )
