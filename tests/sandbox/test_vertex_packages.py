"""Python packages of a pool, creates that are refused, and jobs that look restarted."""

from __future__ import annotations

import io
import tarfile
import zipfile
from pathlib import Path

import pytest

from prefect_vertex_launch.core.vertex_types import CustomJob, JobState
from tests.sandbox.served_vertex import create, job, outcome, pool_with, served

PREBUILT = "us-docker.pkg.dev/vertex-ai/training/pytorch-gpu.2-4.py310:latest"
TASK = "import os, sys; from trainer.loss import LOSS; print(LOSS, os.environ['EPOCHS'], *sys.argv[1:])"
MODULES = {"trainer/__init__.py": "", "trainer/loss.py": "LOSS = 0.25", "trainer/task.py": TASK}


def package_job(uri: str, executor: str = PREBUILT) -> CustomJob:
    task = {
        "executor_image_uri": executor,
        "package_uris": [uri],
        "python_module": "trainer.task",
        "args": ["--lr", "1"],
        "env": [{"name": "EPOCHS", "value": "3"}],
    }
    return pool_with(container_spec=None, python_package_spec=task)


@pytest.fixture
def bucket(tmp_path: Path) -> Path:
    directory = tmp_path / "bucket"
    (directory / "dist").mkdir(parents=True)
    for name in ("trainer-1-py3-none-any.whl", "trainer.zip"):
        with zipfile.ZipFile(directory / "dist" / name, "w") as archive:
            for path, text in MODULES.items():
                archive.writestr(path, text)
    for name, home in (("trainer-1.tar.gz", "trainer-1"), ("sources-1.tar.gz", "trainer-1/src")):
        with tarfile.open(directory / "dist" / name, "w:gz") as archive:
            for path, text in MODULES.items():
                member = tarfile.TarInfo(f"{home}/{path}")
                member.size = len(text)
                archive.addfile(member, io.BytesIO(text.encode()))
    (directory / "dist" / "broken.tar.gz").write_text("not an archive")
    return directory


@pytest.mark.parametrize("executor", [PREBUILT, "python"])
@pytest.mark.parametrize(
    "name", ["trainer-1-py3-none-any.whl", "trainer.zip", "trainer-1.tar.gz", "sources-1.tar.gz"]
)
async def test_a_package_runs_as_its_module(tmp_path: Path, bucket: Path, name: str, executor: str):
    async with served(tmp_path, buckets={"team": bucket}) as vertex:
        ended = await outcome(vertex, package_job(f"gs://team/dist/{name}", executor))
        assert vertex.backend.log(ended.name) == "0.25 3 --lr 1\n"
        assert ended.state == JobState.JOB_STATE_SUCCEEDED


@pytest.mark.parametrize(
    ("uri", "said"),
    [
        ("gs://team/dist/none.whl", "No URLs matched: gs://team/dist/none.whl"),
        ("gs://other/dist/trainer.zip", "No URLs matched: gs://other/dist/trainer.zip"),
        ("gs://team/dist/broken.tar.gz", "broken.tar.gz is not a Python package"),
    ],
)
async def test_a_package_that_cannot_be_had_fails_the_job(tmp_path: Path, bucket: Path, uri: str, said: str):
    async with served(tmp_path, buckets={"team": bucket}) as vertex:
        ended = await outcome(vertex, package_job(uri))
        assert ended.state == JobState.JOB_STATE_FAILED
        assert "The replica workerpool0-0 exited with a non-zero status of 1." in ended.error.message
        assert said in ended.error.message


async def test_a_job_can_look_restarted(tmp_path: Path):
    async with served(tmp_path, is_manual=True) as vertex:
        name = (await create(vertex, job())).name
        seen: list[tuple[JobState, bool]] = []
        for state in ("RUNNING", "PENDING", "RUNNING"):
            vertex.backend.set_state(name, JobState[f"JOB_STATE_{state}"])
            found = await vertex.client.get_custom_job(name=name)
            seen.append((found.state, found.end_time is None))
        assert seen == [
            (JobState.JOB_STATE_RUNNING, True),
            (JobState.JOB_STATE_PENDING, True),
            (JobState.JOB_STATE_RUNNING, True),
        ]
