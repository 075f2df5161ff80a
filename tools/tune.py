"""Better settings by trying: `python -m tools.tune --trials 30 -- --data FOLDER --model ... --epochs 8`; after `--`, main.py's flags.

Each trial is an ordinary run of main.py below OUT, with its own log; one that falls behind the median of the others is ended early.
lr, rho, mixup and weight decay are tried, but those that are among the flags. All is kept in OUT/study.db: the same command goes on
where it stopped, and several may run at once. The best of many trials flatters itself: confirm it with other seeds and folds.
"""

from __future__ import annotations

import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import tyro
from filelock import FileLock
from tyro.conf import Positional

import metrics
import record
from config import Config
from text import INTERRUPTED, as_program, ending_signals

MAIN = Path(__file__).parents[1] / "main.py"
PATIENCE = 2  # epochs before a trial may be ended: a rate that warms up slowly is no failure
RANGES = {  # what is tried: the few knobs that move the score; the rest follow from data and machine
    "lr": {"low": 3e-4, "high": 0.02, "log": True}, "rho": {"low": 0.0, "high": 0.2, "step": 0.01},
    "mixup": {"low": 0.0, "high": 0.8, "step": 0.05}, "weight_decay": {"low": 1e-5, "high": 1e-2, "log": True}}


def tried(flags: tuple[str, ...]) -> list[str]:
    """The knobs that `flags` leave open."""
    given = {flag.removeprefix("--").split("=")[0].replace("-", "_") for flag in flags}
    return [knob for knob in RANGES if knob not in given]


def arguments(values: dict) -> list[str]:
    return [part for knob, value in values.items() for part in (f"--{knob.replace('_', '-')}", f"{value:.4g}")]  # no 0.7000000000000001


def run_trial(trial, flags: tuple[str, ...], out: Path) -> float:
    """The validation loss of what a run with the trial's knobs keeps; the run reports its epochs by its log.csv."""
    import optuna
    folder = out / f"trial-{trial.number:03d}"
    with (out / f"{folder.name}.txt").open("w") as screen:
        values = {knob: trial.suggest_float(knob, **RANGES[knob]) for knob in tried(flags)}
        command = [sys.executable, str(MAIN), *flags, *arguments(values), "--out", str(folder)]
        process = subprocess.Popen(command, stdout=screen, stderr=screen)
        seen = 0
        try:
            while True:
                ended = process.poll() is not None  # asked before the log is read, so that its last row is not missed
                log = pd.read_csv(folder / "log.csv") if (folder / "log.csv").exists() else pd.DataFrame()
                for row in log.iloc[seen:].itertuples():
                    seen += 1
                    if row.epoch:  # the head alone is the same in all trials
                        trial.report(row.val_loss, int(row.epoch))
                    if trial.should_prune() and not ended:
                        raise optuna.TrialPruned
                if ended:
                    break
                time.sleep(1)
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)  # main.py finishes its step and saves
                process.wait()
    if process.returncode:
        raise record.RunError(f"{folder}: main.py ended with code {process.returncode}; {screen.name} says why.")
    _, probs, labels = record.read_answers(folder / "val.csv")
    return metrics.log_loss(probs, labels)


def tune(flags: tuple[str, ...], trials: int, out: Path):
    """The optuna study after `trials` more trials; the first of all takes the defaults, so that a gain can be seen. One that fails ends
    the study only where none has gone well before: a rate that is too high is an answer, a misspelt flag is not.

    Raises ValueError for flags that are no trial's, or not those that the study began with; RunError.
    """
    import optuna
    config = tyro.cli(Config, args=list(flags))
    if config.fold < 0 or config.dry_run or config.resume or config.out:
        raise ValueError("a trial is one training in a folder of its own: drop --fold -1, --dry-run, --resume and --out.")
    if not tried(flags):
        raise ValueError(f"all that would be tried is given: drop one of {', '.join('--' + knob.replace('_', '-') for knob in RANGES)}.")
    if trials < 1:
        raise ValueError(f"--trials {trials}: use 1 or more.")
    optuna.logging.set_verbosity(optuna.logging.ERROR)  # a warning tells of a trial that failed with its traceback
    record.new_folder(out, config.model)
    with FileLock(out / ".lock"):  # several may begin at once
        study = optuna.create_study(
            storage=f"sqlite:///{out / 'study.db'}", study_name=out.name, load_if_exists=True, direction="minimize",
            sampler=optuna.samplers.TPESampler(), pruner=optuna.pruners.MedianPruner(n_startup_trials=4, n_warmup_steps=PATIENCE))
        first = all(trial.state.name == "FAIL" for trial in study.trials)  # of those that count: flags may have been mended since
        began = study.user_attrs.get("flags")
        if not first and began != list(flags):
            raise ValueError(f"{out}: its trials have other flags ({shlex.join(began)}), and other scores with them. Give another --out.")
        study.set_user_attr("flags", list(flags))
        if first:
            study.enqueue_trial({knob: getattr(Config, knob) for knob in tried(flags)})

    def tell(study, trial) -> None:
        failed = f"failed: trial-{trial.number:03d}.txt says why"
        said = {"COMPLETE": f"val loss {trial.value or 0:.4f}", "PRUNED": "ended early", "FAIL": failed}[trial.state.name]
        print(f"trial {trial.number:3d}  {said}  " + "  ".join(f"{knob} {v:.4g}" for knob, v in trial.params.items()), flush=True)

    for _ in range(trials):
        went_well = any(trial.state.name == "COMPLETE" for trial in study.trials)
        study.optimize(lambda trial: run_trial(trial, flags, out), 1, callbacks=[tell], catch=(record.RunError,) if went_well else ())
    return study


def main(flags: Positional[tuple[str, ...]] = (), trials: int = 20, out: Path = Path("runs/tune")) -> None:
    """Make more trials, and say which settings were the best.

    Args:
        flags: main.py's own, after `--`.
        trials: how many more to make.
        out: folder of the study and its runs.
    """
    try:
        import optuna  # noqa: F401
    except ImportError:
        sys.exit("tuning needs the package optuna: pip install -r requirements-extra.txt")
    for number in ending_signals():  # all as Ctrl-C: the trial's run is ended too
        signal.signal(number, signal.default_int_handler)
    try:
        study = tune(flags, trials, out)
    except KeyboardInterrupt:
        print("stopped; the same command goes on with further trials", file=sys.stderr)
        sys.exit(INTERRUPTED)
    if not any(trial.state.name == "COMPLETE" for trial in study.trials):
        raise ValueError(f"{out}: each trial was ended early. Make more: the same command once more.")
    best = study.best_trial
    command = shlex.join(["python", "main.py", *flags, *arguments(best.params)])
    print(f"best: trial {best.number}, val loss {best.value:.4f}. Confirm with other seeds:\n  {command} --seed 1")


if __name__ == "__main__":
    as_program(lambda: tyro.cli(main, description=__doc__))
