"""A run's figures in Prometheus' text form (extra `metrics`), from a registry of their own."""
# edge: prometheus-client; figures are read when they are asked for

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from trainers.run import Run
from trainers.service.snapshot import is_over, worker_rows

__all__ = ["CONTENT_TYPE", "exposition"]

CONTENT_TYPE = CONTENT_TYPE_LATEST
PREFIX = "aio_vecenv_"
PER_UPDATE = (
    ("episode_return", "Mean undiscounted return of the newest update's episodes"),
    ("entropy", "Mean entropy of the policy in nats"),
    ("approx_kl", "KL divergence from the policy that collected"),
    ("explained_variance", "Of the returns, by the values, before the newest update"),
    ("mixing_ratio", "Probability that an episode is drawn from the previous stage"),
)


def exposition(run: Run) -> bytes:
    """All figures, in a registry that holds nothing else: neither this process's nor the host application's."""
    registry = CollectorRegistry()
    registry.register(_Run(run))
    return generate_latest(registry)


class _Run(Collector):
    """One run, as metric families."""

    def __init__(self, run: Run) -> None:
        self._run = run

    def collect(self) -> Iterator[Metric]:
        run, summary, report = self._run, self._run.summary(), self._run.last_report
        yield _gauge("running", "1 while the run goes on", float(not is_over(run)))
        yield _gauge("held", "1 while decisions are on hold", float(run.coordinator.held))
        yield _counter("env_steps", "Rows collected, reset rows included", summary.env_steps)
        yield _counter("updates", "Updates learned", summary.updates)
        yield _counter("episodes", "Episodes ended, aborted ones not counted", summary.episodes)
        yield _gauge(
            "directives_published", "Directives since the run was begun or resumed", summary.published
        )
        yield _gauge("directives_taken", "Of these, taken by every worker", summary.applied)
        yield _gauge("loop_lag_p99_seconds", "How late the event loop was", summary.loop_lag_p99_s)
        if report is not None:
            yield _gauge("steps_per_second", "Env steps of the newest update", report.timing.steps_per_s)
            for name, text in PER_UPDATE:
                if (value := getattr(report, name)) is not None:
                    yield _gauge(name, text, value)
        current = GaugeMetricFamily(f"{PREFIX}stage_current", "1 for the current stage", labels=["stage"])
        success = GaugeMetricFamily(f"{PREFIX}stage_success_rate", "Of the newest outcomes", labels=["stage"])
        share = GaugeMetricFamily(f"{PREFIX}stage_share", "Probability of being drawn", labels=["stage"])
        for row in summary.stages:
            current.add_metric([row.name], float(row.name == run.stage))
            success.add_metric([row.name], row.success_rate)
            share.add_metric([row.name], row.share)
        yield from (current, success, share)
        yield from self._workers()

    def _workers(self) -> Iterator[Metric]:
        up = GaugeMetricFamily(f"{PREFIX}worker_up", "1 while it takes commands", labels=["worker"])
        restarts = CounterMetricFamily(
            f"{PREFIX}worker_restarts", "How often it was replaced", labels=["worker"]
        )
        median = GaugeMetricFamily(f"{PREFIX}worker_step_p50_seconds", "Median step", labels=["worker"])
        slow = GaugeMetricFamily(
            f"{PREFIX}worker_step_p99_seconds", "99th percentile step", labels=["worker"]
        )
        waiting = GaugeMetricFamily(
            f"{PREFIX}worker_wait_share", "Of the time, had nothing to do", labels=["worker"]
        )
        for row in worker_rows(self._run):
            name = [str(row["worker"])]
            up.add_metric(name, float(row["ready"]))
            restarts.add_metric(name, row["restarts"])
            median.add_metric(name, row["step_p50_s"])
            slow.add_metric(name, row["step_p99_s"])
            waiting.add_metric(name, row["wait_share"])
        yield from (up, restarts, median, slow, waiting)


def _gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(PREFIX + name, text, value=value)


def _counter(name: str, text: str, value: float) -> Metric:
    return CounterMetricFamily(PREFIX + name, text, value=value)
