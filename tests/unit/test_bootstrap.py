"""The program in front of a container's command: when it is there, what it is given, what it refuses."""

from __future__ import annotations

import ast
import contextlib
import http.server
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from prefect_vertex_launch.core.errors import InvalidRunSpec
from prefect_vertex_launch.jobspec.bootstrap import start_program
from prefect_vertex_launch.jobspec.job_source import JobCode, JobSource, LaunchImage, image_of_job, read_code
from tests.eventually import HANG_SECONDS
from tests.unit.rendered_launch import KEY, POOL, env_of, launch, pool, refused, task_of

SECRET = "projects/my-project/secrets/wandb-api-key/versions/3"
TRAIN = ["python", "train.py"]
COMMAND_PATH = f"{POOL}.container_spec.command"
CODE = JobCode("job-1", artifact_id="code-1")
PACKAGE = {
    "machine_spec": {"machine_type": "n1-standard-4"},
    "replica_count": 1,
    "python_package_spec": {
        "executor_image_uri": "${image_uri}",
        "python_module": "m",
        "package_uris": ["gs://b/p.zip"],
    },
}


# --- a key that is kept in Secret Manager


def test_a_job_names_the_secret_and_holds_no_key() -> None:
    rendering = launch(pool(command=TRAIN, args=["--lr", "1"]), api_key_secret=SECRET)
    task = task_of(rendering)
    assert task.command == ["python3", "-I", "-c", start_program(), *TRAIN]
    assert task.args == ["--lr", "1"]
    assert env_of(rendering)["WANDB_API_KEY_SECRET"] == SECRET
    assert "WANDB_API_KEY" not in env_of(rendering)
    assert KEY not in str(rendering.job)
    assert not rendering.warnings


def test_without_a_secret_or_code_nothing_is_put_in_front() -> None:
    rendering = launch(pool(command=TRAIN))
    assert task_of(rendering).command == TRAIN
    assert env_of(rendering)["WANDB_API_KEY"] == KEY


def test_the_launchs_and_the_jobs_entry_points_are_known_commands() -> None:
    by_launch = launch(item={"overrides": {"entry_point": TRAIN}}, api_key_secret=SECRET)
    by_job = launch(job_entry_point=tuple(TRAIN), api_key_secret=SECRET)
    assert task_of(by_launch).command[-2:] == task_of(by_job).command[-2:] == TRAIN


def test_a_command_that_nobody_names_is_refused_with_the_way_out() -> None:
    problem = refused(api_key_secret=SECRET)[COMMAND_PATH]
    assert "an image's own entry point is not known here" in problem
    assert "Set it, or launch with an entry point" in problem


def test_a_python_package_cannot_be_given_a_secret() -> None:
    problem = refused(PACKAGE, api_key_secret=SECRET)[f"{POOL}.python_package_spec"]
    assert "cannot be given a key from Secret Manager" in problem
    assert "Use a container_spec with a command" in problem


@pytest.mark.parametrize(
    "name",
    ["wandb-api-key", "projects/p/secrets/s", "projects/p/secrets/s/versions/1/x", f"{SECRET}\n", "${X}"],
)
def test_a_secret_that_is_none_is_refused(name: str) -> None:
    assert "versions/latest" in refused(pool(command=TRAIN), api_key_secret=name)["block.api_key_secret"]


def test_the_authors_own_key_gives_way_with_a_warning() -> None:
    rendering = launch(
        pool(command=TRAIN), item={"author": "ann"}, api_key_secret=SECRET, api_key_of_author=True
    )
    assert any(warning.startswith("_wandb_api_key: is not used") for warning in rendering.warnings)
    assert env_of(rendering)["WANDB_USERNAME"] == "ann"


def test_pools_of_another_image_are_left_as_they_are() -> None:
    rendering = launch(pool(command=TRAIN), pool("reducer:1", command=["reduce"]), api_key_secret=SECRET)
    assert task_of(rendering, 1).command == ["reduce"]
    assert "WANDB_API_KEY_SECRET" not in env_of(rendering, 1)


@pytest.mark.parametrize(
    ("variable", "context"),
    [
        ("WANDB_API_KEY", {"api_key_secret": SECRET}),
        ("VERTEX_LAUNCH_CODE", {"api_key_secret": SECRET}),
        ("WANDB_API_KEY_SECRET", {"code": CODE}),
    ],
)
def test_nobody_else_tells_the_program_what_to_fetch(variable: str, context: dict[str, Any]) -> None:
    given = pool(command=TRAIN, env=[{"name": variable, "value": "evil"}])
    rendering = launch(given, **context)
    assert env_of(rendering).get(variable) != "evil"
    assert any(f"{variable} is left out" in warning for warning in rendering.warnings)


# --- code on a base image


def test_code_is_fetched_in_front_of_the_jobs_entry_point() -> None:
    rendering = launch(code=CODE, job_entry_point=tuple(TRAIN))
    assert task_of(rendering).command == ["python3", "-I", "-c", start_program(), *TRAIN]
    assert json.loads(env_of(rendering)["VERTEX_LAUNCH_CODE"]) == {"job": "job-1", "artifact": "code-1"}


def test_code_that_no_pool_would_run_is_refused() -> None:
    found = refused(pool("other:1", command=TRAIN), code=CODE)
    assert "its code would run nowhere" in found["resource_args.vertex.spec.worker_pool_specs"]
    assert "cannot be given the code" in refused(PACKAGE, code=CODE)[f"{POOL}.python_package_spec"]
    assert "cannot be given the code" in refused(pool(), code=CODE)[COMMAND_PATH]


def test_a_repositorys_facts_reach_the_container_as_they_are() -> None:
    code = JobCode("j", remote="https://$(X)/r", commit="abc", has_patch=True, working_dir="src")
    text = env_of(launch(code=code, job_entry_point=tuple(TRAIN)))["VERTEX_LAUNCH_CODE"]
    assert "$" not in text
    facts = {"job": "j", "remote": "https://$(X)/r", "commit": "abc", "patch": True, "working_dir": "src"}
    assert json.loads(text) == facts


# --- what of a W&B job can be launched


def source(kind: Any = "artifact", **changes: Any) -> JobSource:
    given = {"image_uri": None, "entry_point": tuple(TRAIN), "base_image": "python:3.12", "code": CODE}
    return JobSource(kind=kind, **{**given, **changes})


def refusal(given: JobSource, **options: Any) -> str:
    with pytest.raises(InvalidRunSpec) as caught:
        image_of_job(given, where="job acme/p/train:v1", **options)
    return str(caught.value)


@pytest.mark.parametrize("kind", ["artifact", "repo"])
def test_code_runs_on_its_base_image(kind: str) -> None:
    assert image_of_job(source(kind), where="job") == LaunchImage("python:3.12", tuple(TRAIN), CODE)


@pytest.mark.parametrize("kind", ["artifact", "repo"])
def test_code_without_a_base_image_would_need_a_build(kind: str) -> None:
    given = source(kind, base_image=None)
    assert given.needs_build
    assert "no image is built here, so the code would be missing" in refusal(given)


def test_an_image_job_brings_image_and_entry_point() -> None:
    given = source("image", image_uri="img:1", base_image=None, code=None)
    assert image_of_job(given, where="job") == LaunchImage("img:1", tuple(TRAIN))
    assert "overrides.working_dir" in refusal(given, working_dir="src")


def test_code_whose_place_is_not_known_is_never_run_without_it() -> None:
    assert "does not say where its code is" in refusal(source(code=None))


def test_a_notebook_is_refused() -> None:
    assert "notebook" in refusal(source(is_notebook=True))


def test_a_working_directory_is_inside_of_the_code() -> None:
    image = image_of_job(source(), where="job", working_dir="src/training")
    assert image.code is not None
    assert (image.code.working_dir, image.code.artifact_id) == ("src/training", "code-1")
    for outside in ("/etc", "..", "src/../../x"):
        assert "is not inside of the code" in refusal(source(), working_dir=outside)


def test_what_a_job_file_says_of_its_code() -> None:
    assert read_code({"artifact": "wandb-artifact://_id/QXJ0"}, "j", set()) == JobCode(
        "j", artifact_id="QXJ0"
    )
    git = {"git": {"remote": "https://host/r", "commit": "abc"}}
    assert read_code(git, "j", {"diff.patch"}) == JobCode(
        "j", remote="https://host/r", commit="abc", has_patch=True
    )


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"artifact": "wandb-artifact://team/p/code:v1"},
        {"artifact": "wandb-artifact://_id/"},
        {"artifact": 1},
        {"git": "x"},
        {"git": {"remote": "https://host/r"}},
        {"git": {"remote": "--upload-pack=evil", "commit": "abc"}},
        {"git": {"remote": "https://host/r", "commit": "--orphan"}},
    ],
)
def test_a_place_that_cannot_be_used_is_none(given: dict[str, Any]) -> None:
    assert read_code(given, "j", set()) is None


# --- the program itself, where it needs no server


def repr_start(value: object) -> str:
    return repr(value)[:60]


def start(
    tmp_path: Path, *command: str, text: str | None = None, **environment: str
) -> subprocess.CompletedProcess[str]:
    own = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "GIT_CONFIG_GLOBAL": "/dev/null", **environment}
    return subprocess.run(
        [sys.executable, "-I", "-c", text or start_program(), *command],
        cwd=tmp_path,
        env=own,
        timeout=HANG_SECONDS,
        capture_output=True,
        text=True,
        check=False,
    )


def git(directory: Path, *words: str) -> str:
    identity = ["-c", "user.name=a", "-c", "user.email=a@b.c", "-c", "init.defaultBranch=main"]
    done = subprocess.run(
        ["git", *identity, *words], cwd=directory, capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


def commit_all(directory: Path) -> str:
    if not (directory / ".git").exists():
        git(directory, "init", "--quiet")
    git(directory, "add", ".")
    git(directory, "commit", "--quiet", "-m", "a change")
    return git(directory, "rev-parse", "HEAD")


@pytest.fixture(scope="module")
def repository(tmp_path_factory) -> tuple[str, str]:
    """A repository and the commit in it whose train.py is wanted; the branch has moved on."""
    path = tmp_path_factory.mktemp("repository")
    (path / "src").mkdir()
    (path / "src" / "train.py").write_text("import os, sys; print(os.getcwd()[-3:], *sys.argv[1:])")
    commit = commit_all(path)
    (path / "src" / "train.py").write_text("raise SystemExit('a later commit')")
    commit_all(path)
    return str(path), commit


def code_at(repository: tuple[str, str], **changes: Any) -> str:
    remote, commit = repository
    return json.dumps({"job": "j", "remote": remote, "commit": commit, "working_dir": "src", **changes})


def test_the_command_runs_in_its_directory_of_the_commit(tmp_path, repository) -> None:
    done = start(tmp_path, "python3", "train.py", "--lr", "1", VERTEX_LAUNCH_CODE=code_at(repository))
    assert (done.returncode, done.stdout.strip()) == (0, "src --lr 1"), done.stderr


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"commit": "0" * 40}, "git checkout ended with status"),
        ({"remote": "/nowhere/at/all"}, "git clone ended with status"),
        ({"working_dir": "none"}, "has no directory none"),
        ({"working_dir": "x" * 300}, "File name too long"),
        # Without a bound on its transports git would wait for what nobody writes, or run a program.
        ({"remote": "fd::0"}, "git clone ended with status"),
        ({"remote": "ext::sh -c 'echo it ran'"}, "git clone ended with status"),
    ],
)
def test_the_command_never_runs_without_its_code(tmp_path, repository, changes, reason) -> None:
    done = start(tmp_path, "echo", "it ran", VERTEX_LAUNCH_CODE=code_at(repository, **changes))
    assert (done.returncode, done.stdout) == (78, "")
    *_, last = done.stderr.splitlines()
    assert last.startswith("vertex-launch: the code of the W&B job")
    assert reason in last
    assert "transport 'file'" not in done.stderr


ODD_TEXTS = [1, ["a"], {"a": 1}, "a\0b", "\ud800"]
ODD_CODE = [
    *(
        {name: value}
        for name in ("job", "artifact", "remote", "commit", "working_dir")
        for value in ODD_TEXTS
    ),
    *({"remote": "/", **odd} for odd in ({"commit": "-"}, {"working_dir": ".."}, {"working_dir": "/"}, {})),
    *([], "x", 1, {}),
]


@pytest.mark.parametrize("text", ["", "{", "[" * 100_000, *map(json.dumps, ODD_CODE)], ids=repr_start)
def test_whatever_the_code_is_said_to_be_there_is_one_sentence(tmp_path, text: str) -> None:
    if not text:
        text = " "
    done = start(tmp_path, "echo", "it ran", VERTEX_LAUNCH_CODE=text)
    assert (done.returncode, done.stdout) == (78, "")
    assert "Traceback" not in done.stderr
    assert [line for line in done.stderr.splitlines() if line.startswith("vertex-launch: ")]


def test_a_git_server_that_says_nothing_is_not_waited_for(tmp_path) -> None:
    code = code_at(("git://127.0.0.1:{port}/r", "HEAD"))
    with socket.create_server(("127.0.0.1", 0)) as silent:
        code = code.replace("{port}", str(silent.getsockname()[1]))
        text = start_program().replace("PROGRAM_SECONDS = 3600", "PROGRAM_SECONDS = 1")
        done = start(tmp_path, "echo", "it ran", text=text, VERTEX_LAUNCH_CODE=code)
    assert (done.returncode, done.stdout) == (78, "")
    assert "git clone has not ended after 1 seconds" in done.stderr


def test_a_server_that_sends_a_byte_now_and_then_is_not_waited_for(tmp_path) -> None:
    text = start_program().replace("START_SECONDS = 4 * 3600", "START_SECONDS = 2")
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"http://127.0.0.1:{server.getsockname()[1]}"
        threading.Thread(target=drip, args=(server,), daemon=True).start()
        code = json.dumps({"job": "j", "artifact": "a"})
        done = start(
            tmp_path, "echo", "it ran", text=text, VERTEX_LAUNCH_CODE=code, WANDB_BASE_URL=url, no_proxy="*"
        )
    assert (done.returncode, done.stdout) == (78, "")
    assert done.stderr == "vertex-launch: the container is not ready after 2 seconds\n"


def drip(server: socket.socket) -> None:
    with contextlib.suppress(OSError), server.accept()[0] as connection:
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n")
        while True:
            connection.sendall(b" ")
            time.sleep(0.05)


def test_the_time_to_get_ready_is_not_the_command_s(tmp_path) -> None:
    left = "import signal; print(signal.alarm(0))"
    assert start(tmp_path, sys.executable, "-c", left).stdout == "0\n"


class Answers(http.server.BaseHTTPRequestHandler):
    """W&B, of which the test writes every answer; an artifact's files are at `/file`."""

    graphql: bytes = b""
    manifest: bytes = b""

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self._say(self.graphql)

    def do_GET(self) -> None:
        self._say(self.manifest if self.path == "/manifest" else b"print('it ran')")

    def _say(self, body: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture(scope="module")
def wandb_server() -> Iterator[str]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answers) as server:
        threading.Thread(target=server.serve_forever).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def artifact_of(*names: object, url: object = "/file", **changes: Any) -> dict[str, Any]:
    """W&B's answer about an artifact with these files."""
    return {
        "state": "COMMITTED",
        "currentManifest": {"file": {"directUrl": "/manifest"}},
        "files": {
            "pageInfo": {"hasNextPage": False, "endCursor": None},
            "edges": [{"node": {"name": name, "directUrl": url}} for name in names],
        },
        **changes,
    }


def data(artifact: object) -> object:
    return {"data": {"artifact": artifact}}


def manifest(*names: str) -> dict[str, Any]:
    return {"contents": {name: {"digest": "x"} for name in names}}


ENDLESS = {"pageInfo": {"hasNextPage": True, "endCursor": "same"}, "edges": []}
GOOD = data(artifact_of("a.py"))
ODD_ANSWERS: list[tuple[object, object]] = [
    *((GOOD, {"contents": contents}) for contents in ([], ["a.py"], "a.py", 1, None)),
    *((GOOD, {"contents": {"a.py": entry}}) for entry in (None, 1)),
    *((GOOD, odd) for odd in ([], "x", 1, None, {})),
    *(
        (data(artifact_of(name)), manifest(name))
        for name in ("a\0b", "\ud800", "x" * 300, "", ".", "/a", "a/../../b")
    ),
    (data(artifact_of("a", "a/b")), manifest("a", "a/b")),
    (data(artifact_of(["a.py"])), manifest("a.py")),
    *(
        (data(artifact_of("a.py", url=url)), manifest("a.py"))
        for url in (None, 1, "", {}, "http://[", "http://127.0.0.1:x/", "http://ü ü/", "file:///etc/hostname",
                    "data:,x", "http://" + "x" * 70, "\0")
    ),
    *(
        (data(artifact_of("a.py", **{name: value})), manifest("a.py"))
        for name in ("currentManifest", "files")
        for value in (None, [], "x")
    ),
    (data(artifact_of("a.py", files=ENDLESS)), manifest("a.py")),
    *((odd, manifest("a.py")) for odd in ([], "x", None, {}, {"data": []}, data("x"), data([]))),
    *(({"errors": errors}, {}) for errors in (1, [], [1], [{}], {"a": 1}, [{"message": {"a": 1}}])),
]  # fmt: skip


@pytest.mark.parametrize(("answer", "files"), ODD_ANSWERS, ids=repr_start)
def test_whatever_wandb_says_of_the_code_there_is_one_sentence(
    tmp_path, wandb_server: str, answer: object, files: object
) -> None:
    Answers.graphql, Answers.manifest = json.dumps(answer).encode(), json.dumps(files).encode()
    _ends_with_one_sentence(tmp_path, wandb_server)


@pytest.mark.parametrize("text", [b"", b"{", b"\xff", b"[" * 100_000], ids=repr_start)
def test_an_answer_that_is_no_json_ends_with_one_sentence(tmp_path, wandb_server: str, text: bytes) -> None:
    for Answers.graphql, Answers.manifest in ((text, b"{}"), (json.dumps(GOOD).encode(), text)):
        _ends_with_one_sentence(tmp_path, wandb_server)


def _ends_with_one_sentence(home: Path, wandb_server: str) -> None:
    code = json.dumps({"job": "j", "artifact": "a"})
    text = start_program().replace("PAUSES_SECONDS = (1, 2, 4, 8)", "PAUSES_SECONDS = ()")
    done = start(
        home, "echo", "it ran", text=text, VERTEX_LAUNCH_CODE=code, WANDB_BASE_URL=wandb_server, no_proxy="*"
    )
    assert (done.returncode, done.stdout) == (78, ""), done.stderr
    assert done.stderr.startswith("vertex-launch: the code of the W&B job cannot be had: ")
    assert len(done.stderr.splitlines()) == 1


def test_without_an_address_of_wandb_it_says_so(tmp_path) -> None:
    done = start(tmp_path, "true", VERTEX_LAUNCH_CODE=json.dumps({"artifact": "a"}))
    assert (done.returncode, done.stderr.splitlines()[-1][:15]) == (78, "vertex-launch: ")
    assert "WANDB_BASE_URL is not set" in done.stderr


def test_a_remotes_password_is_not_logged(tmp_path, repository) -> None:
    code = code_at(repository, remote="http://user:hunter2@127.0.0.1:9/r")
    done = start(tmp_path, "true", VERTEX_LAUNCH_CODE=code, http_proxy="")
    assert done.returncode == 78
    assert "http://127.0.0.1:9/r" in done.stderr
    assert "hunter2" not in done.stderr


def test_requirements_are_installed_when_asked_for(tmp_path) -> None:
    """With a `pip` of the test's own on the path, which says what it was asked for."""
    code = tmp_path / "repository"
    code.mkdir()
    (code / "requirements.txt").write_text("wandb\n")
    commit_all(code)
    (tmp_path / "pip").write_text('#!/bin/sh\necho pip "$1" "${3##*/}"\nexit ${PIP_STATUS:-0}\n')
    (tmp_path / "pip").chmod(0o755)
    given = {
        "VERTEX_LAUNCH_CODE": code_at((str(code), "HEAD"), working_dir="."),
        "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}",
    }
    asked = {**given, "VERTEX_LAUNCH_INSTALL_REQUIREMENTS": "1"}

    assert start(tmp_path, "echo", "ran", **given).stderr == ""
    done = start(tmp_path, "echo", "ran", **asked)
    assert (done.stdout, done.stderr) == ("ran\n", "pip install requirements.txt\n")
    failed = start(tmp_path, "echo", "ran", **asked, PIP_STATUS="1")
    assert (failed.returncode, failed.stdout) == (78, "")
    assert "the requirements of the W&B job cannot be installed: pip install ended" in failed.stderr


def test_a_command_that_is_not_there_says_so(tmp_path) -> None:
    done = start(tmp_path, "no-such-program")
    assert (done.returncode, done.stderr) == (
        127, "vertex-launch: no-such-program cannot be run: No such file or directory\n",
    )  # fmt: skip


def test_a_module_in_the_images_directory_takes_no_place(tmp_path) -> None:
    (tmp_path / "json.py").write_text("raise SystemExit('evil')")
    done = start(tmp_path, "echo", "ran", PYTHONPATH=str(tmp_path))
    assert done.stdout == "ran\n"


def test_the_programs_text_can_travel_in_a_job() -> None:
    text = start_program()
    # Vertex AI expands $(NAME) in commands.
    assert "$" not in text
    assert len(text) < 16_000
    ast.parse(text, feature_version=(3, 8))
    imported = {
        alias.name.partition(".")[0]
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.Import)
        for alias in node.names
    }
    assert imported <= sys.stdlib_module_names
