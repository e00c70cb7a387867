"""A W&B job (an artifact that holds `wandb-job.json`) as what it would have to run."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Literal

from vertex_launch.errors import NotFound, Problem, Refused
from vertex_launch.wandb_documents import GET_ARTIFACT_FILES
from vertex_launch.wandb_graphql import WandbGraphql, at

JOB_FILE = "wandb-job.json"
_MAX_JOB_BYTES = 1024 * 1024


@dataclass(frozen=True, slots=True)
class JobSource:
    """Where a job's program is: in an image, or in code that nobody has built into one."""

    kind: Literal["image", "artifact", "repo"]
    image_uri: str | None
    entry_point: tuple[str, ...]


async def read_job(graphql: WandbGraphql, entity: str, project: str, name_and_alias: str) -> JobSource:
    """Return the source of the job `name:alias` (`:latest` where there is no alias).

    Raises NotFound when there is no such job, Refused when its `wandb-job.json` is none.
    """
    collection, _, alias = name_and_alias.partition(":")
    where = f"job {entity}/{project}/{collection}:{alias or 'latest'}"
    url = await _file_url(graphql, where, (entity, project, collection, alias or "latest"))
    return _parse(await graphql.download(url, max_bytes=_MAX_JOB_BYTES), where)


async def _file_url(graphql: WandbGraphql, where: str, path: tuple[str, str, str, str]) -> str:
    entity, project, collection, alias = path
    cursor: str | None = None
    while True:
        variables: dict[str, Any] = {
            "entity": entity,
            "project": project,
            "collection": collection,
            "alias": alias,
            "cursor": cursor,
            "perPage": 1000,
        }
        data = await graphql.execute(GET_ARTIFACT_FILES, variables)
        page = at(data, "project", "artifactCollection", "artifactMembership", "files")
        if page is None:
            raise NotFound(
                Problem(where, "W&B has no such job", fix="Check its entity, project, name and alias.")
            )
        for edge in page["edges"]:
            if edge["node"]["name"] == JOB_FILE and edge["node"]["directUrl"]:
                return str(edge["node"]["directUrl"])
        if not page["pageInfo"]["hasNextPage"]:
            raise NotFound(Problem(where, f"the artifact holds no {JOB_FILE}, so it is not a job"))
        cursor = page["pageInfo"]["endCursor"]


def _parse(text: str, where: str) -> JobSource:
    try:
        job: Any = json.loads(text)
        kind, source = job["source_type"], job["source"]
        entry_point = tuple(str(part) for part in source.get("entrypoint") or ())
        image_uri = source.get("image")
    except (ValueError, RecursionError, KeyError, TypeError, AttributeError) as error:
        raise Refused(Problem(where, f"its {JOB_FILE} cannot be read as a job")) from error
    if kind not in {"image", "artifact", "repo"} or (kind == "image" and not isinstance(image_uri, str)):
        raise Refused(
            Problem(where, f"its {JOB_FILE} names neither an image, a code artifact nor a repository")
        )
    return JobSource(kind=kind, image_uri=image_uri if kind == "image" else None, entry_point=entry_point)
