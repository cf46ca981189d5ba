"""Kinds: what is registered is accepted, what is not is said with the nearest name. A metric has one direction."""

import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.config.check_training import measured_in_training
from pipeline.config.load import config_from, groups
from pipeline.config.registry import METRICS, NETWORKS, OBJECTIVES, SAMPLERS, SOURCES, Kind, Registry, direction
from pipeline.config.schema_metrics import network_of
from pipeline.runtime.errors import UserError

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("registry", [SOURCES, NETWORKS, OBJECTIVES, SAMPLERS, METRICS], ids=lambda r: r.setting)
def test_every_registered_place_can_be_imported(registry):
    assert [kind.name for kind in registry if kind.place and not callable(kind.load())] == []


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (
            "model.kind=unett",
            "model.kind: found 'unett', expected one of simple_unet, .* Did you mean 'unet'?",
        ),
        (
            "data.source.kind=glyph",
            "data.source.kind: found 'glyph', expected one of .* Did you mean 'glyphs'?",
        ),
        ("objective.kind=denoise", "objective.kind: found 'denoise', .*autoencoding.* Did you mean 'denoising'?"),
        ("sample.sampler.kind=dpm", "sample.sampler.kind: found 'dpm', expected one of euler, .* Did you mean 'ddpm'?"),
        (
            "objective.kind=variational",
            "variational, which trains a network that is a vector_autoencoder, but",
        ),
        ("sample.sampler.options={a: 1}", "sampler kind=dpmpp_2m has no settings of its own"),
        ("evaluate.options={kid: {a: 1}}", "evaluate.options: found 'kid', expected a metric with settings of its own"),
        (
            "plugins=[no_such_module]",
            "found no module 'no_such_module', expected no_such_module.py in the current",
        ),
    ],
)
def test_what_is_not_registered_is_said(overrides, said):
    with pytest.raises(UserError, match=said):
        config_from(["experiment=glyphs16", overrides])


def test_settings_of_another_kind_take_the_place_of_those_that_were_there():
    cfg = config_from(["experiment=glyphs16", "model={kind: dit, width: 64, heads: 4, patch: 4}"])
    assert (cfg.model.kind, cfg.model.width) == ("dit", 64)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("valid/loss", "minimize"),
        ("valid/psnr", "maximize"),
        ("valid/mean_ssim", "maximize"),
        ("in_loop/fd-domain", "minimize"),
        ("in_loop/accuracy-attributes", "maximize"),
        ("fid-768-clean@valid", "minimize"),
        ("rfd-domain", "minimize"),
        ("is", "maximize"),
        ("kid@valid", "minimize"),
        ("coverage-dinov2", "maximize"),
        ("kl-per-dimension", None),
        ("brisque", "minimize"),
        ("cnniqa", "minimize"),
    ],
)
def test_a_metric_has_one_direction_whatever_its_number_is_called(name, expected):
    assert direction(name) == expected


def test_a_metric_that_nobody_registered_has_no_direction():
    with pytest.raises(UserError, match=r"found 'precisoin', expected one of fd, .* Did you mean 'precision'?"):
        direction("in_loop/precisoin")


@pytest.mark.parametrize(
    ("name", "network"),
    [
        ("fd-domain", "domain"),
        ("fid", "inception"),
        ("sfid-clean", "inception"),
        ("cmmd", "clip"),
        ("psnr", None),
        ("kid-dinov2@valid", "dinov2"),
        ("fd-domain-infinity", "domain"),
        ("accuracy-attributes", "domain"),
    ],
)
def test_a_metrics_name_says_in_whose_features_it_is(name, network):
    assert network_of(name) == network


@pytest.mark.parametrize("name", [name for name in groups()["experiment"] if not name.startswith("photos")])
def test_everything_that_training_measures_has_a_direction(name):
    cfg = config_from([f"experiment={name}"])
    assert {direction(metric) for metric in measured_in_training(cfg)} <= {"minimize", "maximize"}


def test_two_kinds_of_one_name_are_refused():
    registry = Registry("thing.kind")
    registry.add(Kind(name="one", place="a:b"))
    registry.add(Kind(name="one", place="a:b"))
    with pytest.raises(UserError, match=r"thing\.kind: 'one' is registered twice, as a:b and as c:d"):
        registry.add(Kind(name="one", place="c:d"))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("import nothing_of_this_name", "'broken' imports 'nothing_of_this_name', which is not installed"),
        ("1 / 0", "'broken' fails when it is imported: ZeroDivisionError: division by zero"),
        (
            "from pipeline.config.registry import metric\nmetric('new', 'broken:f', direction='min')",
            "found direction='min'",
        ),
        (
            "from pipeline.config.registry import metric\nmetric('new', 'nowhere:f', direction='minimize')",
            "plugins: 'new' is registered as 'nowhere:f', expected \"module:name\" of a module that can be imported",
        ),
        (
            "from pipeline.config.registry import metric\nmetric('kid', 'broken:f', direction='minimize')",
            "metric: 'kid' is registered twice, as pipeline.metrics.suite:kernel and as broken:f",
        ),
    ],
)
def test_a_plugin_that_fails_is_said_without_a_traceback(tmp_path, text, said):
    (tmp_path / "broken.py").write_text(text)
    argv = ["-m", "slurm", "plan", "experiment=glyphs16", "plugins=[broken]"]
    done = subprocess.run([sys.executable, *argv], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2
    assert said in done.stderr.replace("\n", " ") and "Traceback" not in done.stderr
