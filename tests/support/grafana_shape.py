"""The part of Grafana's dashboard JSON that our dashboards use, as strict models: `Shape.model_validate_json(text)`."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

Text = Annotated[str, Field(min_length=1)]
Free = dict[str, Any]


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class Source(Strict):
    type: Literal["prometheus"]
    uid: Literal["${datasource}"]


class Place(Strict):
    x: Annotated[int, Field(ge=0)]
    y: Annotated[int, Field(ge=0)]
    w: Annotated[int, Field(ge=1, le=24)]
    h: Annotated[int, Field(ge=1)]


class Target(Strict):
    refId: Annotated[str, Field(pattern="^[A-Z]$")]
    datasource: Source
    expr: Text
    legendFormat: str
    format: Literal["table", "time_series"]
    instant: bool
    range: bool


class Defaults(Strict):
    unit: Text
    custom: Free | None = None


class FieldConfig(Strict):
    defaults: Defaults
    overrides: list[Free]


class Transformation(Strict):
    id: Text
    options: Free


class Panel(Strict):
    id: int
    type: Literal["timeseries", "stat", "table"]
    title: Text
    description: Text
    datasource: Source
    gridPos: Place
    fieldConfig: FieldConfig
    options: Free
    targets: Annotated[list[Target], Field(min_length=1)]
    transformations: list[Transformation] = []


class Row(Strict):
    id: int
    type: Literal["row"]
    title: Text
    collapsed: bool
    gridPos: Place
    panels: Annotated[list[Free], Field(max_length=0)]


class Question(Strict):
    query: Text
    refId: Text


class Choice(Strict):
    text: Text
    value: Text


class Variable(Strict):
    name: Text
    label: Text
    type: Literal["datasource", "query"]
    query: Literal["prometheus"] | Question
    refresh: Literal[1, 2]
    multi: bool
    includeAll: bool
    datasource: Source | None = None
    sort: int = 0
    allValue: Text | None = None
    current: Choice | None = None


class Variables(Strict):
    list: list[Variable]


class Annotation(Strict):
    name: Text
    datasource: Source
    enable: bool
    iconColor: Text
    expr: Text
    titleFormat: Text
    textFormat: Text


class Annotations(Strict):
    list: list[Annotation]


class Time(Strict):
    from_: Annotated[Text, Field(alias="from")]
    to: Text


class Shape(Strict):
    uid: Annotated[str, Field(pattern="^[a-z-]{1,40}$")]
    title: Text
    description: Text
    tags: list[Text]
    schemaVersion: Literal[39]
    editable: bool
    graphTooltip: Literal[0, 1, 2]
    refresh: Text
    time: Time
    timezone: Literal["browser", "utc"]
    annotations: Annotations
    templating: Variables
    links: list[Free]
    panels: list[Row | Panel]
