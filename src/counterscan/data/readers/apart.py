"""Decoders that may crash or hang on damaged data (gdcm, CharLS, OpenJPEG), kept in a process of their own.

A damaged lossless JPEG can make gdcm call ``abort``, and a damaged JPEG-LS stream can hold CharLS for long; neither
can be caught in Python. One helper for each process serves them over pipes, is killed when it takes too long, and is
started again when it is gone, so that one bad file among many costs one error.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import subprocess
import sys
import threading
from typing import IO, Any

import numpy as np

SECONDS, SECONDS_PER_MEGAPIXEL = 20.0, 4.0

_lock = threading.Lock()
_helper: subprocess.Popen[bytes] | None = None


class DecoderFailed(Exception):
    """The helper could not decode, crashed, or took too long; the message says which."""


def decode_apart(frame: bytes, options: dict[str, Any], plugins: list[str]) -> np.ndarray:
    """Decode one compressed frame in the helper process.

    Args:
        frame: the codestream.
        options: pydicom's decoding options, plain values only.
        plugins: names of pydicom decoding plugins, tried in turn.

    Returns:
        (H, W) or (H, W, 3) as pydicom decodes it.

    Raises:
        DecoderFailed: none of the plugins could.
    """
    limit = SECONDS + SECONDS_PER_MEGAPIXEL * options["rows"] * options["columns"] / 1e6
    with _lock:
        helper = _running()
        timer = threading.Timer(limit, helper.kill)
        timer.start()
        try:
            assert helper.stdin is not None
            assert helper.stdout is not None
            _send(helper.stdin, {"options": options, "plugins": plugins, "bytes": len(frame)}, frame)
            answer = _receive(helper.stdout)
        except (OSError, ValueError):
            answer = None
        finally:
            timer.cancel()
        if answer is None:
            _stop()
            raise DecoderFailed("the decoder crashed or took too long")
    head, body = answer
    if "error" in head:
        raise DecoderFailed(head["error"])
    return np.frombuffer(body, dtype=head["dtype"]).reshape(head["shape"])


def _running() -> subprocess.Popen[bytes]:
    global _helper
    if _helper is not None and _helper.poll() is not None:
        _stop()
    if _helper is None:
        _helper = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-m", __name__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
    return _helper


def _stop() -> None:
    global _helper
    if _helper is not None:
        _helper.kill()
        with contextlib.suppress(OSError, ValueError):  # what was still to be sent has no reader
            _helper.communicate()
        _helper = None


def _forget() -> None:
    """In a forked child: the helper, and a lock that another thread may have held, are the parent's."""
    global _helper, _lock
    _helper, _lock = None, threading.Lock()


def _send(stream: IO[bytes], head: dict[str, Any], body: bytes) -> None:
    stream.write(json.dumps(head).encode() + b"\n")
    stream.write(body)
    stream.flush()


def _receive(stream: IO[bytes]) -> tuple[dict[str, Any], bytes] | None:
    line = stream.readline()
    if not line.endswith(b"\n"):
        return None
    head = json.loads(line)
    body = stream.read(head["bytes"])
    return (head, body) if len(body) == head["bytes"] else None


def _serve() -> None:
    """Answer requests until the other end closes; codecs that write to standard output cannot reach the pipe."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    while (request := _receive(sys.stdin.buffer)) is not None:
        head, frame = request
        try:
            pixels = _decode(frame, head["options"], head["plugins"])
            _send(answers, {"dtype": pixels.dtype.str, "shape": pixels.shape, "bytes": pixels.nbytes}, pixels.tobytes())
        except Exception as error:
            _send(answers, {"error": f"{type(error).__name__}", "bytes": 0}, b"")


def _decode(frame: bytes, options: dict[str, Any], plugins: list[str]) -> np.ndarray:
    from pydicom.encaps import encapsulate
    from pydicom.pixels import get_decoder
    from pydicom.uid import UID

    options = {**options, "transfer_syntax_uid": UID(options["transfer_syntax_uid"])}
    decoder = get_decoder(options["transfer_syntax_uid"])
    source = encapsulate([frame], has_bot=False)
    failure: Exception = ValueError("no decoder")
    for plugin in plugins:
        try:
            return decoder.as_array(source, index=0, decoding_plugin=plugin, **options)[0]
        except Exception as error:  # a codec raises whatever it likes; the next one may know better
            failure = error
    raise failure


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_forget)
atexit.register(_stop)

if __name__ == "__main__":
    _serve()
