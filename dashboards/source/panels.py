"""What the dashboards share: colours, panels of each kind, the frame around them.

Colours are those of Okabe and Ito, "Color universal design" (2008): told apart with any kind of colour blindness.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from grafana_foundation_sdk.builders import (
    bargauge,
    common,
    dashboard,
    prometheus,
    stat,
    statetimeline,
    table,
    timeseries,
)
from grafana_foundation_sdk.models import common as common_models
from grafana_foundation_sdk.models import dashboard as models
from grafana_foundation_sdk.models import prometheus as prometheus_models

BLUE, SKY, GREEN, AMBER, RED, PURPLE, GREY = (
    *("#0072B2", "#56B4E9", "#009E73", "#E69F00", "#D55E00", "#CC79A7"),
    "#999999",
)
COLOURS = {
    # models
    "global": BLUE,
    "personal": AMBER,
    "local": GREEN,
    "train": GREY,
    # states of a study
    "waiting": SKY,
    "training": BLUE,
    "paused": AMBER,
    "finishing": PURPLE,
    "finished": GREEN,
    "failed": RED,
    "stopped": GREY,
    # sites of the demo; further ones get Grafana's colours by name
    "berlin": BLUE,
    "lyon": AMBER,
    "porto": GREEN,
    # the rest
    "up": AMBER,
    "down": BLUE,
    "transfer": AMBER,
    "aggregation": GREEN,
    "total": GREY,
    "weight": BLUE,
    "norm": BLUE,
    "worst site": RED,
    "mean": BLUE,
    "best minus worst": AMBER,
}
MODELS = ("global", "personal", "local", "train")
STATES = ("waiting", "training", "paused", "finishing", "finished", "failed", "stopped")
SITES = ("berlin", "lyon", "porto")
PHASES = ("waiting", "transfer", "aggregation", "total")

SOURCE = common_models.DataSourceRef(type_val="prometheus", uid="prometheus")

_VALUE = common_models.BigValueColorMode.VALUE
_SERIES = prometheus_models.PromQueryFormat.TIME_SERIES

Steps = Sequence[tuple[float | None, str]]
FINE: Steps = ((None, BLUE),)


@dataclass(frozen=True)
class Query:
    """One PromQL expression and how its series are called."""

    expr: str
    legend: str = ""


Panel = timeseries.Panel | stat.Panel | bargauge.Panel | statetimeline.Panel | table.Panel


@dataclass(frozen=True)
class Look:
    """What every panel says about itself.

    Args:
        unit: Grafana's name of a unit.
        bounds: least and greatest value of the axis, where there are.
        soft: bounds of a curve's axis that give way to values outside.
        steps: thresholds: from which value on which colour.
        empty: what is shown where there is no data.
        size: width (of 24) and height.
    """

    title: str
    description: str
    unit: str
    size: tuple[int, int]
    bounds: tuple[float | None, float | None] = (None, None)
    decimals: int | None = None
    soft: tuple[float, float] | None = None
    steps: Steps = FINE
    empty: str = "no data"
    names: Sequence[str] = ()


def time_series(look: Look, *queries: Query, stacked: bool = False) -> timeseries.Panel:
    """Return curves over time with the last value of each in the legend."""
    legend = (
        common.VizLegendOptions()
        .display_mode(common_models.LegendDisplayMode.TABLE)
        .placement(common_models.LegendPlacement.BOTTOM)
        .show_legend(True)
        .calcs(["lastNotNull"])
    )
    tooltip = common.VizTooltipOptions().mode(common_models.TooltipDisplayMode.MULTI)
    tooltip.sort(common_models.SortOrder.DESCENDING)
    panel = timeseries.Panel().legend(legend).tooltip(tooltip).line_width(2).span_nulls(False)
    panel.fill_opacity(30 if stacked else 0)
    panel.show_points(common_models.VisibilityMode.NEVER)
    # A value holds until the next round: steps, not a slope that nobody measured.
    panel.line_interpolation(common_models.LineInterpolation.STEP_AFTER)
    if look.soft:
        panel.axis_soft_min(look.soft[0]).axis_soft_max(look.soft[1])
    if stacked:
        panel.stacking(common.StackingConfig().mode(common_models.StackingMode.NORMAL))
    if len(look.steps) > 1:
        panel.thresholds_style(common.GraphThresholdsStyleConfig().mode(common_models.GraphThresholdsStyleMode.DASHED))
    _dress(panel, look, queries, models.FieldColorModeId.PALETTE_CLASSIC_BY_NAME)
    return panel


def single_value(look: Look, *queries: Query, named: bool = False, spark: bool = False) -> stat.Panel:
    """Return numbers in large type, coloured by threshold.

    Args:
        named: show the name of the series instead of its value.
        spark: with a small curve behind.
    """
    panel = stat.Panel().color_mode(common_models.BigValueColorMode.BACKGROUND_SOLID if named else _VALUE)
    panel.graph_mode(common_models.BigValueGraphMode.AREA if spark else common_models.BigValueGraphMode.NONE)
    panel.reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]))
    panel.justify_mode(common_models.BigValueJustifyMode.CENTER)
    if named:
        panel.text_mode(common_models.BigValueTextMode.NAME)
    elif len(queries) > 1 or queries[0].legend:
        panel.text_mode(common_models.BigValueTextMode.VALUE_AND_NAME)
    else:
        panel.text_mode(common_models.BigValueTextMode.VALUE)
    mode = models.FieldColorModeId.PALETTE_CLASSIC_BY_NAME if named else models.FieldColorModeId.THRESHOLDS
    _dress(panel, look, queries, mode, instant=not spark)
    return panel


def bars(look: Look, *queries: Query) -> bargauge.Panel:
    """Return one horizontal bar per series, coloured by threshold."""
    panel = bargauge.Panel().orientation(common_models.VizOrientation.HORIZONTAL).show_unfilled(True)
    panel.display_mode(common_models.BarGaugeDisplayMode.BASIC)
    panel.reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]))
    _dress(panel, look, queries, models.FieldColorModeId.THRESHOLDS, instant=True)
    return panel


def timeline(look: Look, *queries: Query, values: Mapping[str, tuple[str, str]]) -> statetimeline.Panel:
    """Return one band per series, coloured by its value.

    Args:
        values: text and colour per value.
    """
    mapping = {
        value: models.ValueMappingResult(text=text, color=colour, index=index)
        for index, (value, (text, colour)) in enumerate(values.items())
    }
    panel = statetimeline.Panel().mappings([models.ValueMap(options=mapping)]).merge_values(True)
    panel.show_value(common_models.VisibilityMode.AUTO).row_height(0.8)
    _dress(panel, look, queries, models.FieldColorModeId.THRESHOLDS)
    return panel


@dataclass(frozen=True)
class Column:
    """One column of a table: the value of a query, or a label of it.

    Args:
        steps: thresholds; a column that has them colours its cells.
    """

    name: str
    unit: str = "short"
    steps: Steps = ()


def rows(look: Look, columns: Mapping[str, Column], *queries: Query) -> table.Panel:
    """Return a table that joins the queries' series on the labels they share.

    Args:
        columns: by Grafana's name of the field (`Value #A` for the first query, or a label), in order.
    """
    order = {field: index for index, field in enumerate(columns)}
    renamed = {field: column.name for field, column in columns.items()}
    merge = models.DataTransformerConfig(id_val="merge", options={})
    keep = models.DataTransformerConfig(id_val="filterFieldsByName", options={"include": {"names": list(columns)}})
    arrange = models.DataTransformerConfig(
        id_val="organize", options={"indexByName": order, "renameByName": renamed, "excludeByName": {}}
    )
    panel = table.Panel().transformations([merge, keep, arrange]).show_header(True)
    _dress(panel, look, queries, models.FieldColorModeId.THRESHOLDS, instant=True, as_table=True)
    for column in columns.values():
        properties = [models.DynamicConfigValue("unit", column.unit)]
        if column.steps:
            steps = [{"value": value, "color": colour} for value, colour in column.steps]
            properties += [
                models.DynamicConfigValue("thresholds", {"mode": "absolute", "steps": steps}),
                models.DynamicConfigValue("custom.cellOptions", {"type": "color-text"}),
            ]
        panel.override_by_name(column.name, properties)
    return panel


def _dress(
    panel: Panel,
    look: Look,
    queries: Sequence[Query],
    mode: models.FieldColorModeId,
    *,
    instant: bool = False,
    as_table: bool = False,
) -> None:
    """Put on a panel what its look and its queries say."""
    panel.title(look.title).description(look.description).unit(look.unit).datasource(SOURCE).no_value(look.empty)
    panel.span(look.size[0]).height(look.size[1]).color_scheme(dashboard.FieldColor().mode(mode))
    steps = [models.Threshold(value, colour) for value, colour in look.steps]
    panel.thresholds(dashboard.ThresholdsConfig().mode(models.ThresholdsMode.ABSOLUTE).steps(steps))
    low, high = look.bounds
    if low is not None:
        panel.min(low)
    if high is not None:
        panel.max(high)
    if look.decimals is not None:
        panel.decimals(look.decimals)
    for letter, query in zip("ABCDEFGHIJ", queries, strict=False):
        target = prometheus.Dataquery().expr(query.expr).ref_id(letter).datasource(SOURCE)
        target.legend_format(query.legend or "__auto")
        target.format(prometheus_models.PromQueryFormat.TABLE if as_table else _SERIES)
        if instant:
            target.instant()
        else:
            target.range()
        panel.with_target(target)
    for name in look.names:
        panel.override_by_name(
            name, [models.DynamicConfigValue("color", {"mode": "fixed", "fixedColor": COLOURS[name]})]
        )


Rows = Mapping[str, Sequence[Panel]]
"""Headings, and the panels under each from left to right."""


def frame(name: str, title: str, description: str, panels: Rows, *, by_site: bool = False) -> models.Dashboard:
    """Return a dashboard of the family: same variables, links, range and refresh."""
    board = dashboard.Dashboard(title).uid(f"consilium-{name}").description(description).tags(["consilium"])
    board.time("now-30m", "now").refresh("5s").timezone("browser").readonly()
    board.tooltip(models.DashboardCursorSync.CROSSHAIR)
    board.link(
        dashboard.DashboardLink("Dashboards")
        .type(models.DashboardLinkType.DASHBOARDS)
        .tags(["consilium"])
        .keep_time(True)
        .include_vars(True)
        .placement("")  # else in a menu, where nobody looks
    )
    board.with_variable(_variable("study", "Study", "label_values(consilium_study_info, study)"))
    if by_site:
        board.with_variable(_variable("site", "Site", 'label_values(consilium_site_round{study="$study"}, site)'))
    for heading, under in panels.items():
        board.with_row(dashboard.Row(heading))
        for panel in under:
            board.with_panel(panel)
    return board.build()


def _variable(name: str, label: str, query: str) -> dashboard.QueryVariable:
    variable = dashboard.QueryVariable(name).label(label).datasource(SOURCE).multi(False).include_all(False)
    variable.query({"query": query, "refId": f"variable-{name}"}).definition(query)
    variable.refresh(models.VariableRefresh.ON_TIME_RANGE_CHANGED)
    return variable.sort(models.VariableSort.ALPHABETICAL_ASC)
