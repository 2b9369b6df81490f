"""Presets: what is shipped loads, what is misspelt is refused by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from training.base_models import find_base_model, load_base_models
from training.config import CONFIGS, TrainConfig, load_train_config, parse_train_config
from training.errors import ConfigError

PRESETS = sorted((CONFIGS / "train").rglob("*.yaml"))


def test_there_are_presets() -> None:
    assert len(PRESETS) > 0


@pytest.mark.parametrize("path", PRESETS, ids=lambda path: path.stem)
def test_every_shipped_preset_loads_and_names_a_base_that_exists(path: Path) -> None:
    preset = load_train_config(path.stem)
    assert preset.name == path.stem
    assert preset.base_model is None or find_base_model(preset.base_model).id == preset.base_model


def test_every_base_model_loads() -> None:
    models = load_base_models()
    assert len(models) > 0
    assert all(key == model.id for key, model in models.items())


def test_an_unknown_base_model_is_answered_with_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"'marsupilami'.*smollm2-135m"):
        find_base_model("marsupilami")


@pytest.mark.parametrize("name", ["x" * 300, "y" * 300 + ".yaml", "a\0b"])
def test_a_name_that_no_file_can_have_is_an_unknown_preset(name: str) -> None:
    with pytest.raises(ConfigError, match=r"There is no training preset '.{1,130}'\. Choose"):
        load_train_config(name)


def test_a_folder_is_called_a_folder(tmp_path: Path) -> None:
    (tmp_path / "folder.yaml").mkdir()
    for folder in (tmp_path, tmp_path / "folder.yaml"):
        with pytest.raises(ConfigError, match="is a folder"):
            load_train_config(str(folder))


def test_a_folder_does_not_hide_the_preset_of_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "default").mkdir()
    monkeypatch.chdir(tmp_path)
    assert load_train_config("default").name == "default"


def test_a_file_that_cannot_be_opened_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("loop.yaml").symlink_to("loop.yaml")
    with pytest.raises(ConfigError, match=r"'loop\.yaml' cannot be read \(Too many levels"):
        load_train_config("loop.yaml")


@pytest.mark.parametrize(
    "content",
    [b"\xff\xfe\xff", b"epochs: [", b"epochs: 2026-13-45", b"[" * 5000],
    ids=["bytes", "yaml", "date", "deep"],
)
def test_what_is_not_yaml_is_said_of_the_file_alone(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "mine.yaml").write_bytes(content)
    with pytest.raises(ConfigError, match=r"^mine\.yaml is not readable YAML"):
        load_train_config(str(tmp_path / "mine.yaml"))


def test_an_unknown_preset_is_answered_with_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"'marsupilami'.*cpu-smoke.*default"):
        load_train_config("marsupilami")


def test_a_preset_by_path_is_named_after_its_file(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("epochs: 2\n")
    preset = load_train_config(str(tmp_path / "mine.yaml"))
    assert (preset.name, preset.epochs) == ("mine", 2)


def test_an_empty_preset_is_the_defaults(tmp_path: Path) -> None:
    (tmp_path / "empty.yaml").write_text("# nothing\n")
    assert load_train_config(str(tmp_path / "empty.yaml")) == TrainConfig(name="empty")


@pytest.mark.parametrize("text", ["- a\n- b\n", "just words\n", "epochs: [1\n", "\xff\xfe"])
def test_a_file_that_is_no_mapping_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "bad.yaml").write_bytes(text.encode("latin-1"))
    with pytest.raises(ConfigError, match=r"bad\.yaml"):
        load_train_config(str(tmp_path / "bad.yaml"))


@pytest.mark.parametrize(
    ("wrong", "field"),
    [
        ({"lora": {"lora_alhpa": 32}}, r"lora\.lora_alhpa"),
        ({"epoch": 3}, "epoch"),
        ({"epochs": 0}, "epochs"),
        ({"learning_rate": "fast"}, "learning_rate"),
        ({"learning_rate": float("nan")}, "learning_rate"),
        ({"lora": {"alpha": float("inf")}}, r"lora\.alpha"),
        ({"lora": {"rank": 0}}, r"lora\.rank"),
        ({"lora": {"dropout": 1.0}}, r"lora\.dropout"),
        ({"lora": {"target_modules": ["embed_tokens"]}}, "embed_tokens"),
        ({"lora": {"target_modules": []}}, "target_modules"),
        ({"schedule": "polynomial"}, "schedule"),
        ({"data": {"language": "English"}}, r"data\.language"),
        ({"data": {"min_held_out": 30, "max_held_out": 8}}, r"data: .*30.*max_held_out 8"),
        ({1: 2}, "1"),
    ],
)
def test_a_wrong_setting_is_named(wrong: dict[Any, Any], field: str) -> None:
    with pytest.raises(ConfigError, match=field):
        parse_train_config(wrong)


def test_dora_is_refused_with_the_reason_and_the_alternative() -> None:
    with pytest.raises(ConfigError, match=r"lora\.use_dora: a GGUF adapter cannot carry .*use_rslora"):
        parse_train_config({"lora": {"use_dora": True}})
    assert not parse_train_config({"lora": {"use_dora": False}}).lora.use_dora


def test_neftune_is_off_and_says_so() -> None:
    with pytest.raises(ConfigError, match=r"neftune_noise_alpha: NEFTune is off: .*set it to 0 \(value: 5"):
        parse_train_config({"neftune_noise_alpha": 5})
    assert parse_train_config({"neftune_noise_alpha": 0}) == TrainConfig()


def test_our_own_sentences_come_without_a_kind_of_error_before_them() -> None:
    with pytest.raises(ConfigError) as refused:
        parse_train_config({"lora": {"target_modules": ["embed_tokens"]}})
    assert "Value error" not in str(refused.value)
    assert "lora: target_modules ['embed_tokens'] cannot" in str(refused.value)


def test_the_owners_settings_are_a_preset_of_their_own() -> None:
    seeds = load_train_config("seeds")
    assert (seeds.lora.rank, seeds.lora.alpha, seeds.lora.dropout) == (16, 32, 0.05)
    assert (seeds.learning_rate, seeds.epochs, seeds.validation_fraction) == (2e-4, 3, 0)
    assert load_train_config("default").learning_rate == 1e-3


def test_playback_is_the_default_recipe_but_for_its_instructions() -> None:
    default, playback = load_train_config("default"), load_train_config("playback")
    asked = default.data.model_copy(update={"instructions": "playback"})
    assert playback == default.model_copy(update={"name": "playback", "data": asked})


def test_the_message_names_the_file_and_the_value(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("batch_tokens: 7\n")
    with pytest.raises(ConfigError, match=r"mine\.yaml: batch_tokens: .*64.*value: 7"):
        load_train_config(str(tmp_path / "mine.yaml"))


def test_an_override_of_one_field_keeps_the_rest_of_its_section() -> None:
    preset = load_train_config("cpu-smoke")
    changed = load_train_config("cpu-smoke", {"lora": {"dropout": 0.1}, "epochs": 2})
    assert changed.lora == preset.lora.model_copy(update={"dropout": 0.1})
    assert changed == preset.model_copy(update={"epochs": 2, "lora": changed.lora})


def test_a_loaded_preset_cannot_be_changed() -> None:
    with pytest.raises(ValidationError):
        load_train_config("default").epochs = 9  # type: ignore[misc]


def test_a_preset_survives_the_job_row() -> None:
    preset = load_train_config("llama-3.1-8b")
    assert parse_train_config(preset.model_dump(mode="json")) == preset


def test_a_field_that_is_gone_stays_readable_in_job_rows_and_is_refused_in_presets(tmp_path: Path) -> None:
    preset = load_train_config("default")
    assert parse_train_config(preset.model_dump(mode="json") | {"promote_below": 0.0}) == preset
    (tmp_path / "mine.yaml").write_text("promote_below: 0.1\n")
    with pytest.raises(ConfigError, match="promote_below"):
        load_train_config(str(tmp_path / "mine.yaml"))


def test_auto_is_listed_and_leaves_the_default_number(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("epochs: auto\nlora:\n  dropout: auto\n  rank: 8\n")
    preset = load_train_config(str(tmp_path / "mine.yaml"))
    assert preset.auto == ("epochs", "lora.dropout")
    assert (preset.epochs, preset.lora.dropout, preset.lora.rank) == (3, 0.05, 8)
    assert parse_train_config(preset.model_dump(mode="json")) == preset


def test_a_rank_left_to_the_data_brings_its_alpha_along_unless_that_is_given() -> None:
    assert parse_train_config({"lora": {"rank": "auto"}}).auto == ("lora.rank", "lora.alpha")
    assert parse_train_config({"lora": {"rank": "auto", "alpha": 8}}).auto == ("lora.rank",)


def test_a_number_laid_over_auto_is_no_longer_left_to_the_data() -> None:
    preset = load_train_config("default", {"epochs": 2, "lora": {"rank": 4, "alpha": 8}})
    assert preset.auto == ("learning_rate", "validation_fraction", "lora.dropout")
    assert (preset.epochs, preset.lora.rank, preset.lora.alpha) == (2, 4, 8)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ({"epochs": "automatic"}, r"epochs: .*valid integer.*'automatic'"),
        ({"seed": "auto"}, r"seed: .*valid integer.*'auto'"),
        ({"auto": ["marsupilami"]}, r"auto\.0: .*'epochs'.*'marsupilami'"),
        ({"auto": "epochs"}, r"auto: .*'epochs'"),
        ({"epochs": "auto", "lora": [1]}, r"lora: .*\[1\]"),
    ],
)
def test_what_cannot_be_left_to_the_data_is_refused_by_name(data: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        parse_train_config(data)
