"""What a plan says a run will cost: from what was measured, marked as an estimate, or that nothing was."""

import math

import tiny
from launching import profile

from pipeline.config.load import config_from
from pipeline.runtime import cli
from pipeline.runtime.files import read_lines
from pipeline.runtime.run_dir import create_run
from slurm.costs import H100, estimates, in_all, like, measured_in
from slurm.plan import derived
from slurm.workflows import launch_for


def test_a_run_adds_its_speed_to_what_plans_know(tmp_path, capsys):
    cfg = tiny.config(tmp_path)
    tiny.prepare(cfg)
    assert estimates(cfg, launch_for(cfg, make=False).jobs, train_images=60) == {}
    run = tiny.run(cfg)
    (found,) = measured_in(cfg.runs_dir)
    rates = [row["speed/images_per_second"] for row in read_lines(run.metrics) if "speed/images_per_second" in row]
    assert min(rates) <= found.images_per_second <= max(rates)
    assert (found.batch, found.precision, found.shape, found.device) == (8, "fp32", (8, 1), "cpu x 1 threads")
    longer = tiny.revalidated(cfg, name="longer", train={"duration": "1000000 steps"})
    said = estimates(longer, launch_for(longer, make=False).jobs, train_images=60)
    assert said["train"].startswith("about ") and "GPU" not in said["train"] and str(run.path) in said["train"]
    assert "from the speed of training" in said["sample"] and set(said) == {"train", "sample"}
    create_run(longer)
    assert cli.main("slurm", ["plan", str(cfg.runs_dir / "longer")]) == 0
    shown = capsys.readouterr().out
    assert f"  estimate: {said['train']}\n" in shown and "nothing like" not in shown
    epochs = tiny.revalidated(cfg, name="epochs", train={"duration": "3 epochs"})
    said = estimates(epochs, launch_for(epochs, make=False).jobs, train_images=None)
    assert said["train"] == "known once the data is prepared" and "from the speed of training" in said["sample"]


def test_a_plan_says_once_that_nothing_was_measured_and_what_the_experiment_says(tmp_path, capsys):
    there = [f"runs_dir={tmp_path}", f"data_dir={tmp_path}/data", "cluster=local"]
    says = {  # as it stands in the header: of several lines, or nothing but that it is not measured
        "glyphs16": "two minutes of two cores",
        "bedrooms64_ddpm": "300 thousand images: 6 to 9 minutes of an H100 (557 to 868 images/s beside the GAN, "
        "measured over 159 epochs); 31 x 1,000 samples of 1,000 steps are more: half an hour each of an "
        "A100 (estimate)",
        "glyphs32": "",
    }
    for name, cost in says.items():
        assert cli.main("slurm", ["plan", f"experiment={name}", *there]) == 0
        shown = capsys.readouterr().out
        unknown = f"estimates      nothing like these jobs was measured; they come from runs in {tmp_path}\n"
        assert shown.count("nothing like") == 1 and unknown in shown and "  estimate:" not in shown
        assert (f"cost           {name} as shipped: {cost}\n" in shown) == bool(cost), shown


def test_a_plan_adds_up_gpu_hours_and_the_longest_chain(tmp_path):
    cfg = tiny.config(tmp_path)
    tiny.prepare(cfg)
    minutes = {"prepare": 60, "train": 120, "sample": 30, "evaluate": 20, "compare": 10}
    cluster = profile("slurm_generic", **{name: {"minutes": m} for name, m in minutes.items()})
    asks = {"train": {"gpus": 4, "nodes": 2, "starts": 3}, "sample": {"gpus": 1, "parts": 6, "at_once": 3}}
    changed = {k: getattr(cluster, k).model_copy(update=v | {"tasks": None}) for k, v in asks.items()}
    jobs = launch_for(cfg.model_copy(update={"cluster": cluster.model_copy(update=changed)}), make=False).jobs
    said = in_all(cfg, jobs, train_images=60)
    # Three starts of 8 GPUs for 2 hours; six parts of one GPU for half an hour, three at a time: twice as long.
    assert said == {"in all": "at most 51 GPU hours, 8 h 30 min (time limits)"}
    assert in_all(cfg, jobs[:1], train_images=60) == {"in all": "at most 1 h 0 min (time limits)"}
    assert in_all(cfg, (), train_images=60) == {}
    left = [job for job in jobs if job.name not in ("prepare", "train")]  # the others are complete
    assert in_all(cfg, left, train_images=60) == {"in all": "at most 3 GPU hours, 1 h 30 min (time limits)"}


def test_another_network_size_or_precision_is_not_alike(tmp_path):
    cfg = tiny.config(tmp_path)
    tiny.prepare(cfg)
    tiny.run(cfg)
    known = list(measured_in(cfg.runs_dir))
    assert like(cfg, known) is not None
    for changes in ({"model": {"width": 16}}, {"train": {"precision": "tf32"}}, {"data": {"channels": 3}}):
        assert like(tiny.revalidated(cfg, **changes), known) is None


def test_the_figures_of_an_h100_are_known(tmp_path):
    overrides = [
        "experiment=photos16",
        "data.image_size=32",
        "data.source.path=x",
        "train.precision=bf16",
        "train.global_batch=512",
    ]
    overrides += ["model.width=64", "model.multipliers=[1,2,2]", "model.blocks=2", "model.attention=[16,8]"]
    overrides += ["model.head_channels=32", "model.groups=32"]
    cfg = config_from([*overrides, f"runs_dir={tmp_path}", "train.duration=10000 steps", "cluster=slurm_generic"])
    cfg = cfg.model_copy(update={"cluster": cfg.cluster.model_copy(update={"train": gpus(cfg, 2)})})
    found = like(cfg, [])
    assert found is not None and (found.device, found.images_per_second) == (H100, 9723)
    train = estimates(cfg, launch_for(cfg, make=False).jobs, train_images=None)["train"]
    seconds = 10000 * 512 / (2 * 9723)  # 263 s on both: 0.15 GPU hours
    assert train.startswith(f"about 4 min {seconds - 240:.0f} s, 0.15 GPU hours, 2.7 GiB of GPU memory, ")
    whole = in_all(cfg, launch_for(cfg, make=False).jobs, train_images=None)
    assert whole["estimate"] == "0.15 GPU hours of train and sample"  # 1,000 samples are next to nothing
    assert train.endswith("docs/performance.md; as if 2 processes were 2 times as fast)")


def gpus(cfg, number):
    return cfg.cluster.train.model_copy(update={"gpus": number, "nodes": 1, "tasks": None})


def test_a_plan_warns_of_a_ddpm_that_does_not_end_in_noise():
    def said(*overrides, experiment="flowers64_ddpm"):
        return derived(config_from([f"experiment={experiment}", *overrides])).get("noise")

    left = math.sqrt(math.prod(1 - (1e-4 + k * (0.02 - 1e-4) / 299) for k in range(300)))  # DDPM, equation 4
    assert f" {left:.0%} of the image is left" in said()  # its betas are those of 1,000 time steps
    assert said("diffusion.levels.rescale_betas=true") is None
    assert said("diffusion.levels.timesteps=1000") is None
    assert said("data.image_size=16") is None  # the noise of few pixels does not average out
    assert said(experiment="glyphs16") is None  # EDM has no last time step
