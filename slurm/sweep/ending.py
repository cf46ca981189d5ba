"""What happens at a sweep's end, whichever it is: the report is written, or what is under way is cancelled."""

import os
import subprocess
import sys
import time
from pathlib import Path

from optuna.trial import TrialState

from pipeline.runtime.files import write_json
from pipeline.runtime.parts import without_launcher
from slurm import cancel as cancelling
from slurm import ledger
from slurm.executor import sbatch
from slurm.queue import mine
from slurm.sweep import here
from slurm.sweep.chained import chained_ids
from slurm.sweep.driver import trials_of
from slurm.sweep.folder import SweepDir
from slurm.sweep.measured import measured
from slurm.sweep.runs import runs_of, shared, stages
from slurm.workflows import Launch


def write(sweep: SweepDir, *, finished: bool = True) -> Path:
    """Write the report, the plots and the TensorBoard page; of a sweep over one run, the comparison. The report."""
    from slurm.sweep import board, report

    settings = sweep.settings()
    found = measured(sweep)
    path = report.write(sweep, found)
    board.write(sweep, found)
    if settings.run is not None:
        words = ["compare", str(settings.run), "--out", str(sweep.path / "comparison")]
        alone = without_launcher(os.environ)  # rank 0 of a trial's job may be the one that ends the sweep
        subprocess.run(
            [sys.executable, "-m", settings.program, *words], env=alone, stdout=subprocess.DEVNULL, check=False
        )
    if finished:
        write_json(sweep.finished, {"time": time.time()})
    return path


def refresh(sweep: SweepDir) -> None:
    """Bring the page up to date while the sweep goes on."""
    from slurm.sweep import board

    board.write(sweep)


def cancel(sweep: SweepDir) -> list[str]:
    """Cancel every job of a sweep; the names of its runs that were under way. Training saves first."""
    with sweep.lock():
        write_json(sweep.cancelled, {"time": time.time()})
        settings = sweep.settings()
        opened = [t.number for t in trials_of(sweep) if t.state == TrialState.RUNNING]
        runs = [run for n in opened for run in runs_of(sweep, n, settings.seeds) if run.path.is_dir()]
        launches = {run: run.launch() for run in runs}
        ended = here.end(sweep)
        ids: list[str] = []
        if any(launch.cfg.cluster.executor == "slurm" for launch in launches.values()):
            live = {seen.id for seen in mine() if seen.active}
            ids += [i for i in chained_ids(sweep) if i in live]
            for run, launch in launches.items():
                mine_now = _own_ids(launch, ledger.submissions(run.records)) & live
                if mine_now:
                    ended.append(run.name)
                    ids += sorted(mine_now)
                    for stage in stages(launch):
                        ledger.note(run.records, "cancelled", job=stage, ids=sorted(mine_now))
            _cancel_shared([shared(launch) for launch in launches.values()])
        for first in range(0, len(ids), 500):
            sbatch(["scancel", *ids[first : first + 500]])
    return ended


def _own_ids(launch: Launch, known: dict[str, ledger.Submission]) -> set[str]:
    return {i for stage in stages(launch) if stage in known for i in known[stage].ids}


def _cancel_shared(launches: list[Launch]) -> None:
    """What these runs submitted for all: data, latents."""
    cancelling.cancel([launch for launch in launches if launch.jobs and ledger.submissions(launch.run)])
