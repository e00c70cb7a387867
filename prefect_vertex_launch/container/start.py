"""Gets a container ready for its command: the W&B key from Secret Manager, the code of a W&B job.

The text of this file travels in the job and runs as `python3 -I -c TEXT COMMAND…`, so it needs nothing
but Python 3.8 or newer and its standard library, stays small, and holds no dollar sign, which
Vertex AI might take for a reference to a variable. What it does is asked for by variables:

    WANDB_API_KEY_SECRET                  the secret version that becomes WANDB_API_KEY
    VERTEX_LAUNCH_CODE                    where the code is, as JSON; the command then runs inside of it
    VERTEX_LAUNCH_INSTALL_REQUIREMENTS    not empty: the code's requirements are installed
"""

from __future__ import annotations

import base64
import http.client
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NoReturn

NOT_READY = 78  # EX_CONFIG of sysexits.h
COMMAND_NOT_RUN = 127  # as a shell has it
PAUSES_SECONDS = (1, 2, 4, 8)
CALL_SECONDS = 60
PROGRAM_SECONDS = 3600
# For all of it: whoever sends a byte now and then keeps a call alive.
START_SECONDS = 4 * 3600
# The others of git run any program (ext) or read from where nobody writes (fd).
TRANSPORTS = "file:git:http:https:ssh"
# What comes of an answer, or of a name in it, that is not what it should be.
ODD = (ValueError, LookupError, TypeError, AttributeError, RecursionError)
GOOGLE = {"Metadata-Flavor": "Google"}
ARTIFACT = """
query ArtifactFiles {
  artifact(id: %s) {
    state
    currentManifest { file { directUrl } }
    files(after: %s, first: 1000) {
      pageInfo { hasNextPage endCursor }
      edges { node { name directUrl } }
    }
  }
}"""


class NotReady(Exception):
    """Why the command cannot be run."""


class StayHome(urllib.request.HTTPRedirectHandler):
    """Follows nobody elsewhere: what is sent with a token or key goes to one server only."""

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> None:
        """Make the answer an error."""


def main(command: list[str]) -> NoReturn:
    """Make ready what is asked for and become the command."""
    signal.signal(signal.SIGALRM, too_late)
    signal.alarm(START_SECONDS)
    try:
        if os.environ.get("WANDB_API_KEY_SECRET"):
            os.environ["WANDB_API_KEY"] = read_secret(os.environ["WANDB_API_KEY_SECRET"])
        if os.environ.get("VERTEX_LAUNCH_CODE"):
            os.chdir(fetch_code(read_code(os.environ["VERTEX_LAUNCH_CODE"])))
    except NotReady as reason:
        stop(str(reason), NOT_READY)
    except Exception as error:  # noqa: BLE001 - the log of a container is no place for a traceback
        stop(f"the container cannot be made ready: {type(error).__name__}: {error}", NOT_READY)
    signal.alarm(0)  # it would end the command
    try:
        os.execvp(command[0], command)  # noqa: S606 - the container's own command
    except OSError as error:
        stop(f"{command[0]} cannot be run: {error.strerror}", COMMAND_NOT_RUN)
    except (ValueError, IndexError):
        stop("there is no command to be run", COMMAND_NOT_RUN)


def too_late(*_: object) -> NoReturn:
    """End the container at once, whatever its threads wait for."""
    os.write(2, b"vertex-launch: the container is not ready after %d seconds\n" % START_SECONDS)
    os._exit(NOT_READY)


def stop(reason: str, exit_code: int) -> NoReturn:
    """End the container with one line that says why."""
    key = os.environ.get("WANDB_API_KEY")
    line = reason.replace(key, "********") if key else reason
    sys.stderr.write("vertex-launch: " + " ".join(line.split()) + "\n")
    sys.exit(exit_code)


def read_secret(name: str) -> str:
    """Return the text of a secret version, read as the job's service account."""
    host = os.environ.get("GCE_METADATA_HOST") or "metadata.google.internal"
    identity = f"http://{host}/computeMetadata/v1/instance/service-accounts/default/"
    account, key = "the job's service account", ""
    try:
        # The metadata server is beside the container; no proxy leads there.
        account = call(identity + "email", GOOGLE, proxies={}).decode().strip()
        token = json.loads(call(identity + "token", GOOGLE, proxies={}))["access_token"]
        url = f"{secret_manager(name)}/v1/{urllib.parse.quote(name)}:access"
        answer = json.loads(call(url, {"Authorization": f"Bearer {token}"}))
        key = base64.b64decode(answer["payload"]["data"]).decode().strip()
        reason = "no variable can hold it" if key else "it is empty"
    except NotReady as error:
        reason = str(error)
    except ODD:
        reason = "the answer is not what it should be"
    if not key or not is_plain(key):
        raise NotReady(
            f"the W&B API key cannot be read from the secret {name}: {reason}. {account} needs the permission"
            " secretmanager.versions.access on it (role Secret Manager Secret Accessor)"
        )
    return key


def secret_manager(name: str) -> str:
    """Return the address of the service that holds a secret, which may be a regional one."""
    region = re.match("projects/[^/]+/locations/([^/]+)/", name)
    host = f"secretmanager.{region[1]}.rep.googleapis.com" if region else "secretmanager.googleapis.com"
    return (
        os.environ.get("CLOUDSDK_API_ENDPOINT_OVERRIDES_SECRETMANAGER", "").rstrip("/") or f"https://{host}"
    )


def read_code(text: str) -> dict[str, str]:
    """Return where a job's code is; what is not said is empty."""
    try:
        code = json.loads(text)
        known = {
            name: code.get(name) or "" for name in ("job", "artifact", "remote", "commit", "working_dir")
        }
        known["patch"] = "yes" if code.get("patch") else ""
    except ODD:
        raise NotReady("VERTEX_LAUNCH_CODE is not what it should be: no JSON object") from None
    for name, value in known.items():
        if not is_plain(value):
            raise NotReady(f"VERTEX_LAUNCH_CODE is not what it should be: {name} is no text for it")
    if known["commit"].startswith("-") or not is_inside(known["working_dir"]):
        raise NotReady("VERTEX_LAUNCH_CODE is not what it should be: no such commit or directory can be")
    return known


def is_plain(text: object) -> bool:
    """Return whether this is a text that names, variables and arguments can hold."""
    return isinstance(text, str) and not re.search("[\\0\ud800-\udfff]", text)


def is_inside(name: str) -> bool:
    """Return whether a path stays below where it begins."""
    return not name.startswith("/") and ".." not in name.split("/")


def fetch_code(code: dict[str, str]) -> Path:
    """Get a job's code and return the directory in it where the command is to run."""
    try:
        home = own_directory()
        there = home / "code" / code["working_dir"]
        gather(code, home / "code", home / "job")
        is_there = there.is_dir()
    except (NotReady, OSError) as error:
        raise NotReady(f"the code of the W&B job cannot be had: {error}") from None
    if not is_there:
        raise NotReady(f"the code of the W&B job has no directory {code['working_dir']}")
    if os.environ.get("VERTEX_LAUNCH_INSTALL_REQUIREMENTS"):
        try:
            install(there, code["job"], home / "job")
        except (NotReady, OSError) as error:
            raise NotReady(f"the requirements of the W&B job cannot be installed: {error}") from None
    return there


def gather(code: dict[str, str], root: Path, job: Path) -> None:
    """Put the code below `root`, with a patch to it that the job's artifact holds."""
    if code["artifact"]:
        download(code["artifact"], root)
    else:
        clone(code["remote"], code["commit"], root)
    if code["patch"]:
        download(code["job"], job)
        run("git", "apply", "--whitespace=nowarn", str(job / "diff.patch"), cwd=root)


def own_directory() -> Path:
    """Return a new directory at home, or where temporary files go."""
    home = os.path.expanduser("~")  # noqa: PTH111 - Path.home() raises where there is none
    parent = home if os.access(home, os.W_OK) else None
    return Path(tempfile.mkdtemp(prefix="wandb-job-", dir=parent))


def clone(remote: str, commit: str, root: Path) -> None:
    """Check out a commit."""
    try:
        run("git", "clone", "--quiet", "--no-checkout", "--", remote, str(root))
        run("git", "checkout", "--quiet", "--detach", commit, cwd=root)
    except NotReady as error:
        shown = re.sub("//[^/@]*@", "//", remote)
        raise NotReady(f"commit {commit} of {shown}: {error}") from None


def install(there: Path, job_id: str, job: Path) -> None:
    """Install what the code says it needs, else what the run had that the job was made from.

    The order is that of W&B's own runner.
    """
    if (there / "requirements.txt").is_file():
        run("pip", "install", "-r", str(there / "requirements.txt"))
    elif (there / "pyproject.toml").is_file():
        run("pip", "install", str(there))
    else:
        download(job_id, job)
        if (job / "requirements.frozen.txt").is_file():
            run("pip", "install", "-r", str(job / "requirements.frozen.txt"))


def run(*words: str, cwd: Path | None = None) -> None:
    """Run a program whose own words go to the log; it asks nobody anything, and does not run for ever."""
    # An image may allow other transports, for a remote helper of its own.
    environment = {"GIT_ALLOW_PROTOCOL": TRANSPORTS, **os.environ, "GIT_TERMINAL_PROMPT": "0"}
    environment.setdefault("GIT_SSH_COMMAND", f"ssh -o BatchMode=yes -o ConnectTimeout={CALL_SECONDS}")
    try:
        done = subprocess.run(  # noqa: S603
            words, cwd=cwd, env=environment, stdin=subprocess.DEVNULL, stdout=sys.stderr,
            timeout=PROGRAM_SECONDS, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise NotReady(f"{words[0]} {words[1]} has not ended after {PROGRAM_SECONDS} seconds") from None
    except OSError as error:
        raise NotReady(f"{words[0]} cannot be run in this image: {error.strerror}") from None
    if done.returncode:
        raise NotReady(f"{words[0]} {words[1]} ended with status {done.returncode}")


def download(artifact_id: str, root: Path) -> None:
    """Download every file of an artifact; one that is missing is an error."""
    try:
        urls = addresses(artifact_id)
    except ODD:
        raise NotReady("an answer of W&B is not what it should be") from None

    def save(name: str) -> None:
        content = read(urls[name])
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(save, urls))


def addresses(artifact_id: str) -> dict[str, str]:
    """Return where each file of an artifact is, by its name; every one that its manifest has."""
    urls: dict[str, str] = {}
    manifest_url, cursor, has_more = "", "null", True
    while has_more:
        artifact = ask_wandb(ARTIFACT % (json.dumps(artifact_id), cursor))["artifact"]
        if artifact is None or artifact["state"] == "DELETED":
            raise NotReady(f"the artifact {artifact_id} has been deleted, or cannot be seen with this key")
        urls.update({edge["node"]["name"]: edge["node"]["directUrl"] for edge in artifact["files"]["edges"]})
        page, manifest_url = artifact["files"]["pageInfo"], artifact["currentManifest"]["file"]["directUrl"]
        before, cursor, has_more = cursor, json.dumps(page["endCursor"]), page["hasNextPage"]
        if has_more and cursor == before:
            raise ValueError("a page comes after itself")
    entries: dict[str, Any] = json.loads(read(manifest_url))["contents"]
    for name, entry in entries.items():
        if not is_inside(name):
            raise NotReady(f"{name} is not inside of the artifact {artifact_id}")
        if not is_plain(name) or not Path(name).name:
            raise NotReady(f"{name!r} of the artifact {artifact_id} cannot be the name of a file")
        if "ref" in entry or name not in urls:
            raise NotReady(f"{name} is not in the artifact {artifact_id} itself")
    return {name: urls[name] for name in entries}


def ask_wandb(query: str) -> dict[str, Any]:
    """Return the data of a GraphQL answer."""
    body = json.dumps({"query": query}).encode()
    headers = {"Content-Type": "application/json", **wandb_key()}
    answer = json.loads(call(base_url() + "graphql", headers, body))
    if answer.get("errors"):
        raise NotReady(f"W&B says: {answer['errors'][0]['message']}")
    return answer["data"]


def read(url: str) -> bytes:
    """Return a file's content; only W&B's own server gets the key."""
    base = base_url()
    try:
        if not url or not is_plain(url):
            raise ValueError("it would stand for W&B itself")
        target = urllib.parse.urljoin(base, url)
        is_own = urllib.parse.urlsplit(target)[:2] == urllib.parse.urlsplit(base)[:2]
    except ODD:
        raise NotReady("an address that W&B gives is none") from None
    return call(target, wandb_key() if is_own else {})


def base_url() -> str:
    """Return where W&B is, with a slash at the end."""
    if not os.environ.get("WANDB_BASE_URL"):
        raise NotReady("WANDB_BASE_URL is not set, so W&B cannot be asked")
    return os.environ["WANDB_BASE_URL"].rstrip("/") + "/"


def wandb_key() -> dict[str, str]:
    """Return the header that W&B knows the key by."""
    login = "api:" + os.environ.get("WANDB_API_KEY", "")
    return {"Authorization": "Basic " + base64.b64encode(os.fsencode(login)).decode()}


def call(
    url: str, headers: dict[str, str], body: bytes | None = None, proxies: dict[str, str] | None = None
) -> bytes:
    """Return the answer's body, after a few more tries if the trouble may pass."""
    handlers: list[Any] = [urllib.request.ProxyHandler(proxies)] + ([StayHome()] if headers else [])
    opener = urllib.request.build_opener(*handlers)
    # Others name a file here, or never end.
    if not url.lower().startswith(("http://", "https://")):
        raise NotReady("an address is neither http:// nor https://")
    request, trouble = urllib.request.Request(url, body, headers), ""  # noqa: S310 - looked at above
    for pause_seconds in (*PAUSES_SECONDS, 0):
        try:
            with opener.open(request, timeout=CALL_SECONDS) as response:
                return response.read()
        except urllib.error.HTTPError as error:
            trouble = f"{error.code} {said(error)}"
            may_pass = error.code == 429 or error.code >= 500
        except (OSError, http.client.HTTPException) as error:
            trouble, may_pass = str(getattr(error, "reason", error)), True
        except ValueError:  # no name of a host, a letter that no address has
            raise NotReady("an address is none that can be asked") from None
        if not may_pass:
            break
        time.sleep(pause_seconds)
    raise NotReady(f"{urllib.parse.urlsplit(url).netloc} answers {trouble}")


def said(error: urllib.error.HTTPError) -> str:
    """Return the message of an API; anything else, a bucket's page say, may quote what it was asked with."""
    try:
        answer = json.loads(error.read())
        return str(answer["error"]["message"] if "error" in answer else answer["errors"][0]["message"])[:500]
    except (OSError, http.client.HTTPException, *ODD):
        return str(error.reason)


if __name__ == "__main__":
    main(sys.argv[1:])
