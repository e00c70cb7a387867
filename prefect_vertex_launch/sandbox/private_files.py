"""Files with keys in them: only whoever runs the sandbox may read them."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Final

from prefect_vertex_launch.sandbox.start_refusal import StartRefusal

PRIVATE_FILE: Final = 0o600
PRIVATE_DIRECTORY: Final = 0o700


def require_own_directory(path: Path) -> None:
    """Raise StartRefusal if everybody may put files beside `path`.

    Somebody else could have put a link there to a file of their choice, or a file that they may read.
    """
    directory = path.absolute().parent
    try:
        is_open = directory.stat().st_mode & stat.S_IWOTH
    except OSError:  # it is not there, say: whoever opens the file says so better
        return
    if is_open:
        raise StartRefusal(
            f"{path} would lie in a directory where everybody may write: {directory}",
            "name a file in a directory of your own, keys will stand in it",
        )


def make_private(path: Path) -> None:
    """Make a file that is new and empty, unless one is there."""
    try:
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, PRIVATE_FILE))
    except OSError:  # it is there, or cannot be made: whoever opens it says why
        return


def write_private(path: Path, text: str) -> None:
    """Write a file anew, whatever was there before."""
    path.unlink(missing_ok=True)
    make_private(path)
    path.write_text(text)
