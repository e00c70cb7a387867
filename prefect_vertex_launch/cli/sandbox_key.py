"""The API key that the sandbox is given: in a file or a variable, as `ps` shows everybody the options."""

from __future__ import annotations

import os
import re
from pathlib import Path

from prefect_vertex_launch.cli.errors import USAGE, CommandError

VARIABLE = "SANDBOX_API_KEY"
# The rule of wandb.sdk.lib.wbauth.validation, which costs a second to import: 40 characters, after a
# prefix and a dash if there is a dash; or a JWT.
API_KEY = re.compile(r"\w{40,}|[^-]*-[\w-]{40,}|[\w-]+\.[\w-]+\.[\w-]+")


def given_api_key(file: Path | None) -> str:
    """Return the key in `file`, else the one in the variable, empty where there is neither.

    Raises CommandError for a file that cannot be read, and for a key that wandb's clients would refuse.
    """
    key, where = os.environ.get(VARIABLE, ""), VARIABLE
    if file is not None:
        where = str(file)
        try:
            key = file.read_text().strip()
        except (OSError, ValueError) as error:
            raise CommandError(
                f"the API key cannot be read from {file}: {getattr(error, 'strerror', None) or error}",
                "name a text file that you may read, with the key in it and nothing else",
                code=USAGE,
            ) from error
    if (key or file) and not API_KEY.fullmatch(key):
        raise CommandError(
            f"wandb's clients refuse the key of {len(key)} characters in {where}",
            "give 40 or more letters, digits and underscores, or none: the sandbox makes a key of its own",
            code=USAGE,
        )
    return key
