"""What importing the pure part brings into a process; who may import whom is import-linter's to say."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

PRINT_NEW_MODULES = """
import importlib, json, sys
before = set(sys.modules)
importlib.import_module(sys.argv[1])
print(json.dumps(sorted(set(sys.modules) - before)))
"""
REMOTE = ("grpc", "google.auth", "google.api_core", "requests", "httpx", "urllib3", "socket", "ssl")
PURE = {
    "prefect_vertex_launch", "pydantic", "pydantic_core", "annotated_types", "typing_extensions",
    "typing_inspection", "proto", "google.protobuf", "google._upb", "google.rpc", "google.type",
}  # fmt: skip
# Their packages are entered, nothing in them but types is run.
TYPES = "google.cloud.aiplatform_v1.types"


def imported_by(module: str) -> set[str]:
    answer = subprocess.run(
        [sys.executable, "-c", PRINT_NEW_MODULES, module], capture_output=True, text=True, check=True
    )
    return set(json.loads(answer.stdout))


def is_in(name: str, package: str) -> bool:
    return name == package or name.startswith(f"{package}.")


@pytest.mark.parametrize(
    "module", ["prefect_vertex_launch.jobspec.render", "prefect_vertex_launch.core.diagnosis"]
)
def test_the_pure_part_brings_neither_a_client_nor_credentials_into_the_process(module):
    imported = imported_by(module)
    assert TYPES + ".custom_job" in imported
    assert {name for name in imported if any(is_in(name, package) for package in REMOTE)} == set()


def test_the_pure_part_runs_on_the_language_pydantic_and_protobuf():
    foreign = {
        name
        for name in imported_by("prefect_vertex_launch.jobspec.render")
        if name.partition(".")[0] not in sys.stdlib_module_names
        and not name.startswith("_sysconfigdata")  # the language's own, with the platform in its name
        and not any(is_in(name, package) for package in (*PURE, TYPES))
        and not is_in(TYPES, name)
    }
    assert foreign == set()


def test_the_client_comes_without_the_other_services():
    imported = imported_by("prefect_vertex_launch.vertex.client")
    assert "grpc" in imported
    services = "google.cloud.aiplatform_v1.services."
    assert {name[len(services) :].partition(".")[0] for name in imported if name.startswith(services)} == {
        "job_service"
    }
