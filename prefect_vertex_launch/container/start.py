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
    try:
        if os.environ.get("WANDB_API_KEY_SECRET"):
            os.environ["WANDB_API_KEY"] = read_secret(os.environ["WANDB_API_KEY_SECRET"])
        if os.environ.get("VERTEX_LAUNCH_CODE"):
            os.chdir(fetch_code(json.loads(os.environ["VERTEX_LAUNCH_CODE"])))
    except NotReady as reason:
        stop(str(reason), NOT_READY)
    try:
        os.execvp(command[0], command)  # noqa: S606 - the container's own command
    except OSError as error:
        stop(f"{command[0]} cannot be run: {error.strerror}", COMMAND_NOT_RUN)


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
        reason = "it is empty"
    except NotReady as error:
        reason = str(error)
    except (ValueError, KeyError, TypeError):
        reason = "the answer is not what it should be"
    if not key:
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


def fetch_code(code: dict[str, Any]) -> Path:
    """Get a job's code and return the directory in it where the command is to run."""
    home = own_directory()
    there = home / "code" / code.get("working_dir", "")
    try:
        gather(code, home / "code", home / "job")
    except (NotReady, OSError) as error:
        raise NotReady(f"the code of the W&B job cannot be had: {error}") from None
    if not there.is_dir():
        raise NotReady(f"the code of the W&B job has no directory {code.get('working_dir', '')}")
    if os.environ.get("VERTEX_LAUNCH_INSTALL_REQUIREMENTS"):
        try:
            install(there, code["job"], home / "job")
        except (NotReady, OSError) as error:
            raise NotReady(f"the requirements of the W&B job cannot be installed: {error}") from None
    return there


def gather(code: dict[str, Any], root: Path, job: Path) -> None:
    """Put the code below `root`, with a patch to it that the job's artifact holds."""
    if code.get("artifact"):
        download(code["artifact"], root)
    else:
        clone(code["remote"], code["commit"], root)
    if code.get("patch"):
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
    """Run a program whose own words go to the log; git asks nobody for a password."""
    environment = dict(os.environ, GIT_TERMINAL_PROMPT="0")
    try:
        done = subprocess.run(words, cwd=cwd, env=environment, stdout=sys.stderr, check=False)  # noqa: S603
    except OSError as error:
        raise NotReady(f"{words[0]} cannot be run in this image: {error.strerror}") from None
    if done.returncode:
        raise NotReady(f"{words[0]} {words[1]} ended with status {done.returncode}")


def download(artifact_id: str, root: Path) -> None:
    """Download every file of an artifact; one that is missing is an error."""
    try:
        urls = addresses(artifact_id)
    except (ValueError, LookupError, TypeError):
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
        cursor, has_more = json.dumps(page["endCursor"]), page["hasNextPage"]
    entries: dict[str, Any] = json.loads(read(manifest_url))["contents"]
    for name, entry in entries.items():
        if name.startswith("/") or ".." in name.split("/"):
            raise NotReady(f"{name} is not inside of the artifact {artifact_id}")
        if "ref" in entry or name not in urls:
            raise NotReady(f"{name} is not in the artifact {artifact_id} itself")
    return {name: urls[name] for name in entries}


def ask_wandb(query: str) -> dict[str, Any]:
    """Return the data of a GraphQL answer."""
    body = json.dumps({"query": query}).encode()
    headers = {"Content-Type": "application/json", **wandb_key()}
    answer = json.loads(call(os.environ["WANDB_BASE_URL"].rstrip("/") + "/graphql", headers, body))
    if answer.get("errors"):
        raise NotReady(f"W&B says: {answer['errors'][0]['message']}")
    return answer["data"]


def read(url: str) -> bytes:
    """Return a file's content; only W&B's own server gets the key."""
    base = os.environ["WANDB_BASE_URL"].rstrip("/") + "/"
    target = urllib.parse.urljoin(base, url)
    is_own = urllib.parse.urlsplit(target)[:2] == urllib.parse.urlsplit(base)[:2]
    return call(target, wandb_key() if is_own else {})


def wandb_key() -> dict[str, str]:
    """Return the header that W&B knows the key by."""
    login = "api:" + os.environ.get("WANDB_API_KEY", "")
    return {"Authorization": "Basic " + base64.b64encode(login.encode()).decode()}


def call(
    url: str, headers: dict[str, str], body: bytes | None = None, proxies: dict[str, str] | None = None
) -> bytes:
    """Return the answer's body, after a few more tries if the trouble may pass."""
    handlers: list[Any] = [urllib.request.ProxyHandler(proxies)] + ([StayHome()] if headers else [])
    opener = urllib.request.build_opener(*handlers)
    request = urllib.request.Request(url, body, headers)  # noqa: S310 - what W&B and Google say
    trouble = ""
    for pause_seconds in (*PAUSES_SECONDS, 0):
        try:
            with opener.open(request, timeout=CALL_SECONDS) as response:
                return response.read()
        except urllib.error.HTTPError as error:
            trouble = f"{error.code} {said(error)}"
            may_pass = error.code == 429 or error.code >= 500
        except (OSError, http.client.HTTPException) as error:
            trouble, may_pass = str(getattr(error, "reason", error)), True
        if not may_pass:
            break
        time.sleep(pause_seconds)
    raise NotReady(f"{urllib.parse.urlsplit(url).netloc} answers {trouble}")


def said(error: urllib.error.HTTPError) -> str:
    """Return the message of an API; anything else, a bucket's page say, may quote what it was asked with."""
    try:
        answer = json.loads(error.read())
        return str(answer["error"]["message"] if "error" in answer else answer["errors"][0]["message"])[:500]
    except (OSError, http.client.HTTPException, ValueError, LookupError, TypeError):
        return str(error.reason)


if __name__ == "__main__":
    main(sys.argv[1:])
