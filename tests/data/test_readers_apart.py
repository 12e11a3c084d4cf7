from __future__ import annotations

import os
import signal

import numpy as np
import pytest
from pydicom.encaps import generate_frames
from pydicom.uid import JPEG2000Lossless

from counterscan.data.readers import apart, read_image
from counterscan.errors import InputError
from tests.data.readers_made import dataset, write

PLANE = (np.add.outer(np.arange(40), np.arange(48)) * 40).astype(np.uint16)


@pytest.fixture
def compressed(tmp_path):
    pytest.importorskip("openjpeg")
    header = dataset(PLANE, BitsStored=12)
    header.compress(JPEG2000Lossless)
    return write(header, tmp_path / "a.dcm"), next(generate_frames(header.PixelData, number_of_frames=1))


def test_a_helper_that_dies_is_replaced(compressed):
    path, _ = compressed
    np.testing.assert_array_equal(read_image(path).pixels, PLANE)
    helper = apart._helper
    os.kill(helper.pid, signal.SIGKILL)
    helper.wait()
    np.testing.assert_array_equal(read_image(path).pixels, PLANE)
    assert apart._helper.pid != helper.pid


def test_a_decoder_that_takes_too_long_is_stopped(compressed, monkeypatch):
    path, _ = compressed
    read_image(path)
    os.kill(apart._helper.pid, signal.SIGSTOP)
    monkeypatch.setattr(apart, "SECONDS", 0.2)
    with pytest.raises(InputError, match="PixelData: none of"):
        read_image(path)
    monkeypatch.undo()
    np.testing.assert_array_equal(read_image(path).pixels, PLANE)


def test_a_forked_process_gets_its_own_helper(compressed):
    path, _ = compressed
    read_image(path)
    pid = os.fork()
    if pid == 0:
        try:
            os._exit(0 if np.array_equal(read_image(path).pixels, PLANE) else 1)
        except BaseException:
            os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    np.testing.assert_array_equal(read_image(path).pixels, PLANE)


def test_a_codestream_without_its_end_or_of_another_size_is_refused(compressed):
    path, frame = compressed
    content = path.read_bytes()
    path.write_bytes(content.replace(frame, frame[:-2] + b"\0\0"))
    with pytest.raises(InputError, match="PixelData: is truncated: frame 0 has no end"):
        read_image(path)
    larger = bytearray(frame)
    larger[8:12] = (60000).to_bytes(4, "big")
    path.write_bytes(content.replace(frame, bytes(larger)))
    with pytest.raises(InputError, match="Rows: is 40 x 48 by the header and 40 x 60000 in the compressed data"):
        read_image(path)
