"""LIST at the job service of the sandbox: pages, read masks and filters, through Google's own client."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from google.api_core.exceptions import InvalidArgument

from prefect_vertex_launch.core.vertex_types import CustomJob, JobState, ListCustomJobsRequest
from tests.eventually import HANG_SECONDS
from tests.sandbox.served_vertex import PARENT, Served, create, job, served


async def test_lists_are_paged_newest_first_with_at_most_100_a_page(tmp_path: Path):
    async with served(tmp_path, queued_seconds=60) as vertex:
        names = [vertex.backend.create(PARENT, CustomJob.pb(job(name=f"j{n}"))).name for n in range(230)]
        vertex.backend.create("projects/p/locations/europe-west4", CustomJob.pb(job()))
        pager = await vertex.client.list_custom_jobs(
            request=ListCustomJobsRequest(parent=PARENT, page_size=500)
        )
        pages = [[each.name for each in page.custom_jobs] async for page in pager.pages]
        assert [len(page) for page in pages] == [100, 100, 30]
        assert [name for page in pages for name in page] == names[::-1]
        assert vertex.backend.calls["ListCustomJobs"] == 3


async def test_a_read_mask_leaves_the_rest_out(tmp_path: Path):
    async with served(tmp_path, queued_seconds=60) as vertex:
        created = await create(vertex, job(labels={"a": "b"}))
        request = ListCustomJobsRequest(parent=PARENT, read_mask={"paths": ["name", "state", "labels"]})
        [listed] = [each async for each in await vertex.client.list_custom_jobs(request=request)]
        assert listed == CustomJob(name=created.name, state=JobState.JOB_STATE_QUEUED, labels={"a": "b"})
        with pytest.raises(InvalidArgument, match="read mask"):
            await vertex.client.list_custom_jobs(request={"parent": PARENT, "read_mask": {"paths": ["nmae"]}})
        async with httpx.AsyncClient(base_url=vertex.rest_url, timeout=HANG_SECONDS) as http:
            answer = await http.get(f"/v1/{PARENT}/customJobs", params={"readMask": "displayName"})
        assert answer.json() == {"customJobs": [{"displayName": "job"}]}


@pytest.fixture
async def three_jobs(tmp_path: Path) -> AsyncIterator[Callable[[str], Awaitable[list[str]]]]:
    async with served(tmp_path, queued_seconds=60) as vertex:
        await create(vertex, job(name="one", labels={"k": "1", "odd": ""}))
        await create(vertex, job(name="two", labels={"k": "2"}))
        third = await create(vertex, job(name="three", labels={"odd": "yes"}))
        vertex.backend.set_state(third.name, JobState.JOB_STATE_EXPIRED)

        async def matching(text: str) -> list[str]:
            pager = await vertex.client.list_custom_jobs(request={"parent": PARENT, "filter": text})
            return [each.display_name async for each in pager][::-1]

        yield matching


async def test_filters_choose_jobs(three_jobs: Callable[[str], Awaitable[list[str]]]):
    expected = {
        "": ["one", "two", "three"],
        'labels.k="1"': ["one"],
        "labels.k:*": ["one", "two"],
        "labels:odd": ["one", "three"],
        'display_name="two" OR display_name="three"': ["two", "three"],
        'state="JOB_STATE_QUEUED"': ["one", "two"],
        "state!=JOB_STATE_QUEUED": ["three"],
        "NOT labels.odd:*": ["two"],
        'create_time>"2020-01-01T00:00:00Z"': ["one", "two", "three"],
        'create_time<"2020-01-01T00:00:00Z"': [],
        # OR binds tighter than AND: without that, the first would match "one" as well.
        'display_name="one" OR labels.k="2" AND labels.k="2"': ["two"],
        # The examples of ListCustomJobsRequest and of the SDK's list().
        'state="JOB_STATE_EXPIRED" AND display_name:"t*"': ["three"],
        'state!="JOB_STATE_EXPIRED" OR display_name="three"': ["one", "two", "three"],
        'NOT display_name="two"': ["one", "three"],
        'create_time>"2021-05-18T00:00:00Z"': ["one", "two", "three"],
        "labels.k=1": ["one"],
        'display_name:"o*"': ["one"],
        'displayName:"*o*"': ["one", "two"],
        'display_name:"*"': ["one", "two", "three"],
        'display_name:"two"': ["two"],
        'display_name:"tw"': [],
        'display_name:"t*e*e"': ["three"],
        'display_name:"*two*two*"': [],
        'display_name:"tw*wo"': [],
        'display_name:".*"': [],
        'display_name:"' + "*e" * 2000 + '"': [],
        '(display_name="one") OR (labels.k="2" AND labels.k="2")': ["one", "two"],
    }
    assert {text: await three_jobs(text) for text in expected} == expected


@pytest.mark.parametrize(
    "text",
    ["state", "state=", "state=RUNNING", 'nothing="x"', "(state=JOB_STATE_QUEUED", 'create_time>"now"',
     'display_name>"a"', 'state="JOB_STATE_QUEUED" state', '"', "=", "NOT " * 2000, "(" * 5000,
     "(" * 200 + 'display_name="job"' + ")" * 200, "x" * 10_001],
)  # fmt: skip
async def test_filters_that_cannot_be_read_are_refused(vertex: Served, text: str):
    await create(vertex, job())
    with pytest.raises(InvalidArgument):
        await vertex.client.list_custom_jobs(request={"parent": PARENT, "filter": text})


async def test_a_filter_may_be_nested(vertex: Served):
    created = await create(vertex, job())
    text = "(" * 24 + "NOT " * 24 + 'display_name="job"' + ")" * 24
    listed = [each async for each in await vertex.client.list_custom_jobs({"parent": PARENT, "filter": text})]
    assert [each.name for each in listed] == [created.name]


@pytest.mark.parametrize("request_fields", [{"page_size": -1}, {"page_token": "x"}, {"page_token": "²"}])
async def test_pages_that_do_not_exist_are_refused(vertex: Served, request_fields: dict[str, Any]):
    with pytest.raises(InvalidArgument):
        await vertex.client.list_custom_jobs(request={"parent": PARENT, **request_fields})
