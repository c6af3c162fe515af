"""The processes that decode pictures. One is killed when a picture takes it too long.

They are plain subprocesses: a process pool of `spawn` imports Ray's main module in every child, and it breaks if one of
its processes is killed.
"""

from __future__ import annotations

import asyncio
import os
import queue
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any, cast

import numpy as np

from asap.errors import DecodeFailed, InputError
from asap.finding import Finding
from asap.packages import FOLDER
from asap.preprocessing.images import ImageLimits, PreparedImage
from serve.errors import NotReady
from serve.inference.decoder_process import Message, read_message, write_message

_ERRORS = {kind.code: kind for kind in InputError.__subclasses__()}
_PROGRAM = """\
import sys
sys.path.insert(0, sys.argv.pop())
from asap.packages import import_packages
import_packages()
del sys.path[0]
from serve.inference.decoder_process import main
main()
"""
"""The decoder's program. It imports the packages of this process, whatever the working folder holds, then decodes."""
_DRAWN = ("verdict", "types", "flagged_types", "box_px", "width", "height", "model_id", "policy_id")
"""Fields of a finding that drawing needs."""


class DecoderPool:
    """A pool of processes, started at once. Any number of event loops may share it.

    Args:
        decoders: The number of processes.
        limits: Limits of one picture.
        timeout_s: Seconds that one picture may take.
    """

    def __init__(self, decoders: int, limits: ImageLimits, timeout_s: float) -> None:
        self._threads = ThreadPoolExecutor(decoders, thread_name_prefix="decode")  # a thread for each process
        self._idle: queue.SimpleQueue[_Decoder] = queue.SimpleQueue()
        self._all = [_Decoder(limits, timeout_s) for _ in range(decoders)]
        for decoder in self._all:
            self._threads.submit(self._start, decoder)

    def _start(self, decoder: _Decoder) -> None:
        with suppress(EOFError, OSError):  # the first picture gets the error
            decoder.start()
        self._idle.put(decoder)

    async def prepare(self, data: bytes, image_size: int) -> PreparedImage:
        """Decode and resize a picture, as `images.prepare_image` does.

        Raises the same errors, and `DecodeFailed` if time or memory ran out.
        """
        about, pixels = await self._run({"task": "prepare", "image_size": image_size}, data)
        array = np.frombuffer(pixels, np.uint8).reshape(image_size, image_size, 3)
        fields = {name: about[name] for name in ("width", "height", "sha256", "warnings")}
        return PreparedImage(pixels=array, **fields)

    async def draw(self, data: bytes, finding: Finding) -> bytes:
        """Return the picture as a JPEG, with the finding's types and, if there is one, its box drawn on it."""
        fields = {name: getattr(finding, name) for name in _DRAWN}
        _, jpeg = await self._run({"task": "draw", "finding": fields}, data)
        return jpeg

    async def _run(self, header: dict[str, Any], data: bytes) -> Message:
        reply, payload = await asyncio.wrap_future(self._threads.submit(self._use_one, header, data))
        if "error" in reply:
            raise _ERRORS.get(reply["error"], DecodeFailed)(reply["detail"])
        return reply, payload

    def _use_one(self, header: dict[str, Any], data: bytes) -> Message:
        decoder = self._idle.get()
        try:
            return decoder.run(header, data)
        finally:
            self._idle.put(decoder)

    def close(self) -> None:
        """End the processes. Pictures that wait are not decoded."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        for decoder in self._all:
            decoder.stop()


class _Decoder:
    """One process. It is replaced at the next picture after it was killed."""

    def __init__(self, limits: ImageLimits, timeout_s: float) -> None:
        self._limits = limits
        self._timeout_s = timeout_s
        self._process: subprocess.Popen[bytes] | None = None

    def run(self, header: dict[str, Any], data: bytes) -> Message:
        try:
            process = self.start()
        except (EOFError, OSError) as error:
            self.stop()
            raise NotReady("no decoder could be started; the server's log says why") from error
        try:
            return self._ask(process, header, data)
        except (EOFError, OSError) as error:
            self.stop()
            limit = f"{self._timeout_s:g} s"
            raise DecodeFailed(
                f"the image could not be decoded within {limit}, or broke its decoder. Re-save the image."
            ) from error

    def _ask(self, process: subprocess.Popen[bytes], header: dict[str, Any], data: bytes) -> Message:
        timer = threading.Timer(self._timeout_s, process.kill)
        timer.start()
        try:
            write_message(cast("Any", process.stdin), header, data)
            return read_message(cast("Any", process.stdout))
        finally:
            timer.cancel()

    def start(self) -> subprocess.Popen[bytes]:
        """Return the process, once it is ready. One that has ended is replaced."""
        if self._process is None or self._process.poll() is not None:
            limits = (str(self._limits.max_bytes), str(self._limits.max_pixels))
            command = [sys.executable, "-P", "-c", _PROGRAM, *limits, str(FOLDER)]
            environment = os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
            self._process = subprocess.Popen(  # noqa: S603
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment
            )
            read_message(cast("Any", self._process.stdout))  # it is ready: the time to start does not count as decoding
        return self._process

    def stop(self) -> None:
        """End the process. The next picture gets another one."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()
            for stream in (process.stdin, process.stdout):
                if stream is not None:
                    stream.close()
