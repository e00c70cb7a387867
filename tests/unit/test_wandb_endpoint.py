"""The endpoint is the one that the wandb client would use: the same cases are put to both."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from wandb.sdk.lib import urls
from wandb.sdk.lib.wbauth import HostUrl

from prefect_vertex_launch.core.errors import AuthenticationFailed, Refused
from prefect_vertex_launch.wandb.endpoint import (
    DEFAULT_BASE_URL,
    FORGE_HOSTS,
    WandbEndpoint,
    authorize_url,
    normalize_base_url,
)

KEYS = {name: name.ljust(40, "x") for name in ("argument", "env", "netrc", "local", "global", "upstream")}
SERVER = "https://wandb.corp.example"


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in os.environ:
        if name.startswith("WANDB_") or name == "NETRC":
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    return tmp_path


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def settings(path: Path, **values: str) -> None:
    write(path, "[default]\n" + "".join(f"{key} = {value}\n" for key, value in values.items()))


def netrc(path: Path, **keys: str) -> None:
    write(
        path,
        "".join(
            f"machine {host.replace('_', '.')}\n login user\n password {key}\n" for host, key in keys.items()
        ),
    )


def resolved(base_url: str | None = None, api_key: str | None = None) -> tuple[str, str]:
    endpoint = WandbEndpoint.resolve(base_url, api_key)
    return endpoint.base_url, endpoint.api_key.get_secret_value().rstrip("x")


def test_arguments_win_over_everything(home, monkeypatch):
    monkeypatch.setenv("WANDB_BASE_URL", "https://other.example")
    monkeypatch.setenv("WANDB_API_KEY", KEYS["env"])
    assert resolved(SERVER + "/", KEYS["argument"]) == (SERVER, "argument")


def test_the_environment_wins_over_files(home, monkeypatch):
    settings(home / ".config/wandb/settings", base_url="https://file.example", api_key=KEYS["global"])
    netrc(home / ".netrc", wandb_corp_example=KEYS["netrc"])
    monkeypatch.setenv("WANDB_BASE_URL", SERVER)
    assert resolved() == (SERVER, "netrc")
    monkeypatch.setenv("WANDB_API_KEY", KEYS["env"])
    assert resolved() == (SERVER, "env")


def test_the_working_directorys_settings_win_over_the_users(home):
    settings(home / ".config/wandb/settings", base_url="https://file.example", api_key=KEYS["global"])
    settings(home / "work/wandb/settings", base_url=SERVER)
    assert resolved() == (SERVER, "global")
    settings(home / "work/wandb/settings", base_url=SERVER, api_key=KEYS["local"])
    assert resolved() == (SERVER, "local")


def test_a_key_in_the_settings_is_only_for_the_server_of_the_settings(home):
    settings(home / ".config/wandb/settings", base_url=SERVER, api_key=KEYS["global"])
    with pytest.raises(AuthenticationFailed, match=r"no API key for https://elsewhere\.example"):
        resolved("https://elsewhere.example")


def test_the_places_of_the_files_can_be_set(home, monkeypatch):
    monkeypatch.setenv("WANDB_CONFIG_DIR", "~/config")
    monkeypatch.setenv("NETRC", "~/keys")
    settings(home / "config/settings", base_url=SERVER)
    netrc(home / "keys", wandb_corp_example=KEYS["netrc"])
    assert resolved() == (SERVER, "netrc")


def test_wandbs_cloud_is_the_default_and_its_older_name_has_its_key(home):
    netrc(home / ".netrc", api_wandb_ai=KEYS["upstream"])
    assert resolved() == (DEFAULT_BASE_URL, "upstream")
    assert resolved("https://api.wandb.ai") == ("https://api.wandb.ai", "upstream")
    assert authorize_url(DEFAULT_BASE_URL) == "https://wandb.ai/authorize"


@pytest.mark.parametrize("text", ["no ini at all", "[default\n", "\x00\xff"])
def test_a_file_that_cannot_be_read_is_as_none(home, monkeypatch, text):
    write(home / ".config/wandb/settings", text)
    write(home / ".netrc", "machine")
    monkeypatch.setenv("WANDB_API_KEY", KEYS["env"])
    assert resolved() == (DEFAULT_BASE_URL, "env")


@pytest.mark.parametrize(
    "url", ["ftp://x", "wandb.ai", "", "http://[", "https://wandb.ai", "http://api.wandb.ai", "https://u:p@h"]
)
def test_an_address_that_is_none_is_refused_and_not_repeated_with_its_password(home, monkeypatch, url):
    monkeypatch.setenv("WANDB_BASE_URL", url or "nothing")
    with pytest.raises(Refused) as caught:
        resolved(None, KEYS["argument"])
    assert "u:p" not in str(caught.value)


@pytest.mark.parametrize("key", ["short", "has space".ljust(40, "x"), "local-short", "ö!" * 20])
def test_a_key_that_cannot_be_one_is_refused_and_not_shown(home, key):
    with pytest.raises(AuthenticationFailed) as caught:
        resolved(SERVER, key)
    assert key not in str(caught.value)
    assert f"{SERVER}/authorize" in str(caught.value)


@pytest.mark.parametrize("key", ["a" * 40, "local-" + "b" * 40, "h_e.p-p.s_s"])
def test_the_kinds_of_keys_that_wandb_takes_are_taken(home, key):
    assert WandbEndpoint.resolve(SERVER, key).api_key.get_secret_value() == key


def test_an_identity_token_is_refused_by_name_unless_a_key_is_given(home, monkeypatch):
    monkeypatch.setenv("WANDB_IDENTITY_TOKEN_FILE", "/run/token")
    monkeypatch.setenv("WANDB_API_KEY", KEYS["env"])
    with pytest.raises(AuthenticationFailed, match="Unset WANDB_IDENTITY_TOKEN_FILE"):
        resolved(SERVER)
    assert resolved(SERVER, KEYS["argument"]) == (SERVER, "argument")


# The same as the wandb client


def test_the_addresses_of_wandbs_cloud_are_those_of_the_installed_client():
    assert (urls.DEFAULT_BASE_URL, urls.FORGE_HOSTS) == (DEFAULT_BASE_URL, FORGE_HOSTS)


@pytest.mark.parametrize(
    "url",
    [
        "https://forge.coreweave.com/api/wandb",
        "https://qa.forge.coreweave.com/api/wandb/",
        "https://forge.coreweave.com",
        "https://forge.coreweave.com:8443/api/wandb",
        "http://forge.coreweave.com/api/wandb",
        "https://api.forge.coreweave.com",
        "https://api.wandb.ai/",
        "http://api.wandb.ai",
        "https://wandb.ai",
        "https://wandb.ai.example.com",
        "http://localhost:8080/",
        "https://wandb.example.com/path/",
        "ftp://wandb.example.com",
        "wandb.example.com",
        "",
    ],
)
def test_a_servers_address_is_read_as_the_wandb_client_reads_it(url):
    try:
        theirs = HostUrl(url).url
    except ValueError:
        with pytest.raises(Refused):
            normalize_base_url(url)
    else:
        assert normalize_base_url(url) == theirs


class WandbServer(ThreadingHTTPServer):
    """Remembers where each request went and with which key; answers nothing of use."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Recorder)
        self.host = f"127.0.0.1:{self.server_port}"
        self.seen: list[tuple[str, str | None]] = []


class _Recorder(BaseHTTPRequestHandler):
    server: WandbServer

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        kind, _, secret = self.headers.get("Authorization", "").partition(" ")
        key = base64.b64decode(secret).decode().removeprefix("api:") if kind == "Basic" else None
        self.server.seen.append((f"http://{self.headers['Host']}{self.path}", key))
        body = b'{"data": {}}'
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        pass


# wandb is imported once, and each case is a process of its own, as the client reads its settings once.
_CLIENT = """
import json, os, sys
import wandb
for line in sys.stdin:
    case = json.loads(line)
    process = os.fork()
    if not process:
        os.environ.clear()
        os.environ.update(case["environment"])
        os.chdir(case["directory"])
        try:
            wandb.Api(overrides=case["overrides"]).viewer
        except Exception:
            pass
        os._exit(0)
    os.waitpid(process, 0)
    print("done", flush=True)
"""


class WandbClient:
    """The installed wandb client, and the server on which it shows what it has resolved."""

    def __init__(self, server: WandbServer, process: subprocess.Popen[str]) -> None:
        self.server = server
        self._process = process

    def resolved(self, base_url: str | None) -> tuple[str, str | None] | None:
        """Return the first request of `wandb.Api()` in this environment and directory."""
        assert self._process.stdin
        assert self._process.stdout
        self.server.seen.clear()
        case = {
            "environment": dict(os.environ),
            "directory": str(Path.cwd()),
            "overrides": {"base_url": base_url} if base_url else None,
        }
        self._process.stdin.write(json.dumps(case) + "\n")
        self._process.stdin.flush()
        assert self._process.stdout.readline() == "done\n"
        # The client's telemetry is sent whenever it likes.
        return next((request for request in self.server.seen if "/otel/" not in request[0]), None)


@pytest.fixture(scope="module")
def wandb_client() -> Iterator[WandbClient]:
    server = WandbServer()
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    environment = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
    with subprocess.Popen(
        [sys.executable, "-c", _CLIENT],
        env=environment | {"WANDB_SILENT": "true", "WANDB_ERROR_REPORTING": "false"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as process:
        yield WandbClient(server, process)
    server.shutdown()
    thread.join()
    server.server_close()


URL = "http://HOST"  # HOST becomes the recording server's
GLOBAL, LOCAL = ".config/wandb/settings", "work/wandb/settings"
NETRC = f"machine HOST\n login user\n password {KEYS['netrc']}\n"


def ini(**values: str) -> str:
    return "[default]\n" + "".join(f"{name} = {value}\n" for name, value in values.items())


CASES: dict[str, tuple[dict[str, str], dict[str, str], str | None]] = {
    # name: environment, files in the home directory, key (None: no key is used)
    "environment before all files": (
        {"WANDB_BASE_URL": f"{URL}/env/", "WANDB_API_KEY": KEYS["env"]},
        {".netrc": NETRC, GLOBAL: ini(base_url=f"{URL}/global", api_key=KEYS["global"])},
        "env",
    ),
    "netrc before settings": (
        {}, {".netrc": NETRC, GLOBAL: ini(base_url=f"{URL}/global", api_key=KEYS["global"])}, "netrc",
    ),
    "the file that NETRC names": (
        {"NETRC": "~/keys", "WANDB_BASE_URL": URL}, {"keys": NETRC, ".netrc": "machine"}, "netrc",
    ),
    "settings of the directory over those of the user, one by one": (
        {}, {GLOBAL: ini(base_url=f"{URL}/global", api_key=KEYS["global"]),
             LOCAL: ini(base_url=f"{URL}/local")},
        "global",
    ),
    "settings of the directory": (
        {}, {GLOBAL: ini(base_url=f"{URL}/global", api_key=KEYS["global"]),
             LOCAL: ini(base_url=f"{URL}/local", api_key=KEYS["local"])},
        "local",
    ),
    "the hidden directory before the other": (
        {}, {"work/.wandb/settings": ini(base_url=f"{URL}/hidden", api_key=KEYS["local"]),
             LOCAL: ini(base_url=f"{URL}/local", api_key=KEYS["global"])},
        "local",
    ),
    "WANDB_DIR is not where settings are": (
        {"WANDB_DIR": "HOME/elsewhere"},
        {"elsewhere/wandb/settings": ini(base_url=f"{URL}/elsewhere", api_key=KEYS["global"]),
         LOCAL: ini(base_url=f"{URL}/local", api_key=KEYS["local"])},
        "local",
    ),
    "WANDB_CONFIG_DIR": (
        {"WANDB_CONFIG_DIR": "~/config"},
        {"config/settings": ini(base_url=f"{URL}/config", api_key=KEYS["local"]),
         GLOBAL: ini(base_url=f"{URL}/global", api_key=KEYS["global"])},
        "local",
    ),
    "a key of the settings with the server of the environment": (
        {"WANDB_BASE_URL": f"{URL}/env"}, {GLOBAL: ini(base_url=f"{URL}/global", api_key=KEYS["global"])},
        "global",
    ),
    "a settings file that cannot be read": (
        {"WANDB_BASE_URL": URL, "WANDB_API_KEY": KEYS["env"]}, {LOCAL: "[default"}, "env",
    ),
    "no key": ({"WANDB_BASE_URL": URL}, {GLOBAL: ini(entity="team")}, None),
    "an identity token before netrc": (
        {"WANDB_BASE_URL": URL, "WANDB_IDENTITY_TOKEN_FILE": "HOME/token"},
        {"token": "a.b.c", ".netrc": NETRC, GLOBAL: ini(api_key=KEYS["global"])},
        None,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_the_wandb_client_goes_to_the_same_server_with_the_same_key(name, home, monkeypatch, wandb_client):
    environment, files, key = CASES[name]
    host = wandb_client.server.host
    for variable, value in environment.items():
        monkeypatch.setenv(variable, value.replace("HOST", host).replace("HOME", str(home)))
    for path, text in files.items():
        write(home / path, text.replace("HOST", host))
    theirs = wandb_client.resolved(None)
    if key is None:
        assert theirs is None or theirs[1] is None
        with pytest.raises(AuthenticationFailed):
            WandbEndpoint.resolve()
    else:
        endpoint = WandbEndpoint.resolve()
        assert (f"{endpoint.base_url}/graphql", endpoint.api_key.get_secret_value()) == theirs
        assert theirs[1] == KEYS[key]


def test_the_wandb_client_uses_a_key_of_the_settings_for_their_server_alone_too(home, wandb_client):
    settings(home / GLOBAL, base_url=f"http://{wandb_client.server.host}/global", api_key=KEYS["global"])
    other = f"http://{wandb_client.server.host}/other"
    assert wandb_client.resolved(other) is None
    with pytest.raises(AuthenticationFailed):
        resolved(other)
