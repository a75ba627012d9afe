"""The metric table (dashboards/metrics.md): every metric, and where the dashboards show it.

The last column, `panel`, of a row is one of
  DASHBOARD / ROW: FORM   a panel of its own there, with a query of that form
  DASHBOARD / ROW         a panel there that panels.py describes
  none: REASON            no panel
  (nothing)               a panel of the form that suits the type, in the row "More" of the daemon's dashboard
and may go on with "; quiet: REASON" where a cluster that works shows no data.

FORM is, before an optional "by LABEL, LABEL":
  of gauges      sum, max, min, mean
  of counters    rate, increase (the latter over the dashboard's time range)
  of histograms  quantiles (0.5, 0.95, 0.99), low quantiles (0.5, 0.05, 0.01, where small is bad), mean, and of what
                 happens seldom rare quantiles (0.5, 0.99, over the dashboard's time range)
"""
import pathlib
import re
from dataclasses import dataclass

HERE = pathlib.Path(__file__).resolve().parent
FORMS = {
    "gauge": ("sum", "max", "min", "mean"),
    "counter": ("rate", "increase"),
    "histogram": ("quantiles", "low quantiles", "rare quantiles", "mean"),
}
DEFAULT_FORM = {"gauge": "max", "counter": "rate", "histogram": "quantiles"}
# Where a metric goes whose row says nothing, by the table's section.
DEFAULT_DASHBOARD = {"Controller": "Controller", "Worker": "Overview"}
# Labels with a value for each of many things: a panel made without being asked to leaves them out.
MANY = {"layer", "expert", "model"}


@dataclass(frozen=True)
class Metric:
    name: str
    type: str
    unit: str
    labels: tuple[str, ...]
    meaning: str
    dashboard: str | None  # None: on none
    row: str
    form: str | None  # None: panels.py describes the panel
    by: tuple[str, ...]
    reason: str | None  # why it is on no dashboard
    quiet: str | None  # why a cluster that works shows no data


class TableError(Exception):
    """The metric table is wrong; names the metric."""


def _parse(section, cells):
    name = cells[0].strip("`")
    kind, unit, meaning = cells[1], cells[2], cells[4]
    # All of a worker's have its group.
    labels = (("group",) if section == "Worker" else ()) + tuple(re.findall(r"`([^`]+)`", cells[3]))
    where, _, quiet = (cells[5] if len(cells) > 5 else "").partition("; quiet: ")
    if where.startswith("none: "):
        return Metric(name, kind, unit, labels, meaning, None, "", None, (), where[len("none: "):], quiet or None)
    if not where:
        by = tuple(label for label in labels if label not in MANY)
        return Metric(name, kind, unit, labels, meaning, DEFAULT_DASHBOARD[section], "More", DEFAULT_FORM[kind], by,
                      None, quiet or None)
    match = re.fullmatch(r"(\w+) / ([^:]+?)(?:: ([a-z ]+?)(?: by ([\w, ]+))?)?", where)
    if not match:
        raise TableError(f"{name}: panel is '{where}', want 'DASHBOARD / ROW: FORM by LABEL, ...', "
                         "'DASHBOARD / ROW' or 'none: REASON'")
    dashboard, row, form, by = match.groups()
    by = tuple(re.split(r", *", by)) if by else ()
    if form and form not in FORMS[kind]:
        raise TableError(f"{name}: form '{form}' of a {kind}, want one of: {', '.join(FORMS[kind])}")
    if unknown := set(by) - set(labels):
        raise TableError(f"{name}: by {', '.join(sorted(unknown))}, but its labels are: {', '.join(labels)}")
    return Metric(name, kind, unit, labels, meaning, dashboard, row, form, by, None, quiet or None)


def read(path=HERE / "metrics.md"):
    """The metrics by name, in the table's order."""
    metrics, section = {}, None
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.startswith("## "):
            section = line[3:].strip()
        elif line.startswith("| `"):
            metric = _parse(section, [cell.strip() for cell in line.strip().strip("|").split(" | ")])
            metrics[metric.name] = metric
    return metrics


def used(expression):
    """The names of the metrics that a PromQL expression reads."""
    names = set(re.findall(r"\bballast_\w+", expression))
    return {re.sub(r"_(bucket|sum|count)$", "", name) for name in names}
