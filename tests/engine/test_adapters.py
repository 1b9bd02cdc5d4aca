"""What a folder of adapters holds, and what a configuration says."""

import json
from pathlib import Path

import msgspec
import pytest

from serving.engine.adapters import adapters_in, largest_rank, read_config
from serving.engine.arguments import MOST_HELD_LORAS, MOST_LORAS, adapter_arguments


def configured(folder: Path, name: str, config: object) -> Path:
    (folder / name).mkdir(parents=True)
    (folder / name / "adapter_config.json").write_text(json.dumps(config))
    return folder / name


def test_a_folder_with_a_configuration_is_an_adapter(tmp_path: Path) -> None:
    for name in ("mara", "Ron 2", "a.b"):
        configured(tmp_path, name, {"r": 8, "lora_alpha": 8})
    configured(tmp_path / "mara", "checkpoint-100", {})
    (tmp_path / "notes").mkdir()
    (tmp_path / "adapter_config.json").write_text("{}")
    assert adapters_in(tmp_path) == ("Ron 2", "a.b", "mara")
    assert adapters_in(None) == adapters_in(tmp_path / "none") == ()


@pytest.mark.parametrize("name", ["line\nbreak", "\udcff"])
def test_a_name_that_cannot_be_told_is_none(tmp_path: Path, name: str) -> None:
    configured(tmp_path, name, {})
    assert adapters_in(tmp_path) == ()


def test_the_rank_is_the_largest_of_all_modules(tmp_path: Path) -> None:
    assert read_config(configured(tmp_path, "a", {"r": 8, "lora_alpha": 16, "rank_pattern": {}})).rank == 8
    assert read_config(configured(tmp_path, "b", {"r": 8, "lora_alpha": 1, "rank_pattern": {"q_proj": 24}})).rank == 24


@pytest.mark.parametrize(
    "config",
    [
        [],
        {},
        {"r": "8", "lora_alpha": 8},
        {"r": 0, "lora_alpha": 8},
        {"r": 8, "lora_alpha": None},
        {"r": 8, "lora_alpha": 8, "rank_pattern": {"q_proj": -1}},
    ],
)
def test_an_impossible_configuration_is_refused(tmp_path: Path, config: object) -> None:
    with pytest.raises(msgspec.ValidationError):
        read_config(configured(tmp_path, "a", config))
    assert largest_rank(tmp_path) == 0


@pytest.mark.parametrize(("rank", "most"), [(1, 1), (2, 8), (8, 8), (24, 32), (300, 320), (1024, 512)])
def test_an_engine_takes_the_ranks_that_lie_there(tmp_path: Path, rank: int, most: int) -> None:
    assert "max_lora_rank" not in adapter_arguments(tmp_path, {})
    configured(tmp_path, "broken", {"r": 2048})
    configured(tmp_path, "small", {"r": 1, "lora_alpha": 1})
    configured(tmp_path, "large", {"r": rank, "lora_alpha": 1})
    assert adapter_arguments(tmp_path, {}) == {
        "enable_lora": True,
        "max_loras": MOST_LORAS + 1,
        "max_cpu_loras": MOST_HELD_LORAS,
        "max_lora_rank": most,
    }
    assert adapter_arguments(tmp_path, {"max_loras": 100})["max_cpu_loras"] == 100


@pytest.mark.parametrize(
    ("engine", "said"),
    [({"enable_lora": False}, "use the model's `loras`"), ({"max_loras": 1}, "2 or more with a CPU")],
)
def test_an_impossible_engine_table_names_its_key(tmp_path: Path, engine: dict[str, object], said: str) -> None:
    assert adapter_arguments(None, {"max_loras": 1}) == {}
    with pytest.raises(ValueError, match=rf"engine\.\w+ .*{said}"):
        adapter_arguments(tmp_path, engine)
