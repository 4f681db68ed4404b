"""Hook that hands the reports of a run to other trackers: a CSV file, MLflow, Weights & Biases."""

import csv
import os
import pathlib

from trainer import config, history

__all__ = ["Logger"]
_TRACKERS = ("csv", "mlflow", "wandb")


class Logger:
    """Writes each report, the same as in metrics.jsonl, to a tracker.

    "csv" writes DIR/reports.csv, one row per report. "mlflow" and "wandb" log to one run of the tracker, named after
    the folder; its id is kept in DIR, so that a resumed run continues it. Steps that the tracker has are left out,
    because trackers cannot delete them. The packages are imported at the start, only if they are asked for.

    Args:
        to: "csv", "mlflow" or "wandb".
        project: the experiment of MLflow or the project of Weights & Biases; None: their default.

    Raises:
        ValueError: for another `to`; at the start, if the package is not installed, or the run has no folder.
    """

    def __init__(self, to: str = "csv", project: str | None = None):
        if to not in _TRACKERS:
            raise ValueError(f"`to` must be one of {', '.join(_TRACKERS)}, got {to!r}.")
        self.to, self.project, self._tracker = to, project, None

    def begin(self, run):
        """Opens the tracker at the step of the run, before its first loop and after a rollback; on the chief."""
        self.end()
        if run.model_dir is None:
            raise ValueError("`Logger` needs a `model_dir`, where it keeps the place of its last report, got None.")
        if not run.writes:
            return
        kind = {"csv": _Csv, "mlflow": _MLflow, "wandb": _Wandb}[self.to]
        self._tracker = kind(pathlib.Path(run.model_dir), self.project, run.step)

    def __call__(self, trainer, step: int, metrics: dict[str, float]):
        """Does nothing: `report` gets the reports."""

    def report(self, split: str, step: int, metrics: dict[str, float]):
        """Hands over a report, {tag: float} of a split; eager, on the chief."""
        self._tracker.write(split, step, metrics)

    def end(self):
        """Closes the tracker."""
        if self._tracker is not None:
            self._tracker.close()
            self._tracker = None


class _Csv:
    def __init__(self, folder, project, step):
        self._path, self._rows = folder / "reports.csv", []
        for row in history.read(folder, step):  # instead of what an earlier start wrote after `step`
            self._rows.append({"step": row["step"], "split": row["split"], **history.tags_of(row)})
        self._columns, self._known = ["step", "split"], 0
        self._save()

    def write(self, split, step, metrics):
        self._rows.append({"step": step, "split": split, **metrics})
        self._save()

    def _save(self):
        """Appends new rows; writes the file again if there is a new column."""
        columns = list(dict.fromkeys([*self._columns, *(tag for row in self._rows[self._known :] for tag in row)]))
        again = columns != self._columns or not self._known
        self._columns = columns
        path = self._path.with_name(".reports.csv") if again else self._path
        with open(path, "w" if again else "a", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, columns)
            if again:
                writer.writeheader()
            writer.writerows(self._rows if again else self._rows[self._known :])
        if again:
            os.replace(path, self._path)
        self._known = len(self._rows)

    def close(self):
        pass


class _Remote:
    """Base of trackers with one run each, whose id is in DIR/<tracker>.run, and the last step that it has."""

    def __init__(self, folder, project, step):
        self._id_file = folder / f"{self.name}.run"
        known = self._id_file.read_text().strip() if self._id_file.exists() else None
        try:
            self._last = self.open(project, known, folder.name)
        except ImportError as error:
            raise ValueError(f"`to` is {self.name!r}, which is not installed: `pip install {self.name}`.") from error
        self._id_file.write_text(f"{self.id}\n")

    def write(self, split, step, metrics):
        if step > self._last:
            self.log({f"{split}/{tag}": value for tag, value in metrics.items()}, step)


class _MLflow(_Remote):
    name = "mlflow"

    def open(self, project, known, title):
        import mlflow

        self._client = mlflow.MlflowClient()
        if known is None:
            found = self._client.get_experiment_by_name(project) if project else None
            experiment = found.experiment_id if found else self._client.create_experiment(project) if project else "0"
            self.id = self._client.create_run(experiment, run_name=title).info.run_id
            for name, value in config.bindings().items():
                self._client.log_param(self.id, name.replace("@", "_"), str(value)[:500])
            return -1
        self.id = known
        tags = self._client.get_run(known).data.metrics
        return max((m.step for tag in tags for m in self._client.get_metric_history(known, tag)), default=-1)

    def log(self, metrics, step):
        for tag, value in metrics.items():
            self._client.log_metric(self.id, tag, value, step=step)

    def close(self):
        self._client.set_terminated(self.id)


class _Wandb(_Remote):
    name = "wandb"

    def open(self, project, known, title):
        import wandb

        options = {"id": known, "resume": "must"} if known else {"config": config.bindings()}
        self._run = wandb.init(project=project, name=title, **options)
        self.id = self._run.id
        return self._run.step - 1 if known else -1  # `step` is the next one

    def log(self, metrics, step):
        self._run.log(metrics, step=step)

    def close(self):
        self._run.finish()
