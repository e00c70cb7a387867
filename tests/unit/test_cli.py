"""The command line by itself: what it imports, and how it ends for wrong usage."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner
from wandb.sdk.lib.wbauth.validation import check_api_key

from prefect_vertex_launch.cli.errors import NOT_READY, USAGE, CommandError, as_command_error
from prefect_vertex_launch.cli.main import app
from prefect_vertex_launch.cli.sandbox_key import API_KEY
from prefect_vertex_launch.coordination.prefect_api import no_such_block
from prefect_vertex_launch.core.errors import AuthenticationFailed, LaunchError, NotFound, Problem, Transient

COMMANDS = (
    [], ["demo"], ["sandbox"], ["sandbox", "up"], ["agent"], ["deploy"], ["init"], ["status"], ["migrate"],
    ["adopt"],
)  # fmt: skip
HEAVY = (
    "prefect", "prefect_gcp", "wandb", "google.cloud.aiplatform", "google.cloud.aiplatform_v1",
    "google.protobuf", "grpc", "httpx",
)  # fmt: skip
PRINT_MODULES = """
import contextlib, io, json, sys
from prefect_vertex_launch.cli.main import app
for command in json.loads(sys.argv[1]):
    with contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.StringIO()) as help:
        app([*command, "--help"])
    assert "Usage" in help.getvalue(), command
print(json.dumps(sorted(sys.modules)))
"""


def test_help_of_every_command_imports_nothing_heavy():
    """Its speed is a matter of what it imports: prefect alone costs two seconds."""
    answer = subprocess.run(
        [sys.executable, "-c", PRINT_MODULES, json.dumps(COMMANDS)],
        capture_output=True,
        text=True,
        check=True,
    )
    imported = set(json.loads(answer.stdout))
    assert "typer" in imported
    heavy = {name for name in imported if name in HEAVY or name.startswith(tuple(f"{top}." for top in HEAVY))}
    assert not heavy


@pytest.mark.parametrize(
    "arguments",
    [
        ["agent"],
        ["deploy", "--queue", "q"],
        ["deploy", "--queue", "q", "--pool", "p", "--every", "0"],
        ["status", "--limit", "-1"],
        ["sandbox", "up", "--wandb-port", "70000"],
        ["sandbox", "up", "--lease-seconds", "-1"],
        ["sandbox", "up", "--api-key", "k" * 40],
        ["sandbox", "up", "--api-key-file", "/no/such/file"],
        ["sandbox", "up", "--api-key-file", "/dev/null"],
        ["sandbox", "up", "--image", "no-command"],
        ["sandbox", "up", "--image", "=python"],
        ["migrat"],
        ["adopt"],
    ],
)
def test_wrong_usage_ends_with_2_and_without_a_traceback(arguments):
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == USAGE
    assert "Traceback" not in result.output
    assert isinstance(result.exception, SystemExit)


def test_a_mapping_of_an_image_that_is_none_is_explained():
    result = CliRunner().invoke(app, ["sandbox", "up", "--image", "no-command"])
    assert result.stderr.splitlines() == [
        "error: 'no-command' is not NAME=COMMAND",
        "hint: write --image 'my/image=python train.py'",
    ]


@pytest.mark.parametrize("is_in_a_file", [True, False])
def test_a_key_that_wandb_would_refuse_is_explained_without_being_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_in_a_file: bool
):
    file = tmp_path / "key"
    file.write_text("s3cret\n")
    monkeypatch.setenv("SANDBOX_API_KEY", "k" * 40 if is_in_a_file else "s3cret")
    options = ["--api-key-file", str(file)] if is_in_a_file else []
    result = CliRunner().invoke(app, ["sandbox", "up", *options])
    assert result.stderr.splitlines() == [
        "error: wandb's clients refuse the key of 6 characters in "
        + (str(file) if is_in_a_file else "SANDBOX_API_KEY"),
        "hint: give 40 or more letters, digits and underscores, or none: the sandbox makes a key of its own",
    ]


@pytest.mark.parametrize("start", ["", "local-", "-", "a-b-", "a.b.", "a.b", "a b-"])
@pytest.mark.parametrize("length", [0, 1, 33, 34, 39, 40, 41, 200])
@pytest.mark.parametrize("end", ["", "_", "-", "ü", "!", " ", "\n", ".", "-b"])
def test_a_key_is_refused_exactly_when_wandb_would(start, length, end):
    key = start + "k" * length + end
    assert bool(API_KEY.fullmatch(key)) is (check_api_key(key) is None), check_api_key(key)


def test_a_lease_of_the_sandbox_takes_60_seconds_unless_told_otherwise():
    helped = CliRunner().invoke(app, ["sandbox", "up", "--help"], env={"COLUMNS": "300"})
    (line,) = [line for line in helped.output.splitlines() if "--lease-seconds" in line]
    assert "[default: 60.0]" in line


def test_a_missing_block_is_answered_with_the_ones_there_are_and_the_nearest():
    error = as_command_error(no_such_block("vertex-a10", ["cpu", "vertex-a100"]))
    assert error is not None
    assert error.code == NOT_READY
    assert str(error) == (
        "error: there is no VertexLaunchQueue block named 'vertex-a10'\n"
        "hint: did you mean 'vertex-a100'? there is: cpu, vertex-a100"
    )


def test_without_any_block_the_hint_says_how_to_make_one():
    error = as_command_error(no_such_block("demo", []))
    assert "prefect block register -m prefect_vertex_launch.blocks" in str(error)


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (AuthenticationFailed(Problem("W&B", "the key is not accepted")), NOT_READY),
        (NotFound(Problem("queue q", "it is not there")), NOT_READY),
        (Transient("503"), NOT_READY),
        (LaunchError("no"), 1),
        (ExceptionGroup("group", [ExceptionGroup("inner", [CommandError("what", "hint", code=3)])]), 3),
    ],
)
def test_errors_that_can_be_expected_become_two_lines(error, code):
    expected = as_command_error(error)
    assert expected is not None
    assert expected.code == code
    assert str(expected).startswith("error: ")
    assert "\nhint: " in str(expected)


def test_an_error_that_nobody_expected_keeps_its_traceback():
    assert as_command_error(ZeroDivisionError()) is None
