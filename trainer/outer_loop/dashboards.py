"""What TensorBoard shows besides curves: the layout of the charts, texts of each start, HParams."""

import os
import re

from tensorboard.compat.proto import summary_pb2
from tensorboard.plugins.custom_scalar import layout_pb2
from tensorboard.plugins.custom_scalar import metadata as layout_metadata
from tensorboard.plugins.hparams import api_pb2, metadata, plugin_data_pb2
from tensorboard.plugins.hparams.summary_v2 import hparams_pb
from tensorboard.plugins.scalar.summary_v2 import scalar_pb
from tensorboard.plugins.text.summary_v2 import text_pb
from tensorboard.util import tensor_util

from trainer import config
from trainer.outer_loop.reporting import TIMED

_CATEGORIES = {  # title: regular expression of the tags; one chart each for losses and metrics, else one for all
    "losses": r"loss(es/.+)?",
    "metrics": r"metrics/.+",
    "gradient norms": r"grad_norm/.+",
    "learning rates": r"learning_rate/.+",
    "throughput": r"examples_per_second|step_milliseconds|input_wait_fraction",
}
_ONE_CHART = ("gradient norms", "learning rates")


def of_start(tags, start, before):
    """Returns the summaries of a start: all of them at step 0, after it texts that changed.

    Args:
        tags: of the loop's report.
        start, before: of starts.record.
    """
    earlier = before["texts"] if before and start["step"] else {}
    changed = {name: text for name, text in start["texts"].items() if earlier.get(name) != text}
    summaries = [text_pb(name, f"```\n{text}\n```") for name, text in changed.items()]
    if not earlier:
        summaries.append(layout([*tags, *TIMED]))
    if "config" in changed and not _is_of_sweep() and (bindings := config.bindings()):
        summaries.append(hparams_pb({name: _hparam(value) for name, value in bindings.items()}))
    return summaries


def of_end(reports):
    """Returns the summaries of a run that is done: the last values of `reports`, {split: {tag: float}}, for HParams."""
    final = {
        f"final/{split}/{tag}": value
        for split, metrics in reports.items()
        for tag, value in metrics.items()
        if tag == "loss" or tag.startswith("metrics/")
    }
    scalars = [scalar_pb(tag, value) for tag, value in final.items()]
    if _is_of_sweep():
        return scalars
    metrics = [api_pb2.MetricInfo(name=api_pb2.MetricName(tag=tag)) for tag in final]
    bindings = [api_pb2.HParamInfo(name=name, type=_type(value)) for name, value in config.bindings().items()]
    experiment = plugin_data_pb2.HParamsPluginData(
        experiment=api_pb2.Experiment(hparam_infos=bindings, metric_infos=metrics)
    )
    end = plugin_data_pb2.HParamsPluginData(
        session_end_info=plugin_data_pb2.SessionEndInfo(status=api_pb2.Status.STATUS_SUCCESS)
    )
    return [
        *scalars,
        _hparams(metadata.EXPERIMENT_TAG, experiment),
        _hparams(metadata.SESSION_END_INFO_TAG, end),
    ]


def _is_of_sweep():
    """True in a run that trainer.sweep started: the sweep writes HParams, with the seeds of a trial as a group."""
    return os.environ.get("GRADLOOM_SWEEP") == "1"


def layout(tags):
    """Returns the layout of TensorBoard's custom scalars; a chart shows a tag of all runs, thus of all splits."""
    categories = []
    for title, pattern in _CATEGORIES.items():
        found = sorted(tag for tag in tags if re.fullmatch(pattern, tag))
        charts = [(title, found)] if title in _ONE_CHART else [(tag, [tag]) for tag in found]
        made = [
            layout_pb2.Chart(
                title=name, multiline=layout_pb2.MultilineChartContent(tag=[f"^{re.escape(tag)}$" for tag in shown])
            )
            for name, shown in charts
            if shown
        ]
        if made:
            categories.append(layout_pb2.Category(title=title, chart=made))
    content = layout_pb2.Layout(category=categories).SerializeToString()
    value = summary_pb2.Summary.Value(
        tag=layout_metadata.CONFIG_SUMMARY_TAG,
        tensor=tensor_util.make_tensor_proto(content),
        metadata=layout_metadata.create_summary_metadata(),
    )
    return summary_pb2.Summary(value=[value])


def _hparam(value):
    return value if isinstance(value, (bool, int, float, str)) else str(value)


def _type(value):
    if isinstance(value, bool):
        return api_pb2.DataType.DATA_TYPE_BOOL
    return api_pb2.DataType.DATA_TYPE_FLOAT64 if isinstance(value, (int, float)) else api_pb2.DataType.DATA_TYPE_STRING


def _hparams(tag, data):
    value = summary_pb2.Summary.Value(
        tag=tag, tensor=metadata.NULL_TENSOR, metadata=metadata.create_summary_metadata(data)
    )
    return summary_pb2.Summary(value=[value])
