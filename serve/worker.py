"""The one thread that runs the engine, and the bounded queue before it.

The event loop must never wait for a model, so each HTTP request becomes a job: it waits in the queue, then runs, and
its ids come back to the event loop that submitted it. Between two steps of the engine, cancelled jobs leave and waiting
ones take their slots. Cancelling one job never affects another. Ids only: no text, no HTTP.
"""

import asyncio
import logging
import threading
import traceback
from collections import deque
from collections.abc import AsyncIterator
from contextlib import suppress

from serve.errors import Overloaded, ServeError, Unavailable
from serve.options import SamplingOptions
from serve.scheduler import GenerationRequest, Runner

logger = logging.getLogger("serve")


class ReplyJob:
    """One reply to be made: a prompt, options, and a queue of its ids. Made on the event loop that reads them.

    The queue holds at most the ids of one reply, so a slow reader costs a bounded amount of memory.
    """

    def __init__(self, prompt_ids: list[int], options: SamplingOptions) -> None:
        self.prompt_ids = prompt_ids
        self.options = options
        self.cancelled = False
        self._loop = asyncio.get_running_loop()
        self._events: asyncio.Queue[int | ServeError | None] = asyncio.Queue()

    def put(self, event: int | ServeError | None) -> None:
        """Send an id, an error or the end (None) to the reader, from any thread."""
        with suppress(RuntimeError):  # the loop is closed: there is no reader
            self._loop.call_soon_threadsafe(self._events.put_nowait, event)

    async def ids(self) -> AsyncIterator[int]:
        """Yield the ids as they come; end when the reply has ended or was cancelled. Raises the job's ServeError."""
        while (event := await self._events.get()) is not None:
            if isinstance(event, ServeError):
                raise event
            yield event


class ReplyWorker:
    """Runs jobs in the order of arrival, as many at once as the runner has slots; at most `queue` more wait.

    `waiting` and `running` are the jobs of each kind; read only.
    """

    def __init__(self, runner: Runner, queue: int) -> None:
        self._runner = runner
        self._queue = queue
        self.waiting: deque[ReplyJob] = deque()
        self.running: dict[ReplyJob, GenerationRequest | None] = {}  # None: about to start
        self._stopping = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

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
            self._changed.notify_all()
        self._thread.join(timeout_s)

    def submit(self, job: ReplyJob) -> None:
        """Queue a job. Raises Overloaded when the queue is full, Unavailable when nothing will run it."""
        with self._changed:
            if not self.ready:
                raise Unavailable("the server is stopping or its engine has ended; try another one")
            if len(self.waiting) + len(self.running) >= self._queue + self._runner.slots:
                raise Overloaded(f"the queue is full ({self._queue} requests); try again later")
            self.waiting.append(job)
            self._changed.notify_all()

    def cancel(self, job: ReplyJob) -> None:
        """Give up a job, wherever it stands; its reader sees the end. A finished job is left alone."""
        with self._changed:
            job.cancelled = True
            with suppress(ValueError):  # it runs, or is done
                self.waiting.remove(job)
        job.put(None)

    def _run(self) -> None:
        try:
            while self._admit():
                self._work()
        finally:
            with self._changed:
                left = [*self.running, *self.waiting]
                started = [request for request in self.running.values() if request is not None]
                self._stopping = True
                self.running.clear()
                self.waiting.clear()
            for request in started:
                self._runner.cancel(request)
            for job in left:
                job.put(Unavailable("the server stopped before this request was answered; send it again"))

    def _admit(self) -> bool:
        """Wait until there is work, and start jobs while there is room. False when the worker is to stop."""
        with self._changed:
            self._changed.wait_for(lambda: self._stopping or self.waiting or self._runner.busy)
            if self._stopping:
                return False
            gone = [job for job in self.running if job.cancelled]
            for job in gone:
                self._give_up(job)
            new = [self.waiting.popleft() for _ in range(min(self._runner.free, len(self.waiting)))]
            self.running.update(dict.fromkeys(new))
        for job in new:
            try:
                self.running[job] = self._runner.start(job.prompt_ids, job.options)
            except Exception as error:
                self._end(job, _reported(error))
        return True

    def _give_up(self, job: ReplyJob) -> None:
        request = self.running.pop(job)
        if request is not None:
            self._runner.cancel(request)

    def _work(self) -> None:
        """Do a step. An error of one request ends its job and no other."""
        events = self._runner.step()
        jobs = {request: job for job, request in self.running.items()}
        for event in events:
            job = jobs[event.request]
            if event.token is not None:
                job.put(event.token)
            else:
                self._end(job, None if event.error is None else _reported(event.error))

    def _end(self, job: ReplyJob, error: ServeError | None) -> None:
        with self._changed:
            del self.running[job]
        job.put(error)


def _reported(error: Exception) -> ServeError:
    """The error as the client gets it. One that was not foreseen is logged."""
    if isinstance(error, ServeError):
        return error
    # Where it happened, without the message: it could hold a part of the prompt.
    where = "".join(traceback.format_tb(error.__traceback__))
    logger.error("a reply failed with %s at\n%s", type(error).__name__, where)
    return ServeError("the engine failed on this request")
