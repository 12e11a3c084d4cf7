"""Names for studies that name nobody: a keyed hash, the same for the same file under the same key."""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
from pathlib import Path

from counterscan.files import atomic_write

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
        with atomic_write(path, "w") as handle:
            handle.write(secrets.token_hex(32))
        path.chmod(0o600)
    return path.read_text(encoding="utf-8").strip().encode()


def pseudonym(name: str, key: bytes) -> str:
    """16 hex digits of HMAC-SHA256."""
    return hmac.new(key, name.encode(), hashlib.sha256).hexdigest()[:16]
