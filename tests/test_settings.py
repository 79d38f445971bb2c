from __future__ import annotations

import pickle
from pathlib import Path

import pytest

from kevolve_inductor.exc import SettingsError, UnknownSettingError
from kevolve_inductor.settings import (
    SETTING_NAMES,
    Settings,
    compiler_candidates,
    default_store,
    interpret_triton,
    worker_environment,
)


def resolve(options=None, mode=None, environment=None):
    return Settings.resolve(options, mode, environment or {})


def test_defaults():
    settings, rest = resolve()
    assert rest == {}
    assert settings == Settings(
        search="quick", budget_s=None, trials=None, store=Path.home() / ".cache/kevolve", trust=("local",),
        min_speedup=1.02, numerics="strict", inductor_mode=None, synthesizer=("families",), isolation="confined",
        report=None, seed=0, fuel=None, strict=False, enabled=True,
    )  # fmt: skip


def test_options_without_the_prefix_are_inductors_and_untouched():
    marker = object()
    settings, rest = resolve({"kevolve.seed": 3, "max_autotune": marker, "kevolvex": 1})
    assert settings.seed == 3
    assert rest == {"max_autotune": marker, "kevolvex": 1}


@pytest.mark.parametrize(
    ("name", "option", "text", "value"),
    [
        ("search", "full", "full", "full"),
        ("budget_s", 2, "2", 2.0),
        ("trials", 7, "7", 7),
        ("store", Path("/a/b"), "/a/b", Path("/a/b")),
        ("trust", ["local", "team"], "local, team", ("local", "team")),
        ("min_speedup", 1.5, "1.5", 1.5),
        ("numerics", "eager_tf32", "eager_tf32", "eager_tf32"),
        ("inductor_mode", "max-autotune", "max-autotune", "max-autotune"),
        ("synthesizer", "families", "families", ("families",)),
        ("isolation", "limits", "limits", "limits"),
        ("report", "/r", "/r", Path("/r")),
        ("seed", -4, "-4", -4),
        ("fuel", 0, "0", 0),
        ("strict", True, "yes", True),
        ("enabled", False, "0", False),
    ],
)
def test_every_setting_by_option_and_by_environment(name, option, text, value):
    variable = f"KEVOLVE_{name.upper()}"
    assert getattr(resolve({f"kevolve.{name}": option})[0], name) == value
    assert getattr(resolve(environment={variable: text})[0], name) == value
    other = {"search": "off", "numerics": "strict", "inductor_mode": "default", "trust": "x", "store": "/x"}.get(name)
    if other is not None:
        assert getattr(resolve({f"kevolve.{name}": option}, environment={variable: other})[0], name) == value


def test_the_table_covers_every_setting():
    assert set(SETTING_NAMES) == {
        "search", "budget_s", "trials", "store", "trust", "min_speedup", "numerics", "inductor_mode", "synthesizer",
        "isolation", "report", "seed", "fuel", "strict", "enabled",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [
        ("search", "fast", "off, lookup, quick, full"),
        ("search", None, "off, lookup"),
        ("search", ["quick"], "off, lookup"),
        ("budget_s", -1, "at least 0"),
        ("budget_s", "soon", "at least 0"),
        ("budget_s", "nan", "finite"),
        ("budget_s", True, "finite"),
        ("budget_s", 10**400, "finite"),
        ("trials", 1.5, "integer"),
        ("trials", -1, "at least 0"),
        ("store", "", "a folder"),
        ("store", 3, "a folder"),
        ("store", "s3://bucket/kernels", "only folders"),
        ("store", "http://host/kernels", "only folders"),
        ("trust", [], "names"),
        ("trust", "local,", "names"),
        ("trust", [3], "names"),
        ("trust", 3, "names"),
        ("min_speedup", 0.9, "at least 1"),
        ("numerics", "fast", "strict, eager_tf32"),
        ("inductor_mode", "fastest", "max-autotune"),
        ("synthesizer", "llm", "families"),
        ("seed", "x", "integer"),
        ("seed", False, "integer"),
        ("fuel", -1, "at least 0"),
        ("strict", "maybe", "true"),
        ("enabled", 1, "True or False"),
    ],
)
def test_bad_values_name_setting_value_and_allowed_set(name, value, allowed):
    with pytest.raises(SettingsError) as raised:
        resolve({f"kevolve.{name}": value})
    message = str(raised.value)
    assert f"kevolve.{name}" in message
    assert repr(value) in message
    assert allowed in message
    with pytest.raises(SettingsError):
        Settings(**{name: value})


def test_a_bad_variable_is_called_by_its_own_name():
    with pytest.raises(SettingsError, match=r"KEVOLVE_SEARCH='fast' cannot be used.*lookup"):
        resolve(environment={"KEVOLVE_SEARCH": "fast"})


def test_unknown_options_list_the_valid_ones_and_the_closest():
    with pytest.raises(UnknownSettingError) as raised:
        resolve({"kevolve.serach": "off"})
    assert raised.value.closest == "kevolve.search"
    assert "kevolve.min_speedup" in str(raised.value)
    assert "Did you mean 'kevolve.search'?" in str(raised.value)
    again = pickle.loads(pickle.dumps(raised.value))  # noqa: S301
    assert str(again) == str(raised.value)


def test_unknown_variables_list_the_valid_ones():
    with pytest.raises(UnknownSettingError, match="KEVOLVE_BUDGET_S") as raised:
        resolve(environment={"KEVOLVE_BUDGET": "3", "KEVOLVED": "mine"})
    assert raised.value.name == "KEVOLVE_BUDGET"
    assert raised.value.closest == "KEVOLVE_BUDGET_S"
    with pytest.raises(UnknownSettingError) as raised:
        resolve(environment={"KEVOLVE_": "3"})


def test_empty_variables_count_as_unset():
    assert resolve(environment={"KEVOLVE_FUEL": "", "KEVOLVE_SEARCH": " "}) == resolve()


def test_mode_and_option_name_the_same_thing():
    assert resolve(mode="max-autotune")[0].inductor_mode == "max-autotune"
    same = resolve({"kevolve.inductor_mode": "max-autotune"}, "max-autotune")[0]
    assert same.inductor_mode == "max-autotune"
    with pytest.raises(SettingsError, match="two modes"):
        resolve({"kevolve.inductor_mode": "default"}, "max-autotune")
    with pytest.raises(SettingsError, match="mode='quickest'"):
        resolve(mode="quickest")
    over = resolve(mode="max-autotune", environment={"KEVOLVE_INDUCTOR_MODE": "default"})[0]
    assert over.inductor_mode == "max-autotune"


def test_several_ranks_only_look_up_unless_told_otherwise():
    assert resolve(environment={"WORLD_SIZE": "8"})[0].search == "lookup"
    assert resolve(environment={"WORLD_SIZE": "1"})[0].search == "quick"
    assert resolve(environment={"WORLD_SIZE": "many"})[0].search == "quick"
    assert resolve(environment={"WORLD_SIZE": "8", "KEVOLVE_SEARCH": "full"})[0].search == "full"
    assert resolve({"kevolve.search": "quick"}, environment={"WORLD_SIZE": "8"})[0].search == "quick"


def test_several_ranks_are_seen_in_torch_distributed(monkeypatch):
    import torch.distributed as distributed

    monkeypatch.setattr(distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(distributed, "get_world_size", lambda: 2)
    assert resolve()[0].search == "lookup"
    monkeypatch.setattr(distributed, "get_world_size", lambda: 1)
    assert resolve(environment={"WORLD_SIZE": "8"})[0].search == "quick"


@pytest.mark.parametrize(
    ("options", "budget_s", "active", "searching"),
    [
        ({}, 60.0, True, True),
        ({"search": "full"}, 1800.0, True, True),
        ({"search": "full", "budget_s": 5}, 5.0, True, True),
        ({"budget_s": 0}, 0.0, True, True),
        ({"search": "lookup", "budget_s": 5}, 0.0, True, False),
        ({"search": "off"}, 0.0, False, False),
        ({"enabled": False}, 0.0, False, False),
    ],
)
def test_effective_budget(options, budget_s, active, searching):
    settings = Settings(**options)
    assert settings.effective_budget_s == budget_s
    assert (settings.active, settings.searching) == (active, searching)


def test_fingerprint_follows_what_influences_choices_and_nothing_else():
    base = Settings().fingerprint()
    changes = [
        {"search": "off"}, {"enabled": False}, {"fuel": 3}, {"min_speedup": 1.1}, {"numerics": "eager_tf32"},
        {"trust": ("local", "team")},
    ]  # fmt: skip
    for change in changes:
        assert Settings(**change).fingerprint() != base, change
    same = [{"search": "full"}, {"seed": 3}, {"budget_s": 3}, {"trials": 3}, {"report": "/r"}, {"store": "/s"}]
    for change in same:
        assert Settings(**change).fingerprint() == base, change


def test_default_store():
    assert default_store({"XDG_CACHE_HOME": "/var/me"}) == Path("/var/me/kevolve")
    assert default_store({"XDG_CACHE_HOME": "relative"}) == Path.home() / ".cache/kevolve"
    assert resolve(environment={"XDG_CACHE_HOME": "/var/me"})[0].store == Path("/var/me/kevolve")


def test_store_paths_are_absolute_and_not_created(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert Settings(store="here").store == tmp_path / "here"
    assert Settings(store="~/there").store == Path.home() / "there"
    assert list(tmp_path.iterdir()) == []


def test_worker_environment_keeps_the_toolchain_and_drops_secrets():
    kept = {
        "PATH": "/bin", "HOME": "/me", "CUDA_VISIBLE_DEVICES": "1", "TRITON_CACHE_DIR": "/t", "OMP_NUM_THREADS": "2",
        "TORCHINDUCTOR_CACHE_DIR": "/i", "XDG_CACHE_HOME": "/x", "CXX": "clang++", "LD_LIBRARY_PATH": "/lib",
        "PYTHONPATH": "/p",
    }  # fmt: skip
    dropped = {
        "HF_TOKEN": "x", "AWS_SECRET_ACCESS_KEY": "x", "TRITON_REMOTE_TOKEN": "x", "XDG_PASSWORD": "x",
        "KEVOLVE_SEARCH": "off", "SSH_AUTH_SOCK": "x", "RANK": "1", "OMPI_COMM_WORLD_RANK": "1",
    }  # fmt: skip
    environment = worker_environment({**kept, **dropped})
    assert environment == {**kept, "MALLOC_MMAP_MAX_": "0", "MALLOC_TOP_PAD_": "1073741824"}


def test_compiler_candidates():
    assert compiler_candidates({}) == ("g++", "clang++")
    assert compiler_candidates({"CXX": "icpx"}) == ("icpx", "g++", "clang++")
    assert compiler_candidates({"CXX": "clang++"}) == ("clang++", "g++")


def test_interpret_triton():
    assert interpret_triton({"TRITON_INTERPRET": "1"})
    assert not interpret_triton({"TRITON_INTERPRET": "0"})
    assert not interpret_triton({})


def test_the_process_environment_is_read_where_none_is_given(monkeypatch):
    monkeypatch.setenv("KEVOLVE_SEED", "17")
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.setenv("CXX", "my-cxx")
    assert Settings.resolve(None, None)[0].seed == 17
    assert interpret_triton()
    assert compiler_candidates()[0] == "my-cxx"
    assert worker_environment()["CXX"] == "my-cxx"
