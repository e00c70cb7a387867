"""W&B's GraphQL schema, as far as the sandbox answers it."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from graphql import GraphQLSchema, build_schema


@cache
def wandb_schema() -> GraphQLSchema:
    """Return the schema; there is one, and who serves it puts the resolvers into it."""
    return build_schema(Path(__file__).with_name("schema.graphql").read_text(encoding="utf-8"))
