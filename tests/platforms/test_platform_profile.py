from __future__ import annotations

from dataclasses import asdict

from kevolve_inductor.platforms.profile import Profile


def test_every_figure_names_its_source_and_absent_ones_have_none():
    profile = Profile.of("ncu", {"waves": 1.5, "occupancy": None, "stalls": {}})
    assert (profile.waves, profile.occupancy, profile.sources) == (1.5, None, {"waves": "ncu"})


def test_of_two_profiles_the_first_ones_figures_count():
    first = Profile.of("ncu", {"waves": 1.5, "launch_us": 3.0})
    second = Profile.of("torch profiler", {"waves": 2.0, "launches": 4}) | Profile.without(
        "a tool", "it is not installed"
    )
    both = first | second
    assert (both.waves, both.launch_us, both.launches) == (1.5, 3.0, 4)
    assert both.sources == {"waves": "ncu", "launch_us": "ncu", "launches": "torch profiler"}
    assert both.missing == {"a tool": "it is not installed"}


def test_profiles_of_other_versions_can_be_read():
    profile = Profile.of("ncu", {"waves": 1.5, "stalls": {"data from memory": 0.5}})
    assert Profile.from_json(asdict(profile)) == profile
    assert Profile.from_json({"waves": 1.5, "from_the_future": 3}) == Profile(waves=1.5)
