"""Which W&B server to talk to and with which API key, found where the `wandb` client finds them.

The rules are those of wandb 0.31 (`sdk/wandb_settings.py`, `sdk/lib/settings_file.py`,
`sdk/lib/wbauth/`), written again here because importing wandb starts a second process.
"""

from __future__ import annotations

import configparser
import netrc
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from urllib.parse import SplitResult, urlsplit

from pydantic import SecretStr

from prefect_vertex_launch.core.errors import AuthenticationFailed, Problem, Refused

DEFAULT_BASE_URL = "https://api.forge.coreweave.com"
# Each CoreWeave Forge host and the W&B API host behind it: keys are stored under either name.
FORGE_HOSTS: Mapping[str, str] = MappingProxyType(
    {"forge.coreweave.com": "api.wandb.ai", "qa.forge.coreweave.com": "api.qa.wandb.ai"}
)
_FORGE_API_PATH = "/api/wandb"

_IDENTITY_TOKEN_FILE = "WANDB_IDENTITY_TOKEN_FILE"  # noqa: S105  # the name of a variable
_JWT = re.compile(r"[\w-]+\.[\w-]+\.[\w-]+")
_KEY_CHARACTERS = 40


@dataclass(frozen=True, slots=True)
class WandbEndpoint:
    """A W&B server (`base_url`, without a slash at its end) and the key it is to accept."""

    base_url: str
    api_key: SecretStr

    @classmethod
    def resolve(cls, base_url: str | None = None, api_key: str | None = None) -> WandbEndpoint:
        """Return the endpoint that the wandb client would use in this process.

        The server: `base_url`, WANDB_BASE_URL, `./wandb/settings`, `~/.config/wandb/settings` (or
        WANDB_CONFIG_DIR), W&B's own cloud. The key: `api_key`, WANDB_API_KEY, netrc (NETRC or
        `~/.netrc`), the settings files. Raises Refused when the server's address is not one, and
        AuthenticationFailed when there is no key or it cannot be one, and where the wandb client
        would log in with an identity token.
        """
        settings = _read_settings()
        configured_url = os.environ.get("WANDB_BASE_URL") or settings.get("base_url") or DEFAULT_BASE_URL
        url = normalize_base_url(base_url or configured_url)
        if not api_key:
            _refuse_identity_token()
        key = api_key or os.environ.get("WANDB_API_KEY") or _read_netrc(url)
        # A key in the settings belongs to the server that the settings name.
        if not key and url == normalize_base_url(configured_url):
            key = settings.get("api_key")
        return cls(base_url=url, api_key=SecretStr(_checked_key(key, url)))


def normalize_base_url(url: str) -> str:
    """Return a server's address as requests need it; a Forge proxy's as its API host.

    Raises Refused for anything that is not an http(s) address, and for W&B's cloud by a name other
    than its API's or without TLS.
    """
    try:
        parts = urlsplit(url.strip())
        valid = parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.username is None
    except ValueError:
        valid, parts = False, urlsplit("")
    if not valid:
        raise Refused(
            Problem(
                "base_url", "it is not an http:// or https:// address", fix=f"Use {DEFAULT_BASE_URL}, say."
            )
        )
    if parts.hostname in FORGE_HOSTS:
        return _behind_forge(parts)
    if str(parts.hostname).endswith("wandb.ai") and (
        parts.scheme != "https" or "api." not in str(parts.hostname)
    ):
        raise Refused(
            Problem(
                "base_url",
                f"{parts.scheme}://{parts.hostname} is not the address of W&B's API",
                fix="Use https://api.wandb.ai.",
            )
        )
    return url.strip().rstrip("/")


def _behind_forge(parts: SplitResult) -> str:
    """Return the API host behind a Forge host's proxy, which is at one path only."""
    if (parts.scheme, parts.netloc, parts.path.rstrip("/")) != ("https", parts.hostname, _FORGE_API_PATH):
        raise Refused(
            Problem(
                "base_url",
                f"{parts.scheme}://{parts.hostname} is not the address of W&B's API there",
                fix=f"Use https://api.{parts.hostname}.",
            )
        )
    return f"https://api.{parts.hostname}"


def authorize_url(base_url: str) -> str:
    """Return the page on which a person finds the API key of a server."""
    host = urlsplit(base_url).hostname or ""
    for forge, api in FORGE_HOSTS.items():
        if host in {f"api.{forge}", api}:
            return "https://wandb.ai/authorize"
    return f"{base_url}/authorize"


def _refuse_identity_token() -> None:
    """Say that a token takes no part here, where the wandb client prefers it to every stored key."""
    if os.environ.get(_IDENTITY_TOKEN_FILE):
        raise AuthenticationFailed(
            Problem(
                _IDENTITY_TOKEN_FILE,
                "an identity token cannot be used here",
                why="the launch and its containers log in to W&B with an API key",
                fix=f"Unset {_IDENTITY_TOKEN_FILE} and set WANDB_API_KEY, or api_key in the block "
                "WandbCredentials.",
            )
        )


def _checked_key(key: str | None, base_url: str) -> str:
    """Return the key if it can be one, by the rules of wandb's `wbauth/validation.py`."""
    remedy = f"Set api_key in the block WandbCredentials; the key is at {authorize_url(base_url)}."
    if not key:
        raise AuthenticationFailed(
            Problem(
                "api_key",
                f"there is no API key for {base_url}",
                why="neither WANDB_API_KEY nor netrc nor a wandb settings file has one",
                fix=remedy,
            )
        )
    if _JWT.fullmatch(key):
        return key
    secret = key.split("-", 1)[-1]
    if not re.fullmatch(r"[\w-]+", secret):
        raise AuthenticationFailed(
            Problem("api_key", "an API key has only letters, digits, dashes and underscores", fix=remedy)
        )
    if len(secret) < _KEY_CHARACTERS:
        raise AuthenticationFailed(
            Problem(
                "api_key",
                f"an API key has {_KEY_CHARACTERS} characters or more, this has {len(secret)}",
                fix=remedy,
            )
        )
    return key


def _read_settings() -> dict[str, str]:
    """Return the settings of the user's file, those of the working directory's file over them."""
    config = os.environ.get("WANDB_CONFIG_DIR")
    directory = Path(config) if config else Path("~/.config/wandb")
    # wandb reads the files before it looks at WANDB_DIR, so that says nothing of where they are.
    local = Path(".wandb" if Path(".wandb").exists() else "wandb")
    settings: dict[str, str] = {}
    for path in (directory.expanduser() / "settings", local / "settings"):
        parser = configparser.ConfigParser()
        try:
            parser.read(path)
            settings |= dict(parser.items("default")) if parser.has_section("default") else {}
        except (OSError, configparser.Error, UnicodeDecodeError):
            # wandb treats a file that it cannot read as empty, and so does this.
            continue
    return settings


def _read_netrc(base_url: str) -> str | None:
    try:
        entries = netrc.netrc(_netrc_path())
    except (OSError, netrc.NetrcParseError, UnicodeDecodeError):
        return None
    netloc = urlsplit(base_url).netloc
    upstream = {f"api.{forge}": api for forge, api in FORGE_HOSTS.items()}.get(netloc, netloc)
    found = entries.authenticators(netloc) or entries.authenticators(upstream)
    return found[2] if found and found[2] else None


def _netrc_path() -> Path:
    named = os.environ.get("NETRC")
    if named:
        return Path(named).expanduser()
    unix, windows = Path("~/.netrc").expanduser(), Path("~/_netrc").expanduser()
    return windows if not unix.exists() and windows.exists() else unix
