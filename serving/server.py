"""The app as a process: listens, tells how far it is, drains, and exits with a status a supervisor can act on.

SIGTERM and Ctrl-C drain: new generations are refused, readiness turns false, running ones get `drain_s` to finish. A
second signal ends them at once. A lost engine ends the process with status 1, so that a supervisor restarts it.
"""

import asyncio
import contextlib
import ctypes
import gc
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial

import uvicorn

from serving.app import Service, build
from serving.engine.registry import Loader
from serving.settings import Settings, SettingsError

log = logging.getLogger(__name__)

_PROGRESS_S = 5.0
_GRACE_S = 5

_ENVIRONMENT = {"VLLM_CONFIGURE_LOGGING": "0", "VLLM_NO_USAGE_STATS": "1", "TOKENIZERS_PARALLELISM": "false"}
"""What libraries read from the environment, unless the operator says otherwise: vLLM logs as we do and tells nobody of
this server; tokenizers need no threads of their own, and warn when forked."""

_PR_SET_PDEATHSIG = 1


class _Uvicorn(uvicorn.Server):
    """Uvicorn, but for signals: those are ours."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def serve(settings: Settings, loaders: Mapping[str, Loader] | None = None) -> int:
    """Serve until told to stop; `loaders` by model id replace the local engines. Returns the process's exit status."""
    try:
        listener = _listen(settings.host, settings.port)
    except OSError as error:
        raise SettingsError(
            f"Cannot listen on {settings.host}:{settings.port}: {error.strerror}. Choose another with PORT."
        ) from error
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    os.register_at_fork(after_in_child=partial(_become_an_engine, settings.port, ctypes.CDLL(None).prctl))
    with listener:
        service = build(settings, loaders)
        config = uvicorn.Config(
            service.app,
            log_config=None,
            access_log=False,
            server_header=False,
            loop="uvloop",
            http="httptools",
            timeout_graceful_shutdown=_GRACE_S,
        )
        with asyncio.Runner(loop_factory=config.get_loop_factory()) as runner:
            return runner.run(_run(settings, service, _Uvicorn(config), listener))


def _become_an_engine(port: int, prctl: Callable[[int, int], int]) -> None:
    """In a process forked from the server: die with it, however it dies, and hold none of its connections open.

    vLLM's engine core does not notice that its parent is gone, and would keep the port taken. Signals to it would wake
    the server's loop, which would take the SIGTERM that ends an engine for its own.
    """
    prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    signal.set_wakeup_fd(-1)
    for name in os.listdir("/proc/self/fd"):
        try:
            inherited = socket.socket(fileno=int(name))
        except OSError:
            continue  # no socket, or the listing's own descriptor
        if inherited.family in (socket.AF_INET, socket.AF_INET6) and inherited.getsockname()[1] == port:
            inherited.close()
        else:
            inherited.detach()


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    return socket.create_server((host, port), family=family, backlog=2048)


async def _run(settings: Settings, service: Service, server: _Uvicorn, listener: socket.socket) -> int:
    stop = asyncio.Event()
    stop_now = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, lambda: (stop_now if stop.is_set() else stop).set())
    started = time.monotonic()
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    stopped = asyncio.create_task(stop.wait())
    failed = asyncio.create_task(_wait_failed(service))
    told = asyncio.create_task(_tell_progress(settings, service, started))
    await asyncio.wait({serving, stopped, failed}, return_when=asyncio.FIRST_COMPLETED)
    told.cancel()
    lost = failed.done() and not stop.is_set()
    if stop.is_set():
        await _drain(settings.drain_s, service, stop_now)
    elif lost:
        print(f"The server ends: {failed.result()}.", file=sys.stderr)
    if stop_now.is_set():
        server.config.timeout_graceful_shutdown = 0
    server.should_exit = True
    await serving
    stopped.cancel()
    return int(lost)


async def _wait_failed(service: Service) -> str:
    """Returns, with the reason, when an engine or the books are lost; never otherwise."""
    waits = [asyncio.create_task(service.engines.wait_failed()), asyncio.create_task(service.backing.wait_failed())]
    done, pending = await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    for wait in pending:
        wait.cancel()
    return "; ".join(wait.result() for wait in done)


async def _drain(drain_s: float, service: Service, stop_now: asyncio.Event) -> None:
    """Wait until nothing runs, the time is over, or a second signal."""
    service.admission.draining = True
    running = service.admission.running_choices
    if running:
        print(
            f"Finishing {running} running generations, at most {drain_s:.0f} s. Ctrl-C again ends now.", file=sys.stderr
        )
    idle = asyncio.create_task(service.admission.idle())
    forced = asyncio.create_task(stop_now.wait())
    await asyncio.wait({idle, forced}, timeout=drain_s, return_when=asyncio.FIRST_COMPLETED)
    idle.cancel()
    forced.cancel()


async def _tell_progress(settings: Settings, service: Service, started: float) -> None:
    """A line while the models load, and how to make the first request when they have and the books are open."""
    loaded = asyncio.ensure_future(asyncio.gather(service.engines.wait_loaded(), service.backing.wait_open()))
    while not loaded.done():
        await asyncio.wait({loaded}, timeout=_PROGRESS_S)
        if not loaded.done():
            loading = [model for model in service.engines.models if service.engines.state(model) == "loading"]
            awaited = f"Loading {', '.join(loading)}" if loading else "Opening the books"
            print(f"{awaited}: {time.monotonic() - started:.0f} s", file=sys.stderr)
    if service.engines.ready and service.backing.state == "open":
        # What was loaded stays: a collection that walked through it would hold the event loop for long.
        gc.collect()
        gc.freeze()
        print(f"Ready after {time.monotonic() - started:.0f} s.", file=sys.stderr)
        print(_welcome(settings, service), flush=True)


def _welcome(settings: Settings, service: Service) -> str:
    host = "127.0.0.1" if settings.host in ("0.0.0.0", "::") else settings.host
    base = f"http://{f'[{host}]' if ':' in host else host}:{settings.port}"
    if service.demo_key is None:
        return f"\nServing on {base}. Make a key with `serving keys create`.\n"
    key = service.demo_key
    model = settings.default_model or settings.models[0].id
    story = (
        "<|im_start|>system\\nA story about Mara and Tom, who look for a lost ship.<|im_end|>\\n"
        "<|im_start|>text names= Mara\\n"
    )
    scene = "A role-play between Mara, the captain of a ship, and Tom, a boy who hides on it."
    return f"""
Serving on {base}
API key    {key}

# The native API, streamed as JSON lines:

curl -N {base}/api/v1/model/completion -H 'Authorization: Bearer {key}' \\
  -d '{{"modelId": "{model}", "input": "{story}", "samplingParams": {{"maxTokens": 200}}}}'

# The OpenAI API, streamed:

curl -N {base}/v1/chat/completions -H 'Authorization: Bearer {key}' \\
  -d '{{"model": "{model}/text", "stream": true,
       "messages": [{{"role": "system", "content": "{scene}"}},
                    {{"role": "user", "name": "Tom", "content": "What are you afraid of?"}}]}}'

# The same in Python:

{sys.executable} - <<'END'
from openai import OpenAI
client = OpenAI(base_url="{base}/v1", api_key="{key}")
scene = {{"role": "system", "content": "{scene}"}}
turn = {{"role": "user", "name": "Tom", "content": "What are you afraid of?"}}
print(client.chat.completions.create(model="{model}/text", messages=[scene, turn]).choices[0].message.content)
END
"""
