"""Environment and serving.toml -> one frozen Settings; the only reader of the environment.

A variable `SERVING_X` overrides the key `x` of the file. `SERVING_CONFIG` names the file. Without one, the bundled
demo model is served. Unknown keys and impossible values are a SettingsError that names them.
"""

import math
import os
import tomllib
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, get_args, get_origin, get_type_hints

from serving.core import Price
from serving.core.tasks import ModelKind


class SettingsError(Exception):
    """The configuration is wrong; the message says where and what to do."""


DEMO_MODEL_DIR = Path(__file__).parent / "demo" / "opus-v1-sm"


@dataclass(frozen=True, slots=True)
class ModelSettings:
    """One `[[models]]` table: a model to serve and how to load it."""

    id: str = field(metadata={"doc": "Name that clients ask for."})
    path: str = field(
        metadata={"doc": "Folder of a checkpoint, or its id on the model hub; of an image model the server's address."}
    )
    template: str = field(
        default="", metadata={"doc": "Prompt template: `chatml-text` or `llama3-writer`; of a generation model."}
    )
    kind: ModelKind = field(
        default="generation",
        metadata={"doc": "`generation`, `embedding`, `classification`, `transcription`, `image`."},
    )
    revision: str | None = field(default=None, metadata={"doc": "Revision of a hub checkpoint."})
    price: Price = field(default=Price(), metadata={"doc": "Microcredits per 1,000 tokens: a table of `*_per_1k`."})
    engine: Mapping[str, Any] = field(
        default_factory=dict, metadata={"doc": "Engine arguments, handed to vLLM as they are."}
    )
    loras: Path | None = field(
        default=None,
        metadata={
            "doc": "Of a generation model: folder of LoRA adapters in PEFT's format, each a folder in it, that can be "
            "asked for as `id:adapter`."
        },
    )
    standby: bool = field(
        default=False, metadata={"doc": "Not loaded at the start: an admin can load it in the place of another."}
    )
    categories: Mapping[str, str] = field(
        default_factory=dict,
        metadata={"doc": "Of a classification model: those of its labels that are told, and the category of each."},
    )
    threshold: float = field(
        default=0.5, metadata={"doc": "Of a classification model: the score from which a category applies."}
    )
    sizes: Mapping[str, int] = field(
        default_factory=dict,
        metadata={"doc": "Of an image model: its sizes, and what an image of each costs, in microcredits."},
    )
    server_model: str | None = field(
        default=None, metadata={"doc": "Of an image model: its name at its server; the id by default."}
    )
    server_key: str | None = field(default=None, metadata={"doc": "Of an image model: the key that its server wants."})


DEMO_MODEL = ModelSettings(
    id="opus-v1-sm",
    path=str(DEMO_MODEL_DIR),
    template="chatml-text",
    price=Price(input_per_1k=40_000, cached_per_1k=10_000, output_per_1k=40_000),
    engine={"max_num_seqs": 64},
)


@dataclass(frozen=True, slots=True)
class Settings:
    """Everything that can be configured. Times are in seconds."""

    host: str = field(default="127.0.0.1", metadata={"doc": "Address to listen on."})
    port: int = field(default=8000, metadata={"doc": "Port to listen on."})
    api_key: str | None = field(default=None, metadata={"doc": "Key of the demo account, instead of a derived one."})
    demo_account: bool = field(default=True, metadata={"doc": "Whether the demo account exists."})
    data_dir: Path = field(default=Path("data"), metadata={"doc": "Folder for keys and other state."})
    key_pepper: str | None = field(
        default=None, metadata={"doc": "Secret that key hashes are made with; by default a file in the data folder."}
    )
    redis_url: str | None = field(
        default=None,
        metadata={"doc": "Where credits and keys are kept; by default a Redis of our own in the data folder."},
    )
    plans: Path | None = field(default=None, metadata={"doc": "A plans.toml instead of the bundled one."})
    demo_plan: str = field(default="unlimited", metadata={"doc": "Plan of the demo account."})
    admin_key: str | None = field(default=None, metadata={"doc": "Key of `/admin/v1`, which is off without one."})
    lease_s: float = field(default=30.0, metadata={"doc": "A hold that nobody noted for so long is settled."})
    extend_s: float = field(default=5.0, metadata={"doc": "How often the ledger is told how far requests are."})
    away_requests: int = field(
        default=0,
        metadata={
            "doc": "How many requests may run at once in this process that began while the credit store did not "
            "answer, of callers it knows whose plans are not metered and whose keys have no cap; none by default."
        },
    )
    cors_origins: tuple[str, ...] = field(
        default=(), metadata={"doc": "Origins that browsers may call from (`*` for any); none by default."}
    )
    default_model: str | None = field(
        default=None, metadata={"doc": "Model of requests that name none; the first one by default."}
    )
    models_dir: Path | None = field(
        default=None, metadata={"doc": "Folder of checkpoints that an admin can load in the place of a model."}
    )
    replace_beside: bool = field(
        default=True,
        metadata={
            "doc": "A model is loaded while the one that it replaces still serves, for which there must be memory; "
            "false: after that one has ended."
        },
    )
    max_body_bytes: int = field(default=4 * 1024 * 1024, metadata={"doc": "Largest request body."})
    max_form_bytes: int = field(default=25 * 1024 * 1024, metadata={"doc": "Largest form, with the file in it."})
    max_running_choices: int = field(default=1024, metadata={"doc": "Choices generated at once before 503."})
    library_dir: Path | None = field(
        default=None,
        metadata={
            "doc": "Folder with `characters`, `instruction-templates` and `presets`, as text-generation-webui's "
            "`user_data`."
        },
    )
    grammars: bool = field(
        default=False,
        metadata={
            "doc": "Whether `grammar_string` is taken. An ambiguous grammar can hold up a model for everybody: only "
            "for callers you trust."
        },
    )
    livepeer_done: bool = field(
        default=True,
        metadata={"doc": "Streams of `/llm` end with `[DONE]`, as Livepeer's runner's do; its gateway's do not."},
    )
    livepeer_length: bool = field(
        default=True,
        metadata={
            "doc": "`/llm` calls what the limit of tokens ended `length`; Livepeer's own servers call it `stop`."
        },
    )
    keep_alive_s: float = field(default=10.0, metadata={"doc": "Silence after which a stream sends a keep-alive."})
    write_timeout_s: float = field(default=60.0, metadata={"doc": "A client that reads nothing for so long is cut."})
    drain_s: float = field(default=30.0, metadata={"doc": "Time that running requests get to finish at shutdown."})
    log_format: Literal["text", "json"] = field(default="text", metadata={"doc": "Log lines: `text` or `json`."})
    models: tuple[ModelSettings, ...] = field(default=(DEMO_MODEL,), metadata={"doc": "Models to serve."})


def load(environ: Mapping[str, str] = os.environ, overrides: Mapping[str, object] = MappingProxyType({})) -> Settings:
    """Settings from a file (the override `config`, else `SERVING_CONFIG`), the environment over it, and `overrides`
    over both; an override that is None says nothing."""
    values: dict[str, object] = {}
    if config := overrides.get("config") or environ.get("SERVING_CONFIG"):
        values.update(_read_file(Path(str(config))))
    for setting in fields(Settings):
        text = environ.get(f"SERVING_{setting.name.upper()}")
        if text and setting.name != "models":
            values[setting.name] = _from_text(setting.name, text)
    values.update({name: value for name, value in overrides.items() if name != "config" and value is not None})
    settings = Settings(**values)  # type: ignore[arg-type]  # every value was converted to its field's type
    _check(settings)
    return settings


def _read_file(path: Path) -> dict[str, object]:
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SettingsError(f"The configuration file {path} cannot be read: {error.strerror}.") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path} is not valid TOML: {error}.") from error
    values: dict[str, object] = {}
    for name, value in _known(Settings, table, str(path)).items():
        if name == "models":
            if not isinstance(value, list):
                raise SettingsError(f"{path}: models must be tables: each begins with [[models]].")
            values[name] = tuple(_model(item, f"{path}: models[{i}]", path.parent) for i, item in enumerate(value))
        else:
            values[name] = _typed(Settings, name, value, str(path))
    return values


_NEEDED = {"generation": ["template"], "classification": ["categories"], "image": ["sizes"]}
"""Keys that a model of each kind must have."""


def _model(table: Any, where: str, folder: Path) -> ModelSettings:  # noqa: ANN401  # anything TOML can hold
    values = _known(ModelSettings, _table(table, where), where)
    missing = [f.name for f in fields(ModelSettings) if f.default is MISSING and f.default_factory is MISSING]
    missing += _NEEDED.get(values.get("kind", "generation"), [])
    if absent := [name for name in missing if name not in values]:
        raise SettingsError(f"{where} lacks {', '.join(absent)}.")
    price = _table(values.pop("price", {}), f"{where}.price")
    engine = _table(values.pop("engine", {}), f"{where}.engine")
    categories = _table(values.pop("categories", {}), f"{where}.categories")
    if not all(isinstance(category, str) and category for category in categories.values()):
        raise SettingsError(f"{where}.categories must name a category for each label.")
    sizes = _table(values.pop("sizes", {}), f"{where}.sizes")
    if not all(type(price) is int and price >= 0 for price in sizes.values()):
        raise SettingsError(f"{where}.sizes must be numbers of microcredits, 0 or more, by size.")
    typed = {name: _typed(ModelSettings, name, value, where) for name, value in values.items()}
    # A relative folder is meant relative to the file that names it; a hub id is no folder.
    local = folder / str(typed["path"])
    typed["path"] = str(local) if local.exists() else typed["path"]
    if "loras" in typed:
        typed["loras"] = folder / typed["loras"]
    prices = {name: _typed(Price, name, value, f"{where}.price") for name, value in _known(Price, price, where).items()}
    return ModelSettings(**typed, price=Price(**prices), engine=engine, categories=categories, sizes=sizes)


def _table(value: Any, where: str) -> dict[str, Any]:  # noqa: ANN401  # anything TOML can hold
    if not isinstance(value, dict):
        raise SettingsError(f"{where} must be a table.")
    return value


def _known(kind: type, table: dict[str, Any], where: str) -> dict[str, Any]:
    names = [setting.name for setting in fields(kind)]
    if unknown := sorted(set(table) - set(names)):
        raise SettingsError(f"{where}: unknown key {unknown[0]!r}. Known are: {', '.join(names)}.")
    return dict(table)


def _typed(kind: type, name: str, value: Any, where: str) -> Any:  # noqa: ANN401  # in: TOML, out: the field's type
    """`value` of a TOML file as the type of the field `name`."""
    wanted = get_type_hints(kind)[name]
    if wanted == tuple[str, ...] and isinstance(value, list) and all(isinstance(item, str) for item in value):
        return tuple(value)
    if wanted in (Path, Path | None) and isinstance(value, str):
        return Path(value)
    if wanted is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if get_origin(wanted) is Literal:
        wanted = str  # its values are checked with the other ranges
    simple = {str: str, int: int, float: float, bool: bool, str | None: str}.get(wanted)
    if simple is None or type(value) is not simple:
        raise SettingsError(f"{where}: {name} must be of type {getattr(wanted, '__name__', wanted)}.")
    return value


def _from_text(name: str, text: str) -> object:
    """The text of a variable as the type of the field `name`."""
    wanted = get_type_hints(Settings)[name]
    try:
        if wanted in (int, float):
            return wanted(text)
        if wanted in (Path, Path | None):
            return Path(text)
        if wanted is bool:
            return {"1": True, "true": True, "0": False, "false": False}[text.lower()]
    except (ValueError, KeyError):
        raise SettingsError(f"SERVING_{name.upper()} must be of type {wanted.__name__}.") from None
    if wanted == tuple[str, ...]:
        return tuple(item.strip() for item in text.split(",") if item.strip())
    return text


def _check(settings: Settings) -> None:
    _check_models(settings)
    if settings.models_dir is not None and not settings.models_dir.is_dir():
        raise SettingsError(f"models_dir {settings.models_dir} is not a folder.")
    if not 0 < settings.port < 65536:
        raise SettingsError("port must be between 1 and 65535.")
    if settings.log_format not in ("text", "json"):
        raise SettingsError("log_format must be `text` or `json`.")
    if settings.away_requests < 0:
        raise SettingsError("away_requests must be 0 or more.")
    positive = (
        "max_body_bytes",
        "max_form_bytes",
        "max_running_choices",
        "keep_alive_s",
        "write_timeout_s",
        "drain_s",
        "lease_s",
        "extend_s",
    )
    for name in positive:
        if not 0 < getattr(settings, name) < math.inf:
            raise SettingsError(f"{name} must be greater than 0, and finite.")


def _check_models(settings: Settings) -> None:
    ids = [model.id for model in settings.models]
    generating = [model.id for model in settings.models if model.kind == "generation"]
    if not generating:
        raise SettingsError("No model of the kind generation is configured: add a [[models]] table.")
    if repeated := {model_id for model_id in ids if ids.count(model_id) > 1}:
        raise SettingsError(f"The model id {repeated.pop()!r} is configured twice.")
    served = [model.id for model in settings.models if model.id in generating and not model.standby]
    if not served:
        raise SettingsError("All models are on standby: at least one must be loaded at the start.")
    if settings.default_model is not None and settings.default_model not in served:
        told = ", ".join(served)
        raise SettingsError(f"default_model {settings.default_model!r} is not among the models that generate: {told}.")
    for model in settings.models:
        if model.kind not in get_args(ModelKind):
            raise SettingsError(f"{model.id}: kind must be one of {', '.join(get_args(ModelKind))}.")
        if model.standby and model.id not in generating:
            raise SettingsError(f"{model.id}: only a model that generates can be on standby.")
        if model.loras is not None and not (model.id in generating and model.loras.is_dir()):
            raise SettingsError(f"{model.id}: loras must be a folder, and only a model that generates has adapters.")
        if model.kind == "image" and not (model.sizes and model.path.startswith(("http://", "https://"))):
            raise SettingsError(f"{model.id}: an image model has sizes, and an address of http or https as its path.")
        if not 0 <= model.threshold <= 1:
            raise SettingsError(f"{model.id}: threshold must be from 0 to 1.")
        price = model.price
        if not 0 <= price.cached_per_1k <= price.input_per_1k or price.output_per_1k < 0:
            raise SettingsError(
                f"{model.id}: input_per_1k, cached_per_1k and output_per_1k must be 0 or more, and cached_per_1k at "
                "most input_per_1k."
            )
