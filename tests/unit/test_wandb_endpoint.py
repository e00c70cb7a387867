"""The endpoint is the one that the wandb client would use: the same cases are put to both."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from vertex_launch.errors import AuthenticationFailed, Refused
from vertex_launch.wandb_endpoint import DEFAULT_BASE_URL, FORGE_HOSTS, WandbEndpoint, authorize_url

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


def test_the_wandb_client_finds_the_same_in_the_same_place(home):
    """A process with the installed wandb, a settings file and a netrc file is asked what it would use."""
    settings(home / ".config/wandb/settings", base_url=SERVER + "/", api_key=KEYS["global"])
    netrc(home / ".netrc", wandb_corp_example=KEYS["netrc"])
    code = (
        "from wandb.sdk import wandb_setup; from wandb.sdk.lib import urls, wbauth\n"
        "from wandb.sdk.lib.wbauth import wbnetrc\n"
        "settings = wandb_setup.singleton().settings\n"
        "print(settings.base_url, wbnetrc.read_netrc_auth(host=settings.base_url))\n"
        "print(urls.DEFAULT_BASE_URL, sorted(urls.FORGE_HOSTS.items()))"
    )
    answer = subprocess.run(
        [sys.executable, "-c", code],
        check=True,
        capture_output=True,
        text=True,
        env=os.environ | {"WANDB_SILENT": "true"},
    ).stdout.splitlines()
    endpoint = WandbEndpoint.resolve()
    assert answer[-2].split() == [endpoint.base_url, endpoint.api_key.get_secret_value()]
    assert answer[-1] == f"{DEFAULT_BASE_URL} {sorted(FORGE_HOSTS.items())}"
