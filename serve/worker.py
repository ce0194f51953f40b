"""The one thread that runs the engine, and the bounded queue before it.

The event loop must never wait for a model, and the model runs one reply at a time: so requests become jobs, a job
waits in the queue or is running, and its ids come back to the event loop that asked. A job is cancelled by itself,
never another one; the engine is left within one step. Ids only: text and HTTP are not known here.
"""

import asyncio
import logging
import threading
import traceback
from collections import deque
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from typing import Any, Protocol

from serve.errors import Overloaded, ServeError, Unavailable
from serve.sampler import SamplingOptions

logger = logging.getLogger("serve")


class Generator(Protocol):
    """What makes ids of ids: serve's Engine."""

    def stream(self, prompt_ids: list[int], options: Any) -> Iterator[int]:
        """Yield the ids of a reply, its end of turn not among them."""
        ...


class Job:
    """One reply to be made: a prompt, options, and the way back. Made on the event loop that reads it.

    The way back holds at most the ids of one reply, so a slow reader costs a bounded amount of memory.
    """

    def __init__(self, prompt_ids: list[int], options: SamplingOptions) -> None:
        self.prompt_ids = prompt_ids
        self.options = options
        self.cancelled = False
        self._loop = asyncio.get_running_loop()
        self._events: asyncio.Queue[int | ServeError | None] = asyncio.Queue()

    def put(self, event: int | ServeError | None) -> None:
        """Send an id, an error or the end (None) to the reader, from any thread."""
        with suppress(RuntimeError):  # the loop is closed: nobody reads any more
            self._loop.call_soon_threadsafe(self._events.put_nowait, event)

    async def ids(self) -> AsyncIterator[int]:
        """Yield the ids as they come; end when the reply has ended or was cancelled. Raises the job's ServeError."""
        while (event := await self._events.get()) is not None:
            if isinstance(event, ServeError):
                raise event
            yield event


class Worker:
    """Runs jobs in order, one at a time; at most `queue` of them wait."""

    def __init__(self, generator: Generator, queue: int) -> None:
        self._generator = generator
        self._queue = queue
        self._waiting: deque[Job] = deque()
        self._running: Job | None = None
        self._stopping = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    @property
    def waiting(self) -> int:
        """How many jobs wait."""
        return len(self._waiting)

    @property
    def busy(self) -> bool:
        """Whether the engine works on a job."""
        return self._running is not None

    @property
    def alive(self) -> bool:
        """Whether the engine thread is there to do its work."""
        return self._thread.is_alive()

    @property
    def ready(self) -> bool:
        """Whether new jobs are taken, if there is room."""
        return self.alive and not self._stopping

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self, timeout_s: float = 5.0) -> None:
        """Refuse new jobs, give up those that wait or run, and wait for the thread."""
        with self._changed:
            self._stopping = True
            if self._running is not None:
                self._running.cancelled = True
            self._changed.notify_all()
        self._thread.join(timeout_s)

    def submit(self, job: Job) -> None:
        """Queue a job. Raises Overloaded when the queue is full, Unavailable when nothing will run it."""
        with self._changed:
            if not self.ready:
                raise Unavailable("the server is stopping or its engine has ended; try another one")
            if len(self._waiting) + self.busy > self._queue:
                raise Overloaded(f"the queue is full ({self._queue} requests); try again later")
            self._waiting.append(job)
            self._changed.notify_all()

    def cancel(self, job: Job) -> None:
        """Give up a job, wherever it stands; its reader sees the end. A finished job is left alone."""
        with self._changed:
            job.cancelled = True
            with suppress(ValueError):  # it runs, or is done
                self._waiting.remove(job)
        job.put(None)

    def _run(self) -> None:
        try:
            while (job := self._next()) is not None:
                self._work(job)
        finally:
            with self._changed:
                left = [*([self._running] if self._running else []), *self._waiting]
                self._stopping, self._running = True, None
                self._waiting.clear()
            for job in left:
                job.put(Unavailable("the server stopped before this request was answered; send it again"))

    def _next(self) -> Job | None:
        with self._changed:
            self._running = None
            self._changed.wait_for(lambda: self._waiting or self._stopping)
            self._running = None if self._stopping else self._waiting.popleft()
            return self._running

    def _work(self, job: Job) -> None:
        """Run one job. An exception of the generator is that job's error and ends nothing else."""
        stream: Any = None
        try:
            stream = self._generator.stream(job.prompt_ids, job.options)
            for token in stream:
                if job.cancelled:
                    break
                job.put(token)
            stopped = self._stopping and job.cancelled
            job.put(Unavailable("the server is stopping; send the request again") if stopped else None)
        except ServeError as error:
            job.put(error)
        except Exception as error:
            # Where it happened, without the message: it could hold a part of the prompt.
            where = "".join(traceback.format_tb(error.__traceback__))
            logger.error("a reply failed with %s at\n%s", type(error).__name__, where)
            job.put(ServeError("the engine failed on this request"))
        finally:
            close = getattr(stream, "close", None)  # a generator: leave its frame now, not when it is collected
            if close is not None:
                close()
