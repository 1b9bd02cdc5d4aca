"""Work that strangers can make endless, each job in a process of its own that has little time and memory.

Here it is only waited for. What the job is, and the limits that the process gives itself, are its script's, which reads
the job from its standard input and writes what came of it to its output.
"""

import asyncio
import sys
from asyncio.subprocess import DEVNULL, PIPE
from dataclasses import dataclass, field
from pathlib import Path

from serving.errors import Overloaded


@dataclass
class Child:
    """A `script` of ours for `jobs`, as people call them, `at_once` of which run.

    `wall_s` is for a job with all others around it; the process has a stricter limit of its own. Beyond `most_waiting`
    that run and wait the next one is refused, since nothing has been paid for it yet.
    """

    script: Path
    jobs: str
    at_once: int
    wall_s: float = 10.0
    most_waiting: int = 32
    _length: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        self._places = asyncio.Semaphore(self.at_once)

    async def run(self, job: bytes) -> bytes | None:
        """What the process says; None when it was ended before it said anything. Raises Overloaded."""
        if self._length >= self.most_waiting:
            raise Overloaded(f"Too many {self.jobs} are waiting. Try again in a moment.", retry_after_s=1)
        self._length += 1
        try:
            async with self._places:
                return await self._run(job)
        finally:
            self._length -= 1

    async def _run(self, job: bytes) -> bytes | None:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-I", str(self.script)), stdin=PIPE, stdout=PIPE, stderr=DEVNULL, env={}
        )
        try:
            async with asyncio.timeout(self.wall_s):
                told, _ = await process.communicate(job)
        except TimeoutError:
            return None
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        return told if process.returncode == 0 else None
