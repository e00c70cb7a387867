"""A W&B job (an artifact that holds `wandb-job.json`) as what it would have to run."""

from __future__ import annotations

import json
from typing import Any

from prefect_vertex_launch.core.errors import NotFound, Problem, Refused, Transient
from prefect_vertex_launch.core.json_value import is_object
from prefect_vertex_launch.jobspec.job_source import JobSource, read_code
from prefect_vertex_launch.wandb.documents import GET_ARTIFACT_FILES
from prefect_vertex_launch.wandb.graphql import WandbGraphql, at, objects_at, text_at

JOB_FILE = "wandb-job.json"
_MAX_JOB_BYTES = 1024 * 1024


async def read_job(graphql: WandbGraphql, entity: str, project: str, name_and_alias: str) -> JobSource:
    """Return the source of the job `name:alias` (`:latest` where there is no alias).

    Raises NotFound when there is no such job, Refused when its `wandb-job.json` is none.
    """
    collection, _, alias = name_and_alias.partition(":")
    where = f"job {entity}/{project}/{collection}:{alias or 'latest'}"
    job_id, urls = await _files(graphql, where, (entity, project, collection, alias or "latest"))
    url = urls.get(JOB_FILE)
    if not url:
        raise NotFound(Problem(where, f"the artifact holds no {JOB_FILE}, so it is not a job"))
    return _parse(await graphql.download(url, max_bytes=_MAX_JOB_BYTES), where, job_id, set(urls))


async def _files(
    graphql: WandbGraphql, where: str, path: tuple[str, str, str, str]
) -> tuple[str, dict[str, str | None]]:
    """Return the artifact's id and the address of each of its files."""
    entity, project, collection, alias = path
    urls: dict[str, str | None] = {}
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
        membership = at(data, "project", "artifactCollection", "artifactMembership")
        if membership is None:
            raise NotFound(
                Problem(where, "W&B has no such job", fix="Check its entity, project, name and alias.")
            )
        page = at(membership, "files") or {}
        for edge in objects_at(page, "edges"):
            file = at(edge, "node") or {}
            urls[str(file.get("name"))] = text_at(file, "directUrl")
        info = at(page, "pageInfo") or {}
        if not info.get("hasNextPage"):
            return str((at(membership, "artifact") or {}).get("id") or ""), urls
        before, cursor = cursor, text_at(info, "endCursor")
        if cursor in {None, before}:
            raise Transient(f"{where}: W&B's list of its files does not go on")


def _parse(text: str, where: str, job_id: str, file_names: set[str]) -> JobSource:
    try:
        job: Any = json.loads(text)
        kind: Any = job["source_type"]
        source: Any = job["source"]
        entry_point = tuple(str(part) for part in source.get("entrypoint") or ())
    except (ValueError, RecursionError, KeyError, TypeError, AttributeError) as error:
        raise Refused(Problem(where, f"its {JOB_FILE} cannot be read as a job")) from error
    image_uri = source.get("image") if kind == "image" else None
    base_image = source.get("base_image") or None
    is_wrong = not isinstance(base_image, str | None) or not is_object(source)
    if (
        kind not in ("image", "artifact", "repo")
        or is_wrong
        or (kind == "image") != isinstance(image_uri, str)
    ):
        raise Refused(
            Problem(where, f"its {JOB_FILE} names neither an image, a code artifact nor a repository")
        )
    if kind == "image":
        return JobSource(kind=kind, image_uri=image_uri, entry_point=entry_point)
    return JobSource(
        kind=kind,
        image_uri=None,
        entry_point=entry_point,
        base_image=base_image,
        code=read_code(source, job_id, file_names),
        is_notebook=bool(source.get("notebook")),
    )
