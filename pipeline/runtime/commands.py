"""The table of commands: see `pipeline.runtime.cli`. Nothing here imports what a command needs."""

from pipeline.runtime.cli import Command

_RUN, _DATA, _RUNS = "RUN [key=value ...]", "DATA [key=value ...]", "RUN_DIR|FOLDER ..."
_STEP = "--step STEP  of the checkpoint: a number, or best; default: sample.step, or else the newest"
_PART = "--part K/N  only every N-th shard from the K-th, counted from 0; array: the place in a Slurm array"
_WORKERS = "--workers N  processes; default: every core"
_EXAMPLE = "runs/glyphs16"
_OR_FOLDER = "Instead of DATA, a folder of shards."

LISTS = (
    Command(
        *("list", "pipeline.runtime.inventory:main", "runs, checkpoints, data, experiments, models, settings"),
        arguments="runs|checkpoints|data|experiments|models|settings [FOLDER|RUN_DIR|PREFIX]",
        more="Of runs and data, those in FOLDER (default: runs, data); of settings, those that begin with PREFIX.",
        examples=("experiments", "settings train.optim", "runs", f"checkpoints {_EXAMPLE}", "data"),
    ),
    Command(
        *("rm", "slurm.remove:main", "remove runs, scorings, sweeps, or prepared data that no run uses; it asks first"),
        arguments="[RUN_DIR|SWEEP_DIR|DATA_DIR ...]",
        more="Refused for what is under way, and for what a run or a sweep needs. Looked through: ./runs, ./sweeps and "
        "the folders of what is to be removed.",
        options=(
            "--yes  do not ask",
            "--unused  all prepared data that no run uses",
            "--data FOLDER  of the data of --unused; default: data",
            "--runs FOLDER...  where more runs lie, which may need it",
        ),
        examples=(_EXAMPLE, "runs/a runs/b --yes", "--unused"),
    ),
)
RUNS = (
    Command(
        *("submit", "slurm.commands:submit", "run what is not complete of an experiment, or queue it"),
        arguments=_RUN,
        more="On a cluster this returns at once. With cluster=local, everything runs here, in order; with "
        "cluster=here, in the allocation that you hold. Several experiments: experiment=a,b.",
        options=("--until JOB  and what comes before it", "--only JOB  what it waits for is complete, or under way"),
        examples=("experiment=glyphs16 cluster=local", _EXAMPLE, f"{_EXAMPLE} --until train"),
    ),
    Command(
        *("submit score", "slurm.commands:submit_score", "score two sets of images as a job of a cluster, or here"),
        arguments="A B [evaluate.key=value ...] [cluster=NAME]",
        more="As `score` does it, with what `cluster.evaluate` asks for; several tasks share the images. Both sets and "
        "all settings are checked first. It stands in RUNS_DIR/score-A-B-HASH, which status, logs, cancel and retry "
        "take as they take a run; name=NAME calls it otherwise. The same images and settings again: nothing to do.",
        options=(
            "--size N  cut out each image's central square and resize it to N pixels",
            "--json FILE  the result; default: result.json in its folder",
            "--csv FILE  also write one row a metric into this file",
            "--cache FOLDER  of features, which all nodes see; default: RUNS_DIR/.features",
        ),
        examples=("fakes photos.zip evaluate.inception.weights=inception.pth cluster=komondor --json scores.json",),
        alone=True,
    ),
    Command(
        *("plan", "slurm.commands:plan_", "what submit would do, and what follows from the settings"),
        arguments=_RUN,
        options=("--sbatch FOLDER  write it as scripts, to submit by hand",),
        examples=("experiment=glyphs16", "experiment=glyphs16 cluster=slurm_generic --sbatch scripts"),
    ),
    Command(
        *("status", "slurm.commands:status_", "every job of every run: how far, or why not and what to do"),
        arguments=f"[{_RUNS}]",
        examples=("", _EXAMPLE),
    ),
    Command(
        *("logs", "slurm.commands:logs_", "the newest log of a job"),
        arguments="RUN_DIR [JOB]",
        options=("-f --follow  print what comes until the job ends", "-n --lines N  so many of its last; default: 40"),
        examples=(f"{_EXAMPLE} train -f",),
    ),
    Command(
        *("cancel", "slurm.commands:cancel_", "end what is under way; training saves first"),
        arguments=_RUNS,
        options=("--job JOB  this job alone",),
        examples=(_EXAMPLE, f"{_EXAMPLE} --job sample"),
    ),
    Command(
        *("retry", "slurm.commands:retry", "queue again what failed, with the settings of its submission"),
        arguments=_RUNS,
        examples=(_EXAMPLE,),
    ),
    Command(
        *("preflight", "slurm.commands:preflight_", "look at a partition, in a minute: GPUs, network, disks, signals"),
        arguments="[key=value ...]",
        options=("--wait SECONDS  for its start; default: 300",),
        examples=("cluster=slurm_generic", "cluster=slurm_generic experiment=glyphs16 --wait 3600"),
    ),
)
_SWEPT = "experiment=glyphs16 name=rates train.optim.lr=1e-3,2e-3"
_VALUES = "A setting takes several values (key=1,2), or an interval to search in (key=interval(0,1)); sweep=NAME takes "
_VALUES += "those of configs/sweep; run=RUN_DIR samples one run's checkpoint in several ways."
SWEEPS = (
    Command(
        *("sweep submit", "slurm.sweep.command:submit", "begin a sweep, or queue again what is not complete of one"),
        arguments="SWEEP_DIR [cluster.key=value ...] | experiment=NAME name=NAME key=1,2 [sweep.key=value ...]",
        more=f"{_VALUES} Of a sweep that is there, jobs may run elsewhere, or ask for more.",
        examples=(f"{_SWEPT} cluster=local", "sweep=guidance run=runs/glyphs16", "sweeps/rates"),
    ),
    Command(
        *("sweep plan", "slurm.sweep.command:plan", "what sweep submit would run, and the most that it can cost"),
        arguments="experiment=NAME name=NAME key=1,2 [sweep.key=value ...]",
        more=f"{_VALUES} Nothing is written.",
        examples=(_SWEPT,),
    ),
    Command(
        *("sweep status", "slurm.sweep.command:status", "every trial: its state, what came of it, why it failed"),
        arguments="SWEEP_DIR",
        examples=("sweeps/rates",),
    ),
    Command(
        *("sweep report", "slurm.sweep.command:report", "write report.md, trials.csv, trials.json, plots"),
        arguments="SWEEP_DIR",
        examples=("sweeps/rates",),
    ),
    Command(
        *("sweep extend", "slurm.sweep.command:extend", "more trials, more values, or another budget"),
        arguments="SWEEP_DIR key=value ...",
        examples=("sweeps/rates train.optim.lr=4e-3", "sweeps/rates sweep.trials=40"),
    ),
    Command(
        *("sweep cancel", "slurm.sweep.command:cancel", "end what is under way; sweep submit goes on from there"),
        arguments="SWEEP_DIR",
        examples=("sweeps/rates",),
    ),
)
JOBS = (
    Command(
        *("train", "pipeline.train.job:main", "train a model, or go on where it was interrupted"),
        arguments=_RUN,
        options=("--dry-run  print the settings and what follows from them, and stop",),
        examples=(_EXAMPLE, "experiment=glyphs16 name=wide model.width=64 --dry-run"),
    ),
    Command(
        *("sample", "pipeline.sample:main", "make images from a checkpoint, each from its own seed"),
        arguments=_RUN,
        more="It makes as many as the run's sample.count says, by default 1,024; sample.count=64 makes 64.",
        options=(
            _STEP,
            _PART,
            "--partial  finish the set with the shards that are there",
            "--png FOLDER  also write each image as a file, 000042-rose.png for seed 42; what is there stays",
        ),
        examples=(
            _EXAMPLE,
            f"{_EXAMPLE} sample.count=5000 sample.sampler.guidance.scale=2",
            f"{_EXAMPLE} 'sample.classes=[A, C]' sample.count=64 --png letters",
        ),
    ),
    Command(
        *("evaluate", "pipeline.evaluate:main", "score sets of samples against reference statistics"),
        arguments=_RUN,
        options=("--part K/N  compute this share of the features alone, and write no result",),
        examples=(_EXAMPLE, f"{_EXAMPLE} sample.sampler.guidance.scale=2"),
    ),
    Command(
        *("curve", "pipeline.curve:main", "score samples of every checkpoint that was kept, and draw the curve"),
        arguments=_RUN,
        more="Checkpoints stay where train.keep_every says so. What is there already is not done again.",
        options=("--metric NAME...  draw this metric alone; may be repeated",),
        examples=(f"{_EXAMPLE} sample.count=1000 --metric fid",),
        alone=True,
    ),
    Command(
        *("compare", "pipeline.compare:main", "tables and plots over runs"),
        arguments="RUN_DIR ...",
        more="A folder of runs stands for all in it that have results. Numbers stand in one table only if they were "
        "measured against the same images in the same features.",
        options=(
            "--out FOLDER  of the table and the plots; default: comparison, beside the first run",
            "--metric NAME...  show this metric alone; may be repeated",
        ),
        examples=(f"{_EXAMPLE} runs/wide --metric fd-domain",),
        alone=True,
    ),
    Command(
        *(
            "score",
            "pipeline.score:main",
            "score any images against any others: folders, archives, arrays, sample sets",
        ),
        arguments="A B [evaluate.key=value ...]",
        more="B is the reference. A folder, zip or tar of images, webdataset tars, .npy or .npz, prepared data, a "
        "sample set, a run; B also an .npz with mu and sigma.",
        options=(
            "--size N  cut out each image's central square and resize it to N pixels",
            "--json FILE  also write everything that was measured into this file",
            "--csv FILE  also write one row a metric into this file",
            "--cache FOLDER  of features; default: ~/.cache/mudi/score",
            "--part K/N  compute this share of the features alone, and no result",
            "--check  print what would be scored, and compute nothing",
        ),
        examples=("fakes photos.zip evaluate.inception.weights=inception.pth --json scores.json",),
        own=True,
    ),
    Command(
        *("reconstruct", "pipeline.reconstruct:main", "what an autoencoder makes of images it was not trained on"),
        arguments=_RUN,
        options=(_STEP, "--part K/N  only every N-th shard from the K-th, and no result"),
        examples=("runs/latent_kl_f4",),
    ),
    Command(
        *(
            "visualize",
            "pipeline.visualize:main",
            "pictures of the way from noise, between seeds, of edited and repaired images",
        ),
        arguments="RUN strip|interpolate|edit|inpaint [key=value ...]",
        options=(
            "--seeds LIST  such as 0-7, or 3,5,8; default: 0-7",
            "--frames N  images a row, of strip and interpolate; default: 8",
            "--show estimate|noisy|both  of strip; default: estimate",
            "--interpolation spherical|linear  of interpolate; default: spherical",
            "--classes A,B  of interpolate: from one class to another, by number, each seed's noise kept",
            "--space z|w  of interpolate: a GAN's z, or its styles; default: z",
            "--sigmas LIST  noise levels of edit, such as 0.5,1,2",
            "--image FILE  of edit and inpaint: of the size that the model draws",
            "--mask FILE  of inpaint: white is painted anew, black stays",
            _STEP,
            "--to FILE  the PNG to write; default: in the run directory",
        ),
        examples=(f"{_EXAMPLE} strip --seeds 0-7", f"{_EXAMPLE} edit --image a.png --sigmas 0.5,1,2"),
        alone=True,
        own=True,
    ),
    Command(
        *("demo", "pipeline.demo:main", "a page in the browser that draws with the model of a run or an export"),
        arguments="RUN | EXPORT [key=value ...]",
        more="EXPORT: a folder that `export` wrote; nothing else of the run is needed. The page needs `pip install "
        "'mudi[demo]'`, and no internet.",
        options=(
            _STEP,
            "--host HOST  the address to listen on; default: 127.0.0.1, which only this machine reaches",
            "--port N  default: the first free one from 7860 on",
        ),
        examples=(_EXAMPLE, f"{_EXAMPLE} sample.sampler.steps=8 --port 8000", "given/letters-diffusers"),
        alone=True,
    ),
    Command(
        *(
            "likelihood",
            "pipeline.likelihood:main",
            "bits per dimension of held-out images, with DDPM's steps",
        ),
        arguments=_RUN,
        options=(
            "--split NAME  whose images are coded; default: valid",
            "--images N  this many, spread over the split; default: all",
            _STEP,
        ),
        examples=("runs/glyphs16_ddpm --images 100",),
    ),
    Command(
        *("export", "pipeline.export:main", "write a folder that diffusers loads"),
        arguments=_RUN,
        options=(
            _STEP,
            "--format diffusers|safetensors  default: diffusers",
            "--to FOLDER  the folder to write; default: in the run directory",
        ),
        examples=(_EXAMPLE, f"{_EXAMPLE} --format safetensors --to exported sample.weights=network"),
        alone=True,
        own=True,
    ),
    Command(
        *(
            "import",
            "pipeline.import_diffusers:main",
            "make a run of a folder that export or diffusers wrote, to go on from",
        ),
        arguments="FOLDER name=RUN data=DATA [key=value ...]",
        examples=("exported name=from-elsewhere data=glyphs16",),
        alone=True,
        own=True,
    ),
)
STAGES = (
    Command(
        *("all", "data_prep.commands:prepare", "fetch, shard, verify, then the references that evaluation needs"),
        arguments=_DATA,
        options=(_WORKERS,),
        examples=("experiment=glyphs16", "data=folder data.source.path=/my/images data.image_size=32"),
    ),
    Command(
        *("fetch", "data_prep.commands:fetch", "find, or download, the source and list its images"),
        arguments=_DATA,
        examples=("data=glyphs16",),
    ),
    Command(
        *("fetch weights", "data_prep.commands:weights", "download networks that evaluation needs, on a login node"),
        arguments="[NAME ...]",
        options=("--into FOLDER  default: weights", "--mirror URL  from URL/NAME/FILE, not from their own homes"),
        examples=("", "inception niqe --into weights"),
    ),
    Command(
        *("shard", "data_prep.commands:make_shards", "crop and encode the images into shards"),
        arguments=_DATA,
        more="The bytes depend on neither option.",
        options=(_WORKERS, _PART),
        examples=("data=glyphs16", "data=glyphs16 --part 0/8"),
    ),
    Command(
        *("verify", "data_prep.commands:check_shards", "read every shard again and compare"),
        arguments=_DATA,
        more=_OR_FOLDER,
        options=(_WORKERS,),
        examples=("data=glyphs16",),
    ),
    Command(
        *("encode", "data_prep.commands:make_latents", "images to latents of an autoencoder"),
        arguments=_RUN,
        options=(_WORKERS, _PART),
        examples=("runs/latent",),
    ),
    Command(
        *("reference", "data_prep.commands:make_reference", "statistics and a classifier of the data, for evaluation"),
        arguments=_DATA,
        examples=("data=glyphs16",),
    ),
    Command(
        *("inspect", "data_prep.commands:inspect", "print counts and draw a contact sheet"),
        arguments=_DATA,
        more=_OR_FOLDER,
        examples=("data=glyphs16",),
    ),
)
COMMANDS = {
    "Look things up": LISTS,
    "Run an experiment, here or on a cluster": RUNS,
    "Sweeps: grids and searches, each as one job array": SWEEPS,
    "Do one job of a run": JOBS,
    "Prepare data": STAGES,
}
