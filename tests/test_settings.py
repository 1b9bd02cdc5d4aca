"""Settings: the file, the environment over it, overrides over both; every mistake is told with its key."""

from dataclasses import fields
from pathlib import Path

import pytest

from serving.core import Price
from serving.settings import DEMO_MODEL, Settings, SettingsError, load

MODEL = '[[models]]\nid = "m"\npath = "org/m"\ntemplate = "chatml-text"\n'


def write(tmp_path: Path, text: str) -> dict[str, str]:
    path = tmp_path / "serving.toml"
    path.write_text(text)
    return {"SERVING_CONFIG": str(path)}


def test_without_anything_the_demo_model_is_served() -> None:
    assert load({}) == Settings()
    assert load({}).models == (DEMO_MODEL,)


def test_a_whole_file(tmp_path: Path) -> None:
    text = """
        host = "0.0.0.0"
        port = 9000
        api_key = "k"
        demo_account = false
        data_dir = "/var/lib/serving"
        key_pepper = "p"
        redis_url = "redis://a"
        plans = "/etc/plans.toml"
        demo_plan = "free"
        admin_key = "a"
        lease_s = 9
        extend_s = 3
        away_requests = 4
        cors_origins = ["https://a", "https://b"]
        default_model = "n"
        models_dir = "/"
        replace_beside = false
        max_body_bytes = 10
        max_form_bytes = 20
        max_running_choices = 2
        library_dir = "/srv/user_data"
        grammars = true
        livepeer_done = false
        livepeer_length = false
        keep_alive_s = 5
        write_timeout_s = 1.5
        drain_s = 2
        log_format = "json"
    """
    models = MODEL + '[[models]]\nid = "n"\npath = "x"\ntemplate = "llama3-writer"\nrevision = "abc"\n'
    models += "[models.price]\ninput_per_1k = 3\ncached_per_1k = 1\noutput_per_1k = 4\n"
    models += "[models.engine]\nmax_num_seqs = 8\n"
    found = load(write(tmp_path, text + models))
    values = {field.name: getattr(found, field.name) for field in fields(Settings)}
    assert {name for name, value in values.items() if value == getattr(Settings(), name)} == set()
    assert found.cors_origins == ("https://a", "https://b")
    assert type(found.keep_alive_s) is float
    assert (found.data_dir, found.plans) == (Path("/var/lib/serving"), Path("/etc/plans.toml"))
    assert found.models[1].price == Price(3, 1, 4)
    assert found.models[1].engine == {"max_num_seqs": 8}
    assert (found.models[0].revision, found.models[1].revision) == (None, "abc")


def test_the_environment_is_over_the_file_and_overrides_over_both(tmp_path: Path) -> None:
    environ = write(tmp_path, "port = 1\ndrain_s = 1\nlog_format = 'json'\n")
    environ |= {"SERVING_PORT": "2", "SERVING_LOG_FORMAT": "text", "SERVING_HOST": ""}
    found = load(environ, {"port": 3, "host": None})
    assert (found.port, found.drain_s, found.log_format, found.host) == (3, 1, "text", "127.0.0.1")


def test_every_kind_of_variable() -> None:
    found = load(
        {
            "SERVING_DEMO_ACCOUNT": "False",
            "SERVING_KEEP_ALIVE_S": "0.5",
            "SERVING_DATA_DIR": "/x",
            "SERVING_PLANS": "/y",
            "SERVING_CORS_ORIGINS": "https://a, https://b,",
            "SERVING_API_KEY": "k",
        }
    )
    assert (found.demo_account, found.keep_alive_s, found.data_dir, found.api_key) == (False, 0.5, Path("/x"), "k")
    assert found.cors_origins == ("https://a", "https://b")
    assert found.plans == Path("/y")


def test_the_override_config_is_over_the_variable(tmp_path: Path) -> None:
    environ = write(tmp_path, "port = 1")
    other = tmp_path / "other.toml"
    other.write_text("port = 2")
    assert load(environ, {"config": other}).port == 2


TASK_MODELS = """
    [[models]]
    id = "e"
    path = "org/e"
    kind = "embedding"
    [[models]]
    id = "c"
    path = "org/c"
    kind = "classification"
    threshold = 0.25
    categories = { LABEL_1 = "violence" }
    [[models]]
    id = "i"
    path = "http://images/v1"
    kind = "image"
    server_model = "org/i"
    server_key = "k"
    sizes = { 512x512 = 10, 1024x1024 = 40 }
"""


def test_models_of_other_kinds_need_no_template(tmp_path: Path) -> None:
    _, embedder, classifier, painter = load(write(tmp_path, MODEL + TASK_MODELS)).models
    assert (embedder.kind, embedder.template, embedder.threshold) == ("embedding", "", 0.5)
    assert (classifier.categories, classifier.threshold) == ({"LABEL_1": "violence"}, 0.25)
    assert list(painter.sizes.items()) == [("512x512", 10), ("1024x1024", 40)]
    assert (painter.path, painter.server_model, painter.server_key) == ("http://images/v1", "org/i", "k")


def test_a_relative_path_is_meant_from_the_file(tmp_path: Path) -> None:
    (tmp_path / "here").mkdir()
    text = MODEL.replace("org/m", "here")
    assert load(write(tmp_path, text)).models[0].path == str(tmp_path / "here")
    assert load(write(tmp_path, MODEL)).models[0].path == "org/m"


def test_adapters_lie_in_a_folder_named_from_the_file(tmp_path: Path) -> None:
    (tmp_path / "adapters").mkdir()
    assert load(write(tmp_path, MODEL)).models[0].loras is None
    assert load(write(tmp_path, MODEL + "loras = 'adapters'")).models[0].loras == tmp_path / "adapters"
    assert load(write(tmp_path, MODEL + "loras = '/'")).models[0].loras == Path("/")


WRONG_FILES = {
    MODEL + "loras = 'none'": "m: loras must be a folder",
    MODEL + "loras = ['a']": "loras must be of type",
    MODEL + "[[models]]\nid = 'e'\npath = 'e'\nkind = 'embedding'\nloras = '/'": "e: loras must be a folder, and only",
    TASK_MODELS: "No model of the kind generation",
    f"default_model = 'e'\n{MODEL}{TASK_MODELS}": "default_model 'e'",
    MODEL + MODEL.replace('"m"', '"n"') + "kind = 'embeddings'": "kind must be one of generation, embedding",
    MODEL + "[[models]]\nid = 'c'\npath = 'c'\nkind = 'classification'": "models[1] lacks categories",
    MODEL + "[[models]]\nid = 'i'\npath = 'i'\nkind = 'image'\nsizes = { 1x1 = 1 }": "i: an image model has sizes",
    MODEL + "[[models]]\nid = 'i'\npath = 'http://i'\nkind = 'image'": "models[1] lacks sizes",
    MODEL + "sizes = { 1x1 = 1.5 }": "sizes must be numbers of microcredits",
    MODEL + "threshold = 1.5": "threshold must be from 0 to 1",
    MODEL + "categories = ['a']": "categories must be a table",
    MODEL + "categories = { a = 1 }": "categories must name a category for each label",
    "prot = 1": "prot",
    "port = 'x'": "port",
    "port = 1.5": "port",
    "port = true": "port",
    "port = 0": "port",
    "port = 65536": "port",
    "host = 1": "host",
    "demo_account = 1": "demo_account",
    "cors_origins = 'x'": "cors_origins",
    "cors_origins = [1]": "cors_origins",
    "data_dir = 1": "data_dir",
    "log_format = 'xml'": "log_format",
    "log_format = 1": "log_format",
    "default_model = 'x'": "default_model",
    "api_key = 1": "api_key",
    "models = 1": "models",
    "models = ['x']": "models[0]",
    "models = []": "models",
    "[models]\nid = 'm'": "[[models]]",
    "[[models]]\nid = 'm'": "path, template",
    MODEL + MODEL: "'m'",
    MODEL + "size = 1": "size",
    MODEL + "revision = 1": "revision",
    MODEL + "price = 5": "price",
    MODEL + "price = {per_1k = 1}": "per_1k",
    MODEL + "price = {input_per_1k = 1.5}": "input_per_1k",
    MODEL + "price = {input_per_1k = -1}": "input_per_1k",
    MODEL + "price = {cached_per_1k = 2, input_per_1k = 1}": "cached_per_1k",
    MODEL + "price = {output_per_1k = -1}": "output_per_1k",
    MODEL + "engine = 5": "engine",
    "port = ": "serving.toml",
    **{
        f"{name} = {value}": name for name in ("keep_alive_s", "write_timeout_s", "drain_s") for value in (0, -1, "nan")
    },
    **{f"{name} = inf": name for name in ("keep_alive_s", "write_timeout_s", "drain_s")},
    **{f"{name} = 0": name for name in ("max_body_bytes", "max_running_choices")},
}


@pytest.mark.parametrize("text", WRONG_FILES, ids=lambda text: text[-30:])
def test_a_wrong_file_names_the_key(tmp_path: Path, text: str) -> None:
    with pytest.raises(SettingsError) as error:
        load(write(tmp_path, text))
    assert WRONG_FILES[text] in str(error.value)
    assert "\n" not in str(error.value)


WRONG_VARIABLES = [
    ("PORT", "x"),
    ("PORT", "70000"),
    ("DEMO_ACCOUNT", "maybe"),
    ("KEEP_ALIVE_S", "long"),
    ("DRAIN_S", "nan"),
]
WRONG_VARIABLES += [
    ("LOG_FORMAT", "xml"),
    ("DEFAULT_MODEL", "x"),
    ("MAX_BODY_BYTES", "1.5"),
    ("WRITE_TIMEOUT_S", "inf"),
]


@pytest.mark.parametrize(("name", "value"), WRONG_VARIABLES)
def test_a_wrong_variable_is_named(name: str, value: str) -> None:
    with pytest.raises(SettingsError) as error:
        load({f"SERVING_{name}": value})
    assert name.lower() in str(error.value).lower()


@pytest.mark.parametrize("content", [None, b"\xff\xfe"])
def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "config.toml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(SettingsError, match=r"config\.toml"):
        load({"SERVING_CONFIG": str(path)})


def test_every_setting_is_documented() -> None:
    assert all(field.metadata["doc"].endswith(".") for field in fields(Settings))
