"""One step of a sweep, by whoever comes by: a job that has just ended, a tiny job chained to one that died, a person.

Nothing drives a sweep. `advance` looks at the disk and the queue, tells the study what has ended, chooses what comes
next, submits it, and chains a tiny job to whatever runs. All of it happens under one lock and can be done again from
wherever it was cut: what is there already is found, never made twice.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from optuna.trial import FrozenTrial, TrialState

from pipeline.runtime.errors import UserError
from pipeline.runtime.files import read_lines, write_json
from slurm import ledger
from slurm.ledger import LEDGER, State
from slurm.queue import Seen, look, mine
from slurm.sweep import batches, chained, trials
from slurm.sweep.folder import SweepDir
from slurm.sweep.runs import FAILED, Run, kept, make, runs_of, stages, value_of
from slurm.sweep.settings import SweepSettings
from slurm.sweep.space import Dimension, dimension, row_dimensions
from slurm.workflows import Launch

# What the machine did, not the configuration: worth another try.
PASSING = ("error", "rendezvous", "killed", "time_limit", "preempted", "node_failure", "vanished", "held")


@dataclass
class Outcome:
    """How one run of an open trial stands."""

    run: Run
    word: str  # complete, pruned, failed, active, open (to be submitted)
    launch: Launch | None = None
    value: float | None = None
    note: dict[str, Any] = field(default_factory=dict)
    ids: tuple[str, ...] = ()


@dataclass
class Progress:
    """What a step left."""

    words_by_state: dict[str, int]
    submitted: int = 0
    active: int = 0
    ended: bool = False
    stalled: str = ""

    def words(self) -> str:
        """One line."""
        counts = ", ".join(f"{n} {word}" for word, n in self.words_by_state.items() if n)
        more = f"; submitted {self.submitted} runs" if self.submitted else ""
        stalled = [self.stalled] if self.stalled else []
        told = f"{counts or 'no trial yet'}{more}{'; it has ended' if self.ended else ''}"
        return f"sweep: {'; '.join([told, *stalled] if counts or not stalled else stalled)}"


def advance(sweep: SweepDir, *, by_hand: bool = False, local: bool = False) -> Progress:
    """Go on with a sweep by one step.

    Args:
        by_hand: a person asks: a cancelled sweep goes on, and what was cancelled or stalled is tried again.
        local: the caller waits for what runs on this machine; there is no array that would hold back what is too much.
    """
    with sweep.lock():
        settings = sweep.settings()
        if sweep.cancelled.is_file():
            if not by_hand:
                return Progress({}, stalled="cancelled")
            sweep.cancelled.unlink()
        step = Step(sweep, settings, by_hand=by_hand, local=local)
        return step.take()


class Step:
    """One step, with the sweep's lock held."""

    def __init__(self, sweep: SweepDir, settings: SweepSettings, *, by_hand: bool, local: bool) -> None:
        """Opens the study."""
        self.sweep, self.settings, self.by_hand = sweep, settings, by_hand
        self.study = trials.open_study(sweep.journal, settings, repair=True)
        self.dimensions = dimensions_of(settings)
        self.all_at_once = settings.known_beforehand and not local  # all runs go into the queue, which holds them back
        self.open: dict[int, list[Outcome]] = {}
        self.held: dict[str, batches.Held] = {}

    def take(self) -> Progress:
        """Look, tell, choose, submit, chain."""
        self._look()
        for number, outcomes in list(self.open.items()):
            if self._settle(number, outcomes):
                del self.open[number]
        wanted = self._choose()
        active = [o for outcomes in self.open.values() for o in outcomes if o.word == "active"]
        stalled = ""
        try:
            submitted = chained.submit(self.sweep, self.settings, wanted, active=active, by_hand=self.by_hand)
        except chained.Stalled as error:
            submitted, stalled = [], str(error)
        running = [*(i for o in active for i in o.ids), *submitted]
        states = [t.state for t in self.study.get_trials(deepcopy=False)]
        counts = {word: states.count(state) for state, word in trials.WORDS.items()}
        counts["running"] = states.count(TrialState.RUNNING)
        ended = not self.open and not wanted
        return Progress(counts, len(submitted), len(running), ended, stalled)

    def _look(self) -> None:
        """How the runs of every trial stand that has not been told of."""
        wait = batches.unsettled(self.sweep)
        if wait > 0:
            time.sleep(wait)
        opened = [t for t in self.study.get_trials(deepcopy=False) if t.state == TrialState.RUNNING]
        pairs = {t.number: [self._made(run, t) for run in self._runs(t)] for t in opened}
        launches = {o.run.name: (o.run, o.launch) for os_ in pairs.values() for o in os_ if o.launch is not None}
        on_slurm = any(launch.cfg.cluster.executor == "slurm" for _, launch in launches.values())
        batches.adopt(self.sweep, mine() if on_slurm else [], launches)
        closing = {name: stages(launch) for name, (_, launch) in launches.items()}
        seen = look(ledger.open_ids((run.records, closing[name]) for name, (run, _) in launches.items()))
        for trial in opened:
            self.open[trial.number] = [self._judged(o, trial, seen=seen) for o in pairs[trial.number]]
        self.held = batches.held(self.sweep)

    def _runs(self, trial: FrozenTrial) -> Sequence[Run]:
        return runs_of(self.sweep, trial.number, self.settings.seeds)

    def _made(self, run: Run, trial: FrozenTrial) -> Outcome:
        """A run with its directory, made now where whoever chose it was killed before."""
        try:
            launch = make(self.sweep, self.settings, trial.params, run=run)
            final, value = run.final(), value_of(launch, self.settings)
        except UserError as error:
            return Outcome(run, "failed", note={"cause": "bad_config", "message": str(error)})
        if value is not None and value != value:  # not a number: nothing to search by
            return Outcome(
                run, "failed", launch, note={"cause": "non_finite", "message": f"{self.settings.metric} is nan"}
            )
        if value is not None:
            return Outcome(run, "complete", launch, value)
        return Outcome(run, final["word"] if final else "open", launch, note=final or {})

    def _judged(self, outcome: Outcome, trial: FrozenTrial, *, seen: Mapping[str, Seen]) -> Outcome:
        """A run as it stands. The disk is looked at again: what ended while Slurm was asked has its value by now."""
        if outcome.launch is None or outcome.word != "open":
            return outcome
        done = stages(outcome.launch)
        if all(done.values()):
            return self._made(outcome.run, trial)
        self._judge(outcome, ledger.states(outcome.run.records, done, seen)[list(done)[-1]])
        return outcome

    def _judge(self, outcome: Outcome, state: State) -> None:
        """From the queue's and the ledger's word: under way, to be submitted (again), or failed for good."""
        run = outcome.run
        if state.active:
            outcome.word, outcome.ids = "active", state.ids
            return
        if state.word == "blocked":
            ledger.note(run.records, "blocked", job=state.job, ids=state.ids)
        if state.word != "failed" and not (state.word == "cancelled" and state.message != "cancelled here"):
            return  # never submitted, cancelled with its sweep, or its data could not be prepared
        rows = read_lines(run.records.jobs / LEDGER)
        # What was cancelled, or waited for data that never came, was not a try.
        idle = {i for r in rows if r["event"] in ("cancelled", "blocked") for i in r["ids"]}
        tries = len({r["batch"] for r in rows if "batch" in r and not set(r["ids"]) & idle})
        cause = state.cause or "error"
        if (cause in PASSING and tries <= self.settings.retries) or (self.by_hand and cause == "cancelled"):
            return
        outcome.word, outcome.note = "failed", {"cause": cause, "message": state.message[-1000:], "tries": tries}
        write_json(run.path / FAILED, outcome.note)

    def _settle(self, number: int, outcomes: list[Outcome]) -> bool:
        """Tell the study of a trial whose runs have all ended; whether it has."""
        words = {o.word for o in outcomes}
        bad = words & {"failed", "pruned"}
        if "active" in words or ("open" in words and not bad):
            return False
        word = next((w for w in ("failed", "pruned") if w in words), "complete")
        values = [o.value for o in outcomes if o.value is not None]
        names = [o.run.name for o in outcomes]
        cost = batches.total(self.held, names)
        notes: dict[str, Any] = {
            "values": values,
            "runs": {o.run.name: kept(o.launch) for o in outcomes if o.launch is not None and o.word == "complete"},
            "gpu_hours": cost.gpu_hours,
            "hours": cost.hours,
        }
        notes |= next(({k: o.note[k] for k in ("cause", "message")} for o in outcomes if o.word == word and o.note), {})
        trial = self.study.get_trials(deepcopy=False)[number]
        mean = sum(values) / len(values) if word == "complete" else None
        trials.tell(self.study, trial, word, value=mean, notes=notes)
        return True

    def _choose(self) -> list[Outcome]:
        """The runs to submit now: of trials that exist, then of new ones."""
        wanted = [o for outcomes in self.open.values() for o in self._ready(outcomes)]
        active = sum(o.word == "active" for outcomes in self.open.values() for o in outcomes)
        while self.all_at_once or len(wanted) + active < self.settings.at_once:
            params = self._next()
            if params is None:
                break
            trial = trials.add(self.study, params, self.dimensions)
            outcomes = [self._made(run, trial) for run in self._runs(trial)]
            if all(o.word == "open" for o in outcomes):
                self.open[trial.number] = outcomes
                wanted += self._ready(outcomes)
            else:  # not valid, or a directory of that name is there already
                self._settle(trial.number, outcomes)
        return wanted if self.all_at_once else wanted[: max(self.settings.at_once - active, 0)]

    def _ready(self, outcomes: list[Outcome]) -> list[Outcome]:
        """Runs of a trial to submit. Where trials are pruned, the first seed shows whether the others are worth it."""
        if any(o.word in ("failed", "pruned") for o in outcomes):
            return []
        first_alone = self.settings.pruning.kind != "none" and outcomes[0].word != "complete"
        return [o for o in (outcomes[:1] if first_alone else outcomes) if o.word == "open"]

    def _next(self) -> Any:
        all_trials = self.study.get_trials(deepcopy=False)
        limit = self.settings.trials
        if limit is not None and len(all_trials) >= limit:
            return None
        if self.settings.gpu_hours is not None and not self._affordable(all_trials, self.settings.gpu_hours):
            return None
        return trials.next_params(all_trials, self.settings, self.dimensions)

    def _affordable(self, all_trials: Sequence[FrozenTrial], most: float) -> bool:
        """Whether one more trial, of the mean cost so far, fits into the budget beside those that run."""
        ended = [t for t in all_trials if t.state.is_finished()]
        names = [run.name for t in ended for run in self._runs(t)]
        mean = batches.total(self.held, names).gpu_hours / max(len(ended), 1)
        spent = batches.total(self.held).gpu_hours
        running = len(all_trials) - len(ended)
        return bool(spent + mean * (running + 1) <= most)


def dimensions_of(settings: SweepSettings) -> list[Dimension]:
    """Every varied key."""
    return [*row_dimensions(settings.rows), *(dimension(key, text) for key, text in settings.space.items())]


def trials_of(sweep: SweepDir) -> list[FrozenTrial]:
    """Every trial, as the journal has it; nothing is changed."""
    if not sweep.journal.is_file():
        return []
    return list(trials.open_study(sweep.journal, sweep.settings()).get_trials(deepcopy=False))
