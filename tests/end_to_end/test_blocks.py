"""The blocks: the form they make, how they are kept at Prefect, and the queue they make at W&B."""

from __future__ import annotations

import asyncio
import io
import json
import re
import subprocess
import sys
import urllib.error
import urllib.request
from http.client import HTTPMessage
from pathlib import Path
from typing import Any
from urllib.response import addinfourl
from uuid import uuid4

import pytest
from PIL import Image
from prefect.blocks.core import Block
from prefect.client.orchestration import get_client
from prefect.testing.standard_test_suites.blocks import BlockStandardTestSuite
from prefect.types import SecretDict
from prefect_gcp.credentials import GcpCredentials
from pydantic import SecretStr, ValidationError

from prefect_vertex_launch.blocks.vertex_queue import VertexLaunchQueue
from prefect_vertex_launch.blocks.wandb_credentials import WandbCredentials
from prefect_vertex_launch.core.errors import InvalidQueueConfig, NotFound
from prefect_vertex_launch.sandbox.google.service_account import private_key, service_account_info
from prefect_vertex_launch.sandbox.server import Sandbox
from tests.end_to_end.launch_queue import POOL, PROJECT, LaunchQueue
from tests.end_to_end.prefect_server import PrefectServer
from tests.eventually import HANG_SECONDS, finished

CHECKOUT = Path(__file__).parents[2]
ACCOUNT = service_account_info(PROJECT, private_key(), "https://oauth2.googleapis.com/token")
API_KEY = "key_that_must_not_be_seen_by_anybody_at_all_0123456789"

Json = dict[str, Any]


class Answer(addinfourl):
    msg = "OK"


class ImageServer(urllib.request.BaseHandler):
    """The image server behind Prefect's logos, which names an image after its hash, width and height.

    The suite downloads the logo, tests have no network, and Prefect takes neither data: nor file: URLs.
    So the transport answers as that server does, with a picture of the size that the address names.
    """

    def default_open(self, req: urllib.request.Request) -> Answer:
        size = re.fullmatch(r"https://cdn\.sanity\.io/images/.+/[0-9a-f]{40}-(\d+)x(\d+)\.png", req.full_url)
        if size is None:
            raise urllib.error.HTTPError(req.full_url, 404, "Not Found", HTTPMessage(), None)
        picture = io.BytesIO()
        Image.new("RGB", (int(size[1]), int(size[2]))).save(picture, "PNG")
        picture.seek(0)
        return Answer(picture, HTTPMessage(), req.full_url, 200)


class TestBlocksKeepPrefectsStandards(BlockStandardTestSuite):
    @pytest.fixture(params=[WandbCredentials, VertexLaunchQueue], ids=lambda block: block.__name__)
    def block(self, request: pytest.FixtureRequest) -> type[Block]:
        return request.param

    @pytest.fixture(autouse=True)
    def image_server(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(urllib.request, "_opener", urllib.request.build_opener(ImageServer))

    def test_the_logo_is_one_that_prefect_serves_for_blocks_of_its_own(self, block: type[Block]) -> None:
        assert block._logo_url == str(GcpCredentials._logo_url)


async def read_schema(slug: str) -> Json:
    """What the server makes the block's form from."""
    async with get_client() as client:
        block_type = await client.read_block_type_by_slug(slug)
        schema = await client.get_most_recent_block_schema_for_block_type(block_type.id)
    assert schema is not None
    return schema.fields


@pytest.fixture(scope="module")
def registered(prefect_server: PrefectServer) -> str:
    """Register both files in processes of their own, as `make blocks` does; what they print."""
    output = ""
    for name in ("wandb_credentials", "vertex_queue"):
        process = subprocess.run(
            [
                sys.executable,
                "-m",
                "prefect",
                "block",
                "register",
                "--file",
                f"blocks/{name}.py",
            ],
            env=prefect_server.environment,
            cwd=CHECKOUT,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=HANG_SECONDS,
            check=False,
        )
        assert process.returncode == 0, process.stdout
        output += process.stdout
    return output


WANDB_FORM = ["API key", "Server"]
QUEUE_FORM = [
    "W&B entity",
    "Queue",
    "Google Cloud project",
    "Region",
    "Staging bucket",
    "W&B credentials",
    "Google Cloud credentials",
    "Jobs at once",
    "Shared limits",
    "Sweep schedulers at once",
    "Sweep scheduler image",
    "spec",
    "run",
    "launch",
    "Allowed macros",
    "Queue interval",
    "Job interval",
    "Calls a minute",
    "Submissions a minute",
    "Call timeout",
    "Submission timeout",
    "Stop grace",
    "Init grace",
    "Start timeout",
    "Queueing timeout",
    "Long wait",
    "Relaunches",
    "API key secret",
    "Other entities",
    "Secure mode",
    "Allowed images",
    "Allowed entry points",
    "Allowed commands",
    "Allowed service accounts",
    "Allowed networks",
    "Allowed machine types",
    "Vertex AI endpoint",
]


@pytest.mark.usefixtures("prefect_api")
@pytest.mark.parametrize(
    ("slug", "form"), [("wandb-credentials", WANDB_FORM), ("vertex-launch-queue", QUEUE_FORM)]
)
@pytest.mark.slow
async def test_registered_by_file_a_block_has_its_fields_in_the_order_of_the_form(
    registered: str, slug: str, form: list[str]
) -> None:
    assert "Weights and Biases Credentials" in registered
    assert "Vertex Launch Queue" in registered
    fields = (await read_schema(slug))["properties"].values()
    # The UI goes by the position, because a server on PostgreSQL does not keep the order of the keys.
    assert [field["title"] for field in sorted(fields, key=lambda field: field["position"])] == form


@pytest.mark.usefixtures("prefect_api", "registered")
@pytest.mark.parametrize("slug", ["wandb-credentials", "vertex-launch-queue"])
@pytest.mark.slow
async def test_in_the_form_every_field_is_described_and_what_has_no_default_has_an_example(slug: str) -> None:
    for name, field in (await read_schema(slug))["properties"].items():
        if "$ref" in field:
            continue  # a nested block has a picker in the form
        assert field["description"].endswith("."), name
        has_use = isinstance(field.get("default"), str | int | float)
        is_secret = field.get("format") == "password"
        assert has_use or is_secret or field["examples"], name


@pytest.mark.usefixtures("prefect_api", "registered")
@pytest.mark.slow
async def test_the_api_key_is_a_password_in_the_form_and_a_secret_at_the_server() -> None:
    credentials = await read_schema("wandb-credentials")
    assert credentials["secret_fields"] == ["api_key"]
    api_key = credentials["properties"]["api_key"]
    assert (api_key["format"], api_key["writeOnly"]) == ("password", True)
    assert (await read_schema("vertex-launch-queue"))["secret_fields"] == [
        "wandb_credentials.api_key",
        "gcp_credentials.service_account_info.*",
    ]


@pytest.mark.usefixtures("prefect_api")
async def test_a_loaded_block_has_its_nested_credentials_as_they_are_now(sandbox: Sandbox) -> None:
    queue = LaunchQueue(sandbox)
    gcp = GcpCredentials(service_account_info=SecretDict(ACCOUNT), project=PROJECT)
    await gcp.asave(f"{queue.name}-gcp")
    saved = await queue.create(gcp_credentials=gcp)

    loaded = await VertexLaunchQueue.aload(queue.name)

    assert loaded.wandb_credentials.api_key.get_secret_value() == sandbox.api_key
    assert loaded.wandb_credentials.base_url == sandbox.wandb_url
    account = loaded.gcp_credentials.service_account_info
    assert account is not None
    assert account.get_secret_value() == ACCOUNT
    assert (loaded.spec, loaded.run, loaded.endpoint) == (saved.spec, saved.run, saved.endpoint)

    await WandbCredentials(api_key=SecretStr(API_KEY)).asave(queue.name, overwrite=True)
    rotated = await VertexLaunchQueue.aload(queue.name)
    assert rotated.wandb_credentials.api_key.get_secret_value() == API_KEY


def queue_block(**changes: Any) -> VertexLaunchQueue:
    settings: Json = {
        "entity": "team",
        "queue": "queue",
        "project": PROJECT,
        "wandb_credentials": WandbCredentials(api_key=SecretStr(API_KEY)),
        "gcp_credentials": GcpCredentials(service_account_info=SecretDict(ACCOUNT), project=PROJECT),
    }
    return VertexLaunchQueue(**settings | changes)


@pytest.mark.usefixtures("prefect_api")
async def test_no_written_form_of_a_block_shows_a_secret() -> None:
    name = f"secrets-{uuid4().hex[:8]}"
    saved = queue_block()
    await saved.asave(name)
    async with get_client() as client:
        at_server = await client.read_block_document_by_name(
            name, "vertex-launch-queue", include_secrets=False
        )
    written = at_server.model_dump_json()
    for block in (saved, await VertexLaunchQueue.aload(name)):
        for part in (block, block.wandb_credentials, block.gcp_credentials):
            written += f"{part!r} {part} {part.model_dump_json()} {part.model_dump()}"

    assert "api_key" in written
    assert API_KEY not in written
    assert ACCOUNT["private_key"][60:90] not in written


@pytest.mark.parametrize(
    ("mistyped", "meant"),
    [("staging_buckt", "staging_bucket"), ("stagingBucket", "staging_bucket"), ("max_job", "max_jobs")],
)
def test_a_mistyped_field_is_refused_with_the_right_name(mistyped: str, meant: str) -> None:
    with pytest.raises(ValidationError, match=f"no field '{mistyped}'; did you mean {meant}"):
        queue_block(**{mistyped: "gs://bucket"})


def test_a_mistyped_server_is_refused_so_that_the_key_goes_nowhere_else() -> None:
    fields: Json = {"api_key": API_KEY, "baseUrl": "https://wandb.example.com"}
    with pytest.raises(ValidationError, match="no field 'baseUrl'; did you mean base_url") as refusal:
        WandbCredentials(**fields)
    assert API_KEY not in str(refusal.value)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"spec": {"worker_pool_specs": [{**POOL, "replicaCount": 1}], "staging_bucket": "gs://bucket"}},
            "block.spec.worker_pool_specs[0].replicaCount: 'replicaCount' is not a field of WorkerPoolSpec. "
            "Did you mean replica_count?",
        ),
        ({"spec": {"worker_pool_specs": []}}, "block.spec.worker_pool_specs: empty"),
        ({"run": {"timeout": "1h"}}, "block.run.timeout: expected whole seconds as a number, got '1h'"),
        ({"staging_bucket": "bucket"}, "block.staging_bucket: 'bucket' does not have the right form."),
    ],
    ids=["spec", "no pools", "run", "bucket"],
)
def test_a_wrong_spec_or_run_is_refused_with_its_path_before_it_is_saved(changes: Json, said: str) -> None:
    with pytest.raises(ValidationError, match=re.escape(said)):
        queue_block(**changes)


def test_a_block_that_was_changed_is_checked_like_a_new_one() -> None:
    block = queue_block()
    with pytest.raises(ValidationError, match=r"block\.run\.timeout: expected whole seconds"):
        block.run = {"timeout": "1h"}


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"run": {"timeout": 3600}},
        {"spec": {"labels": {"team": "vision"}}},
        {"spec": {"worker_pool_specs": [POOL]}},
    ],
    ids=["nothing", "run", "labels", "pools"],
)
def test_defaults_that_only_add_to_what_a_run_brings_along_can_be_saved(changes: Json) -> None:
    block = queue_block(**changes)
    assert (block.spec, block.run) == (changes.get("spec", {}), changes.get("run", {}))


@pytest.mark.usefixtures("prefect_api")
async def test_upsert_creates_the_queue_from_the_block_and_repeating_it_changes_nothing(
    sandbox: Sandbox,
) -> None:
    queue = LaunchQueue(sandbox)
    block = await queue.create(run={"timeout": 3600})
    wanted = {
        "spec": {"worker_pool_specs": [POOL], "staging_bucket": "gs://bucket"},
        "run": {"timeout": 3600},
    }
    created = sandbox.wandb.queue(queue.name)
    item_id = queue.push()

    await block.aupsert_queue()

    again = sandbox.wandb.queue(queue.name)
    assert (again.id, again.name) == (created.id, queue.name)
    assert again.by_priority is False
    assert queue.item(item_id).state == "PENDING"
    assert await block.aread_queue_config() == wanted
    config = sandbox.wandb.queues.config(again.resource_config_id)
    assert config is not None
    assert (config.resource, config.config) == ("gcp-vertex", {"resource_args": {"gcp-vertex": wanted}})


@pytest.mark.usefixtures("prefect_api")
async def test_a_second_upsert_with_another_spec_changes_what_wandb_has(sandbox: Sandbox) -> None:
    queue = LaunchQueue(sandbox)
    block = await queue.create()
    changed = VertexLaunchQueue(**{**dict(block), "spec": {**block.spec, "labels": {"team": "vision"}}})

    await changed.aupsert_queue()

    assert (await block.aread_queue_config())["spec"]["labels"] == {"team": "vision"}


@pytest.mark.usefixtures("prefect_api")
async def test_priorities_stay_as_they_are_until_they_are_turned_off(sandbox: Sandbox) -> None:
    queue = LaunchQueue(sandbox)
    block = await queue.create()
    seen = []
    for prioritize in (True, None, False, None):
        await block.aupsert_queue(prioritize=prioritize)
        seen.append(sandbox.wandb.queue(queue.name).by_priority)
    assert seen == [True, True, False, False]


@pytest.mark.usefixtures("prefect_api")
async def test_a_block_without_a_complete_spec_makes_no_queue(sandbox: Sandbox) -> None:
    queue = LaunchQueue(sandbox)
    block = await queue.create()
    bare = VertexLaunchQueue(**{**dict(block), "queue": f"{queue.name}-bare", "spec": {}})
    with pytest.raises(InvalidQueueConfig, match=r"queue .*-bare\.spec\.worker_pool_specs: missing"):
        await bare.aupsert_queue()
    with pytest.raises(NotFound, match=f"there is no such queue .*Did you mean {queue.name}"):
        await bare.aread_queue_config()


SCRIPT = """
import json, sys
from prefect_vertex_launch.blocks.vertex_queue import VertexLaunchQueue
block = VertexLaunchQueue.load(sys.argv[1])
block.queue = sys.argv[2]
block.upsert_queue()
print(json.dumps(block.read_queue_config()))
block.save(sys.argv[2])
"""


@pytest.mark.slow
async def test_without_an_event_loop_a_script_loads_upserts_reads_and_saves(
    sandbox: Sandbox, prefect_api: PrefectServer
) -> None:
    queue = LaunchQueue(sandbox)
    block = await queue.create()
    other = f"{queue.name}-script"

    script = await asyncio.create_subprocess_exec(
        sys.executable, "-c", SCRIPT, queue.name, other,
        env=prefect_api.environment, cwd=CHECKOUT,
        stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    output, errors = await finished(script.communicate())

    assert script.returncode == 0, errors.decode()
    assert json.loads(output) == await block.aread_queue_config()
    assert sandbox.wandb.queue(other).name == other
    assert (await VertexLaunchQueue.aload(other)).queue == other
