"""A real server process with the demo model on a real engine, and Node to run clients of it that are written for Node.

`make clients` installs what the clients need and runs this folder; `make test` leaves it out.
"""

import os
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from serving.settings import DEMO_MODEL_DIR
from tests import tiny
from tests.clients.page import CHATML, LLAMA3, SHIPPED_CHATML, SHIPPED_LLAMA3, Page, Turn, visit
from tests.clients.scripted_server import SCRIPTS
from tests.clients.tavern import TYPES, VERSIONS, Tavern
from tests.end_to_end.conftest import LLAMA3_DIR, MODEL, ServerProcess, ended, start, wait_ready
from tests.painter import painting

HERE = Path(__file__).parent
NODE_S = 120
EMBEDDER, CLASSIFIER, WHISPER, PAINTER = "tests/embedder", "tests/classifier", "tests/whisper", "tests/painter"
TASK_MODELS = f"""
[[models]]
id = "{MODEL}"
path = "{DEMO_MODEL_DIR}"
template = "chatml-text"

[[models]]
id = "{EMBEDDER}"
path = "embedder"
kind = "embedding"
price = {{ input_per_1k = 1_000_000 }}
engine = {{ kv_cache_memory_bytes = 67_108_864 }}

[[models]]
id = "{CLASSIFIER}"
path = "classifier"
kind = "classification"
threshold = 0.9
categories = {{ harassment = "harassment", gore = "violence/graphic" }}
price = {{ input_per_1k = 1_000_000 }}
engine = {{ kv_cache_memory_bytes = 67_108_864 }}

[[models]]
id = "{WHISPER}"
path = "whisper"
kind = "transcription"
price = {{ input_per_1k = 1_000_000 }}
engine = {{ kv_cache_memory_bytes = 67_108_864 }}

[[models]]
id = "{PAINTER}"
path = "PAINTER_ADDRESS"
kind = "image"
server_model = "there/painter"
sizes = {{ 256x256 = 40_000, 512x512 = 160_000 }}
"""


@pytest.fixture(scope="session")
def server() -> Iterator[ServerProcess]:
    """`serving serve` as a user starts it: `url` is its address, `key` its demo account's key."""
    with tempfile.TemporaryDirectory() as folder:
        server = start(["-m", "serving", "serve"], Path(folder))
        try:
            wait_ready(server)
            yield server
        finally:
            ended(server)


@pytest.fixture(scope="session")
def tasks() -> Iterator[ServerProcess]:
    """A server with models of every kind: the demo model, random weights on real engines, and an image server."""
    with tempfile.TemporaryDirectory() as name, painting() as painter:
        folder = Path(name)
        tiny.make_embedder(folder / "embedder")
        tiny.make_classifier(folder / "classifier")
        tiny.make_whisper(folder / "whisper")
        config = folder / "serving.toml"
        config.write_text(TASK_MODELS.replace("PAINTER_ADDRESS", painter.address))
        server = start(["-m", "serving", "serve", "--config", str(config)], folder)
        try:
            wait_ready(server)
            yield server
        finally:
            ended(server)


@pytest.fixture
def run_node(server: ServerProcess) -> Callable[[str], None]:
    """Runs a file of this folder that is written for Node's own test runner, and shows what it said if it fails.

    The file finds the server in `SERVER_URL` and `SERVER_KEY`.
    """

    def run(name: str) -> None:
        told = subprocess.run(
            ["node", "--test", "--test-reporter=spec", name],
            cwd=HERE,
            env=os.environ | {"SERVER_URL": server.url, "SERVER_KEY": server.key},
            capture_output=True,
            text=True,
            timeout=NODE_S,
        )
        assert told.returncode == 0, told.stdout + told.stderr

    return run


# ---- SillyTavern -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def scripted() -> Iterator[ServerProcess]:
    """A server process with the models of `scripted_server.py`, both of the Llama 3 kind."""
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder) / "serving.toml"
        model = f'path = "{LLAMA3_DIR}"\ntemplate = "llama3-writer"\n'
        config.write_text("".join(f'[[models]]\nid = "{name}"\n{model}' for name in SCRIPTS))
        server = start([str(HERE / "scripted_server.py")], Path(folder), SERVING_CONFIG=str(config))
        try:
            wait_ready(server)
            yield server
        finally:
            ended(server)


@pytest.fixture(scope="session")
def taverns() -> Iterator[dict[str, Tavern]]:
    """A server of each version, in which our key is saved for every type."""
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        started = {}
        for version in VERSIONS:
            started[version] = Tavern.start(version, Path(folder) / version)
            stack.callback(started[version].stop)
        for tavern in started.values():
            tavern.wait_ready()
            for api in (*TYPES, "custom"):
                tavern.save_key(api)
        yield started


@pytest.fixture(scope="session", params=VERSIONS)
def tavern(request: pytest.FixtureRequest, taverns: dict[str, Tavern]) -> Tavern:
    return taverns[request.param]


@pytest.fixture(scope="session")
def page(
    tavern: Tavern, server: ServerProcess, scripted: ServerProcess, tmp_path_factory: pytest.TempPathFactory
) -> Page:
    """What a user's browser shows in a chat of a turn for each preset, with the demo model where it is one of its own.

    Its pictures are kept in the folder `SILLYTAVERN_PICTURES` if that is set; those of the docs were made so.
    """
    pictures = Path(os.environ.get("SILLYTAVERN_PICTURES") or tmp_path_factory.mktemp("pictures")) / tavern.version
    pictures.mkdir(parents=True, exist_ok=True)
    turns = [Turn(server.url, CHATML), Turn(scripted.url, LLAMA3)]
    shipped = [Turn(server.url, SHIPPED_CHATML), Turn(scripted.url, SHIPPED_LLAMA3)]
    return visit(tavern, [*shipped, *turns] if tavern.version == "1.12" else turns, pictures)
