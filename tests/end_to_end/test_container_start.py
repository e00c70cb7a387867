"""Containers that are made ready before their command: as local processes, against the served sandbox."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import pytest_asyncio
from pydantic import SecretStr

from prefect_vertex_launch.core.identity import QueueIdentity
from prefect_vertex_launch.core.vertex_types import JobState
from prefect_vertex_launch.jobspec.config.queue_config import parse_queue_config
from prefect_vertex_launch.jobspec.context import LaunchContext
from prefect_vertex_launch.jobspec.job_source import JobCode, LaunchImage, image_of_job
from prefect_vertex_launch.jobspec.render import render
from prefect_vertex_launch.jobspec.run_spec import parse_run_spec
from prefect_vertex_launch.sandbox.server import Sandbox
from prefect_vertex_launch.wandb.endpoint import WandbEndpoint
from prefect_vertex_launch.wandb.queue import WandbQueue
from tests.eventually import HANG_SECONDS, until
from tests.sandbox_access import jobs_in

KEY = "a_key_of_forty_characters_that_nobody_has_guessed"
SECRET = "projects/p/secrets/wandb/versions/2"
LOCKED_AWAY = "projects/p/secrets/other/versions/1"
PRINT_ALL = "import glob; print(*(open(path).read() for path in sorted(glob.glob('**/*.*', recursive=True))))"


@pytest_asyncio.fixture
async def sandbox(tmp_path: Path) -> AsyncIterator[Sandbox]:
    secrets = {SECRET: f"{KEY}\n", "projects/p/secrets/wandb/versions/1": "old", LOCKED_AWAY: None}
    async with Sandbox(
        entity="team",
        api_key=KEY,
        workdir=tmp_path / "jobs",
        request_log=tmp_path / "requests",
        secrets=secrets,
        queued_seconds=0,
        pending_seconds=0,
    ) as running:
        yield running


async def ran(sandbox: Sandbox, image: LaunchImage, **context: Any) -> tuple[Any, str]:
    """Launch an image's entry point; return how the job ended and what it wrote."""
    payload = {"entity": "team", "project": "p", "docker": {"docker_image": image.image_uri}}
    pool = {
        "machine_spec": {"machine_type": "n1-standard-4"},
        "replica_count": 1,
        "container_spec": {"image_uri": "${image_uri}"},
    }
    config = parse_queue_config({"spec": {"worker_pool_specs": [pool], "staging_bucket": "gs://bucket"}})
    launch = LaunchContext(
        item_id="item",
        queue=QueueIdentity("api.wandb.ai", "team", "q"),
        run_id="run1",
        image_uri=image.image_uri,
        base_url=sandbox.wandb_url,
        api_key=SecretStr(KEY),
        project="p",
        location="us-central1",
        job_entry_point=image.entry_point,
        code=image.code,
        **context,
    )
    jobs = jobs_in(sandbox)
    try:
        name = (await jobs.create(render(parse_run_spec(payload, item_id="item"), config, launch).job)).name
        await until(lambda: sandbox.vertex.get(name).HasField("end_time"))
        return sandbox.vertex.get(name), sandbox.vertex.log(name)
    finally:
        await jobs.aclose()


def put_artifact(sandbox: Sandbox, collection: str, files: dict[str, str], **entry: Any) -> str:
    """Put a version of an artifact into the sandbox and return its id; `entry` adds to its manifest."""
    values = {"entityName": "team", "projectName": "p", "artifactCollectionName": collection}
    values |= {"artifactTypeName": "code", "digest": collection}
    artifact = sandbox.wandb.artifacts.create(values)
    for name, text in files.items():
        sandbox.wandb.storage.write(artifact.folder + name, text.encode())
    contents = {name: {"digest": "", "size": len(text)} for name, text in files.items()} | entry
    sandbox.wandb.storage.write(artifact.manifest_path, json.dumps({"contents": contents}).encode())
    sandbox.wandb.artifacts.commit(artifact.id)
    return artifact.id


# --- the key


@pytest.mark.parametrize("version", ["2", "latest"])
async def test_the_program_has_the_key_and_no_request_to_vertex_ai_does(
    sandbox: Sandbox, tmp_path: Path, version: str
):
    show = "import hashlib, os; print(hashlib.sha256(os.environ['WANDB_API_KEY'].encode()).hexdigest())"
    name = f"projects/p/secrets/wandb/versions/{version}"
    ended, log = await ran(sandbox, LaunchImage("python", ("python", "-c", show)), api_key_secret=name)

    assert ended.state == JobState.JOB_STATE_SUCCEEDED, log
    assert log.strip() == hashlib.sha256(KEY.encode()).hexdigest()
    requests = [json.loads(line) for line in (tmp_path / "requests").read_text().splitlines()]
    (create,) = [line for line in requests if line["operation"] == "CreateCustomJob"]
    assert name in json.dumps(create)
    assert KEY not in json.dumps(create)
    assert KEY not in str(ended)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        (LOCKED_AWAY, "403 Permission 'secretmanager.versions.access' denied for resource"),
        ("projects/p/secrets/none/versions/1", "404 Secret [projects/p/secrets/none] not found"),
    ],
)
async def test_without_the_key_nothing_runs_and_the_log_says_what_is_missing(
    sandbox: Sandbox, name: str, reason: str
):
    image = LaunchImage("python", ("python", "-c", "print('it ran')"))
    ended, log = await ran(sandbox, image, api_key_secret=name)

    assert ended.state == JobState.JOB_STATE_FAILED
    assert "non-zero status of 78" in ended.error.message
    (line,) = log.splitlines()
    assert f"cannot be read from the secret {name}: " in line
    assert reason in line
    assert "jobs@sandbox.iam.gserviceaccount.com needs the permission secretmanager.versions.access" in line


# --- the code


@pytest.mark.slow
async def test_code_made_into_a_job_by_wandbs_own_command_runs_on_its_base_image(
    sandbox: Sandbox, tmp_path: Path
):
    code = tmp_path / "code"
    (code / "lib").mkdir(parents=True)
    (code / "train.py").write_text(
        "import sys; from lib.loss import LOSS; print('loss', LOSS, *sys.argv[1:])"
    )
    (code / "lib" / "loss.py").write_text("LOSS = 0.25")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
    environment |= {"WANDB_BASE_URL": sandbox.wandb_url, "WANDB_API_KEY": KEY, "HOME": str(tmp_path)}
    process = await asyncio.create_subprocess_exec(
        *create_job(code), env=environment, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    output, _ = await process.communicate()
    assert process.returncode == 0, output.decode()

    endpoint = WandbEndpoint(sandbox.wandb_url, SecretStr(KEY))
    async with WandbQueue(endpoint, entity="team", queue="q") as queue:
        source = await queue.read_job("team", "p", "trainer:latest")
    assert source.code is not None
    assert sandbox.wandb.artifacts.known(source.code.job_id).type == "job"
    ended, log = await ran(sandbox, image_of_job(source, where="job trainer"))
    assert ended.state == JobState.JOB_STATE_SUCCEEDED, log
    assert log == "loss 0.25\n"


def create_job(code: Path) -> list[str]:
    create = ["job", "create", "code", str(code), "--entity", "team", "--project", "p", "--name", "trainer"]
    return [sys.executable, "-m", "wandb", *create, "-E", "python train.py", "--base-image", "python"]


async def test_a_commit_gets_the_changes_that_were_not_committed(sandbox: Sandbox, tmp_path: Path):
    repository = tmp_path / "repository"
    repository.mkdir()

    def git(*words: str) -> str:
        command = ["git", "-c", "user.name=a", "-c", "user.email=a@b.c", *words]
        return subprocess.run(command, cwd=repository, capture_output=True, text=True, check=True).stdout

    (repository / "train.py").write_text("print('as committed')\n")
    git("init", "--quiet")
    git("add", ".")
    git("commit", "--quiet", "-m", "one")
    (repository / "train.py").write_text("print('as it was run')\n")
    job_id = put_artifact(sandbox, "job", {"diff.patch": git("diff")})
    git("checkout", "--quiet", ".")
    code = JobCode(job_id, remote=str(repository), commit=git("rev-parse", "HEAD").strip(), has_patch=True)
    ended, log = await ran(sandbox, LaunchImage("python", ("python", "train.py"), code))
    assert (ended.state, log) == (JobState.JOB_STATE_SUCCEEDED, "as it was run\n")


@pytest.mark.slow
async def test_all_files_of_an_artifact_arrive_with_a_key_from_secret_manager(sandbox: Sandbox):
    files = {f"lib/part{number:04}.txt": str(number) for number in range(1010)}
    code = JobCode("job", artifact_id=put_artifact(sandbox, "many", {"a b/ü.txt": "first", **files}))
    image = LaunchImage("python", ("python", "-c", PRINT_ALL), code)
    ended, log = await ran(sandbox, image, api_key_secret=SECRET)
    assert ended.state == JobState.JOB_STATE_SUCCEEDED, log
    assert log.split() == ["first", *files.values()]


@pytest.mark.parametrize(
    ("entry", "reason"),
    [
        ({"data.bin": {"ref": "gs://bucket/data.bin", "digest": "x"}}, "data.bin is not in the artifact"),
        ({"lost.py": {"digest": "x", "size": 1}}, "lost.py is not in the artifact"),
        ({"../evil.py": {"digest": "x", "size": 1}}, "../evil.py is not inside of the artifact"),
        (None, "has been deleted, or cannot be seen with this key"),
    ],
)
async def test_the_program_never_runs_without_all_of_its_code(
    sandbox: Sandbox, entry: dict[str, Any] | None, reason: str
):
    artifact_id = "unknown" if entry is None else put_artifact(sandbox, "part", {"train.py": ""}, **entry)
    image = LaunchImage(
        "python", ("python", "-c", "print('it ran')"), JobCode("job", artifact_id=artifact_id)
    )
    ended, log = await ran(sandbox, image)
    assert "non-zero status of 78" in ended.error.message
    assert log.startswith("vertex-launch: the code of the W&B job cannot be had: ")
    assert reason in log
    assert "it ran" not in log


# --- what the sandbox says in Google's place


async def test_the_metadata_server_and_secret_manager_answer_as_googles(sandbox: Sandbox):
    variables = sandbox.vertex.container_variables
    metadata = f"http://{variables['GCE_METADATA_HOST']}/computeMetadata/v1/instance/service-accounts"
    secrets = variables["CLOUDSDK_API_ENDPOINT_OVERRIDES_SECRETMANAGER"]
    flavor = {"Metadata-Flavor": "Google"}
    async with httpx.AsyncClient(timeout=HANG_SECONDS) as http:
        assert (await http.get(f"{metadata}/default/token")).status_code == 403
        assert (await http.get(f"{metadata}/other/token", headers=flavor)).status_code == 404
        token = (await http.get(f"{metadata}/default/token", headers=flavor)).json()["access_token"]
        for bearer in (None, "Bearer x"):
            headers = {"Authorization": bearer} if bearer else {}
            answer = await http.get(f"{secrets}v1/{SECRET}:access", headers=headers)
            assert (answer.status_code, answer.json()["error"]["status"]) == (401, "UNAUTHENTICATED")
        headers = {"Authorization": f"Bearer {token}"}
        answer = await http.get(
            f"{secrets}v1/projects/p/secrets/wandb/versions/latest:access", headers=headers
        )
        assert answer.json()["name"] == SECRET
