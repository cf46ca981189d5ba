"""`python -m pipeline <train|sample|evaluate|compare|export|...> (RUN_DIR | experiment=NAME) [key=value ...]`."""

import importlib
import sys
import traceback

from pipeline.runtime.errors import NonFiniteError, RendezvousError, UserError, did_you_mean
from pipeline.runtime.parts import one_task_only

JOBS = {
    "train": ("pipeline.train.job", "train a model, or go on where it was interrupted"),
    "sample": ("pipeline.sample", "make images from a checkpoint, each from its own seed"),
    "reconstruct": ("pipeline.reconstruct", "what an autoencoder makes of images it was not trained on, with numbers"),
    "evaluate": ("pipeline.evaluate", "score a set of samples against reference statistics"),
    "score": ("pipeline.score", "score any images against any others: folders, archives, arrays, sample sets"),
    "visualize": ("pipeline.visualize", "pictures of the way from noise, between seeds, of edited and repaired images"),
    "likelihood": (
        "pipeline.likelihood",
        "bits per dimension of held-out images, for models with DDPM's steps",
    ),
    "compare": ("pipeline.compare", "tables and plots over runs"),
    "export": ("pipeline.export", "write a folder that diffusers loads"),
    "import": ("pipeline.import_diffusers", "make a run of such a folder, to train on or sample from"),
}
ALONE = ("visualize", "compare", "export", "import")  # jobs whose work tasks cannot share
BAD_INPUT, NON_FINITE, OUT_OF_MEMORY, NO_RENDEZVOUS = 2, 76, 77, 78


def main(words: list[str]) -> int:
    """Run one job; the exit code is 0 done, 2 bad input, 75 stopped and saved, 76 not finite, 77 out of memory,
    78 other ranks not found.
    """
    if not words or words[0] in ("-h", "--help", "help"):
        listed = "\n".join(f"  {name:<11} {text}" for name, (_, text) in JOBS.items())
        print(f"{__doc__}\n\n{listed}\n\n`python -m pipeline <job> --help` tells more.")
        return 0
    code = _code_of(words)
    if code in (BAD_INPUT, NON_FINITE) and (distributed := sys.modules.get("pipeline.runtime.distributed")):
        distributed.leave()  # so that the process ends with this code
    return code


def _code_of(words: list[str]) -> int:
    try:
        return _run(words[0], words[1:])
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return NO_RENDEZVOUS if isinstance(error, RendezvousError) else BAD_INPUT
    except NonFiniteError as error:
        print(f"not finite: {error}", file=sys.stderr)
        return NON_FINITE
    except Exception as error:
        if type(error).__name__ != "OutOfMemoryError":  # torch's; it need not be imported to be recognised
            raise
        traceback.print_exc()
        print("out of memory: lower train.micro_batch (the result stays the same) or sample.batch.", file=sys.stderr)
        return OUT_OF_MEMORY


def _run(job: str, words: list[str]) -> int:
    if job not in JOBS:
        raise UserError(f"'{job}' is no job. Jobs: {', '.join(JOBS)}.{did_you_mean(job, JOBS)}")
    if job in ALONE and not one_task_only(job):
        return 0
    module = importlib.import_module(JOBS[job][0])  # only the job that is asked for pays for its imports
    code: int = module.main(words)
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
