"""Names for studies that name nobody: a keyed hash, the same for the same file under the same key."""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import os
import secrets
from pathlib import Path

VARIABLE = "COUNTERSCAN_KEY"


def secret_key() -> bytes:
    """The key: ``$COUNTERSCAN_KEY``, or one made once and kept in the user's configuration folder (mode 600).

    Without the key nobody can tell from an id which file or patient it stands for; whoever has it can.
    """
    given = os.environ.get(VARIABLE)
    if given:
        return given.encode()
    base = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config")
    path = base / "counterscan" / "key"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        made = path.with_name(f".key.{os.getpid()}")
        with os.fdopen(os.open(made, os.O_CREAT | os.O_TRUNC | os.O_WRONLY, 0o600), "w") as handle:
            handle.write(secrets.token_hex(32))
        with contextlib.suppress(FileExistsError):  # of several processes all take the first one's
            os.link(made, path)
        made.unlink()
    return path.read_text(encoding="utf-8").strip().encode()


def pseudonym(name: str, key: bytes) -> str:
    """16 hex digits of HMAC-SHA256."""
    return hmac.new(key, name.encode(), hashlib.sha256).hexdigest()[:16]
