#!/usr/bin/python3
"""Writes dashboards/generated: Grafana's dashboards, Prometheus' rules and promtool's test of them.

From the metric table (metrics.md), panels.py and alerts.py, with Grafana's own library for dashboards as code. A new
metric gets its panel from its row of the table. `--check` writes nothing and fails where the files are not what would
be written, where a panel or an alert reads a metric that the table does not have, where a metric is on no dashboard without a
reason, and where an alert has no runbook.
"""
import argparse
import glob
import json
import pathlib
import re
import site
import sys

HERE = pathlib.Path(__file__).resolve().parent
# Where .ci/setup.sh puts the packages of .ci/requirements.txt.
for folder in glob.glob(str(pathlib.Path.home() / ".cache/ballast/tools/python/lib/python3*/site-packages")):
    site.addsitedir(folder)

from grafana_foundation_sdk.builders import common as build_common  # noqa: E402
from grafana_foundation_sdk.builders import dashboard as build  # noqa: E402
from grafana_foundation_sdk.builders import prometheus, stat, table, timeseries  # noqa: E402
from grafana_foundation_sdk.cog.encoder import JSONEncoder  # noqa: E402
from grafana_foundation_sdk.models import common, dashboard  # noqa: E402
from grafana_foundation_sdk.models.prometheus import PromQueryFormat  # noqa: E402

import alerts  # noqa: E402
import metric_table  # noqa: E402
import panels  # noqa: E402
from panels import Panel  # noqa: E402

OUT = HERE / "generated"
SOURCE = dashboard.DataSourceRef(type_val="prometheus", uid="${datasource}")
# Units of the table in Grafana's words.
UNITS = {"1": "short", "tokens": "short", "bytes": "bytes", "seconds": "s", "ratio": "short", "percent": "percentunit",
         "tokens a second": "short", "1 a second": "short", "bytes a second": "Bps"}
# Colours by value. Of "level" low is bad, of "load" 1 is fair, of "none" anything is bad.
SCALES = {
    "level": ((None, "red"), (0.7, "orange"), (0.85, "yellow"), (0.95, "green")),
    "load": ((None, "super-light-blue"), (0.75, "green"), (1.1, "yellow"), (1.25, "orange"), (1.5, "red")),
    "none": ((None, "green"), (1e-9, "red")),
}


def matchers(metric, form):
    found = []
    if "group" in metric.labels:
        found.append(panels.GROUP)
    if "phase" in metric.labels and "phase" in variables_of(metric.dashboard):
        found.append(panels.PHASE)
    if "task" in metric.labels and "task" in variables_of(metric.dashboard):
        found.append('task=~"$task"')
    return "{" + ",".join(found) + "}" if found else ""


def variables_of(name):
    return next(d.variables for d in panels.DASHBOARDS if d.name == name)


def panel_of(metric):
    """The panel that a row of the table asks for by its form."""
    series = matchers(metric, metric.form)
    by = f" by ({', '.join(metric.by)}) " if metric.by else " "
    legend = " ".join(f"{{{{{label}}}}}" for label in metric.by)
    title = re.sub(r"_(total|seconds|ratio)\b", "", metric.name.removeprefix("ballast_"))
    title = title.replace("_", " ").capitalize().replace("Kv ", "KV ")
    unit = metric.unit
    rate = f"rate({metric.name}{series}[{panels.RATE}])"
    if metric.type == "gauge":
        aggregate = {"mean": "avg"}.get(metric.form, metric.form)
        queries = [(f"{aggregate}{by}({metric.name}{series})", legend or metric.form)]
    elif metric.form == "rate":
        title += " a second"
        unit += " a second"
        queries = [(f"sum{by}({rate})", legend or "all")]
    elif metric.form == "increase":
        queries = [(f"sum{by}(increase({metric.name}{series}[$__range]))", legend or "all")]
    elif metric.form == "mean":
        title += ", mean"
        sums, counts = (f"sum{by}(rate({metric.name}_{part}{series}[{panels.RATE}]))" for part in ("sum", "count"))
        queries = [(f"{sums} / {counts}", legend or "mean")]
    else:
        by_le = f" by ({', '.join(('le', *metric.by))}) "
        levels, function, span = {"quantiles": ((0.5, 0.95, 0.99), "rate", panels.RATE),
                                  "low quantiles": ((0.5, 0.05, 0.01), "rate", panels.RATE),
                                  "rare quantiles": ((0.5, 0.99), "increase", "$__range")}[metric.form]
        buckets = f"sum{by_le}({function}({metric.name}_bucket{series}[{span}]))"
        queries = [(f"histogram_quantile({level}, {buckets})", f"{legend} p{100 * level:g}".strip())
                   for level in levels]
    if unit == "ratio a second" or unit not in UNITS:
        raise metric_table.TableError(f"{metric.name}: no unit '{unit}' in dashboards/generate.py")
    kind = "stat" if metric.form in ("increase", "rare quantiles") else "lines"
    return Panel(metric.dashboard, metric.row, title, metric.meaning, kind, tuple(queries), unit)


def target(index, expression, legend, instant, form=None):
    query = prometheus.Dataquery().expr(expression).ref_id(chr(ord("A") + index)).datasource(SOURCE)
    query = query.instant() if instant else query.range()
    if form:
        query = query.format(form)
    return query.legend_format(legend) if legend else query


def thresholds(scale):
    return build.ThresholdsConfig().mode(dashboard.ThresholdsMode.ABSOLUTE).steps(
        [dashboard.Threshold(value=value, color=color) for value, color in SCALES[scale]])


def stat_panel(panel):
    made = stat.Panel().reduce_options(build_common.ReduceDataOptions().calcs(["lastNotNull"]).values(False))
    made = made.graph_mode(common.BigValueGraphMode.NONE).color_mode(common.BigValueColorMode.VALUE)
    made = made.text_mode(common.BigValueTextMode.AUTO)
    if panel.scale:
        made = made.thresholds(thresholds(panel.scale))
    return made.decimals(0 if panel.unit == "1" else 2)


def lines_panel(panel):
    made = timeseries.Panel().line_width(1).fill_opacity(0).show_points(common.VisibilityMode.NEVER)
    made = made.legend(build_common.VizLegendOptions().display_mode(common.LegendDisplayMode.LIST)
                       .placement(common.LegendPlacement.BOTTOM).show_legend(True).calcs([]))
    made = made.tooltip(build_common.VizTooltipOptions().mode(common.TooltipDisplayMode.MULTI)
                        .sort(common.SortOrder.DESCENDING))
    made = made.override_by_regexp(".* predicted", [
        dashboard.DynamicConfigValue(id_val="custom.lineStyle", value={"fill": "dash", "dash": [8, 8]})])
    return made.axis_soft_min(0)


def matrix_panel(panel):
    """A table with a row and a column for each value of two labels, coloured by value."""
    rows, columns = panel.axes
    made = table.Panel().cell_height(common.TableCellHeight.SM).show_header(True)
    made = made.transformations([
        dashboard.DataTransformerConfig(id_val="groupingToMatrix", options={
            "rowField": rows, "columnField": columns, "valueField": "Value", "emptyValue": "null"}),
    ])
    made = made.thresholds(thresholds(panel.scale)).decimals(1 if columns == "expert" else 2).min_width(34).align(common.FieldTextAlignment.CENTER)
    made = made.cell_options(common.TableColoredBackgroundCellOptions(
        mode=common.TableCellBackgroundDisplayMode.BASIC))
    return made.override_by_name(f"{rows}\\{columns}", [
        dashboard.DynamicConfigValue(id_val="custom.cellOptions", value={"type": "auto"}),
        dashboard.DynamicConfigValue(id_val="decimals", value=0),
        dashboard.DynamicConfigValue(id_val="custom.width", value=110)])


def grafana_panel(panel, position, number):
    kinds = {"stat": stat_panel, "lines": lines_panel, "matrix": matrix_panel}
    made = kinds[panel.kind](panel).id(number).title(panel.title).description(panel.description)
    made = made.datasource(SOURCE).unit(UNITS[panel.unit])
    made = made.grid_pos(position)
    form = PromQueryFormat.TABLE if panel.kind == "matrix" else None
    return made.targets([target(i, expression, legend, panel.kind != "lines", form)
                         for i, (expression, legend) in enumerate(panel.queries)])


def variable(name):
    """A variable of a dashboard, for what its panels match by."""
    def of_label(label, series, every):
        return (build.QueryVariable(label).label(label.capitalize()).datasource(SOURCE)
                .query({"query": f"label_values({series}, {label})", "refId": "values"})
                .refresh(dashboard.VariableRefresh.ON_TIME_RANGE_CHANGED).sort(dashboard.VariableSort.ALPHABETICAL_ASC)
                .multi(True).include_all(True).all_value(every)
                .current(dashboard.VariableOption(text="All", value="$__all", selected=True)))

    if name == "group":
        return of_label("group", "ballast_view", ".*")
    if name == "phase":
        return of_label("phase", f"ballast_layer_balancedness_ratio{{{panels.GROUP}}}", ".*")
    if name == "task":
        # Not "*", which stands for all tasks together.
        return of_label("task", f"ballast_task_tokens_total{{{panels.GROUP}}}", "[^*]*")
    assert name == "before", name
    options = ("5m", "15m", "1h", "6h", "1d", "7d")
    return (build.CustomVariable("before").label("Before").values(", ".join(options))
            .options([dashboard.VariableOption(text=o, value=o, selected=o == "1h") for o in options])
            .current(dashboard.VariableOption(text="1h", value="1h", selected=True)))


def layout(shown):
    """(panel, x, y, width) for each panel of a row, and the row's height: from left to right and on below, each line
    stretched to the whole width."""
    lines = []
    for panel in shown:
        if not lines or sum(p.width for p in lines[-1]) + panel.width > 24:
            lines.append([])
        lines[-1].append(panel)
    places, y = [], 0
    for line in lines:
        total, x, before = sum(p.width for p in line), 0, 0
        for panel in line:
            before += panel.width
            width = 24 * before // total - x
            places.append((panel, x, y, width))
            x += width
        y += max(panel.height for panel in line)
    return places, y


def grafana_dashboard(described, shown):
    made = (build.Dashboard(described.title).uid(f"ballast-{described.name.lower()}").description(described.description)
            .tags(["ballast"]).timezone("browser").editable().refresh("10s").time("now-1h", "now")
            .tooltip(dashboard.DashboardCursorSync.CROSSHAIR)
            .link(build.DashboardLink("Ballast").type(dashboard.DashboardLinkType.DASHBOARDS).tags(["ballast"])
                  .as_dropdown(False).keep_time(True).include_vars(True))
            .with_variable(build.DatasourceVariable("datasource").label("Data source").type("prometheus")))
    for name in described.variables:
        made = made.with_variable(variable(name))
    if described.name != "Controller":
        # What happened when, across every panel.
        made = made.annotation(
            build.AnnotationQuery().name("Rollouts").datasource(SOURCE).enable(True).hide(False).icon_color("blue")
            .expr(f"max by (group) (ballast_rebalancing{{{panels.GROUP}}}) > 0"))
    rows = [*described.rows, *sorted({p.row for p in shown} - set(described.rows))]
    number, y = 1, 0
    for row in rows:
        of_row = [panel for panel in shown if panel.row == row]
        if not of_row:
            continue
        made = made.with_row(build.Row(row).id(number).grid_pos(dashboard.GridPos(h=1, w=24, x=0, y=y)))
        number, y = number + 1, y + 1
        places, height = layout(of_row)
        for panel, x, below, width in places:
            position = dashboard.GridPos(h=panel.height, w=width, x=x, y=y + below)
            made = made.with_panel(grafana_panel(panel, position, number))
            number += 1
        y += height
    return json.dumps(made.build(), cls=JSONEncoder, indent=1, sort_keys=True) + "\n"


def all_panels(metrics):
    """What panels.py describes, then the panels of the table's rows."""
    return [*panels.PANELS, *(panel_of(m) for m in metrics.values() if m.dashboard and m.form)]


def problems_of(metrics, shown):
    """What is wrong between the table, the panels and the alerts, a line each."""
    names = {described.name for described in panels.DASHBOARDS}
    on = {}  # (dashboard, row) by metric
    for panel in shown:
        for expression, _ in panel.queries:
            for name in metric_table.used(expression):
                on.setdefault(name, set()).add((panel.dashboard, panel.row))
                if name not in metrics:
                    yield f"panel '{panel.title}' reads {name}, which dashboards/metrics.md does not have"
    for metric in metrics.values():
        if metric.dashboard and metric.dashboard not in names:
            yield f"{metric.name}: no dashboard '{metric.dashboard}', want one of: {', '.join(sorted(names))}"
        elif metric.dashboard and (metric.dashboard, metric.row) not in on.get(metric.name, ()):
            yield (f"{metric.name}: no panel of {metric.dashboard} / {metric.row} reads it: describe one in "
                   "dashboards/panels.py, or name a form in the table")
        elif not metric.dashboard and metric.name in on:
            yield f"{metric.name}: the table says that no panel shows it, but one does"
    for alert in alerts.ALERTS:
        for name in metric_table.used(alert.expression) - set(metrics):
            yield f"alert {alert.name} reads {name}, which dashboards/metrics.md does not have"
    headings = re.findall(r"^## (\w+)$", (HERE.parent / alerts.RUNBOOKS).read_text(encoding="utf-8"), re.M)
    for name in {a.name for a in alerts.ALERTS} ^ set(headings):
        yield f"{name}: an alert without a heading in {alerts.RUNBOOKS}, or a heading without an alert"


def files():
    """The text of every generated file by path, and what is wrong."""
    metrics = metric_table.read()
    unknown = [f"{m.name}: no dashboard '{m.dashboard}'" for m in metrics.values()
               if m.dashboard and m.dashboard not in {d.name for d in panels.DASHBOARDS}]
    if unknown:
        return {}, unknown
    shown = all_panels(metrics)
    made = {OUT / "grafana" / f"{d.name.lower()}.json": grafana_dashboard(d, [p for p in shown if p.dashboard == d.name])
            for d in panels.DASHBOARDS}
    made[OUT / "rules.yaml"] = alerts.rules()
    made[OUT / "rules_test.yaml"] = alerts.rules_test()
    return made, list(problems_of(metrics, shown))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="compare with what is there, write nothing")
    check = parser.parse_args().check
    try:
        made, problems = files()
    except metric_table.TableError as e:
        made, problems = {}, [str(e)]
    there = {path for path in OUT.rglob("*") if path.is_file()}
    if made:
        problems += [f"{path.relative_to(HERE.parent)}: nothing makes it" for path in sorted(there - set(made))]
    for path, text in made.items():
        if check and (path not in there or path.read_text(encoding="utf-8") != text):
            problems.append(f"{path.relative_to(HERE.parent)}: is not what dashboards/generate.py writes")
        elif not check:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
    print("\n".join(problems), end="\n" if problems else "")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
