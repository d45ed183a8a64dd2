#!/usr/bin/env bash
# Compiles the dashboards of the chart against the types of Grafana's npm package @grafana/schema: wrong types, wrong
# values of enumerations and unknown keys are errors. Needs Node and the npm registry; not a part of `make test`.
set -euo pipefail
cd "$(dirname "$0")/.."
PACKAGES=(@grafana/schema@13.2.3 typescript@7.0.2)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
npm install --silent --no-audit --no-fund --ignore-scripts --prefix "$work" "${PACKAGES[@]}" >&2
cat >"$work/plain.ts" <<'END'
import type { AnnotationQuery, Dashboard, Panel, RowPanel, VariableModel } from '@grafana/schema';
import type { Options as Stat } from '@grafana/schema/dist/esm/raw/composable/stat/panelcfg/x/StatPanelCfg_types.gen';
import type { Options as Table } from '@grafana/schema/dist/esm/raw/composable/table/panelcfg/x/TablePanelCfg_types.gen';
import type { Options as Series, FieldConfig } from '@grafana/schema/dist/esm/raw/composable/timeseries/panelcfg/x/TimeSeriesPanelCfg_types.gen';
// As JSON says it: an enumeration is its value.
type Plain<T> = T extends string ? `${T}` : T extends number ? (`${T}` extends `${infer N extends number}` ? N : never)
  : T extends object ? { [K in keyof T]: Plain<T[K]> } : T;
type Of<Type extends string, Options, Custom> = Omit<Panel, 'type' | 'options' | 'fieldConfig' | 'targets'> & {
  type: Type; options: Options; targets: Target[];
  fieldConfig: { defaults: { unit: string; custom?: Custom }; overrides: never[] };
};
type Target = { refId: string; datasource: { type: 'prometheus'; uid: string }; expr: string; legendFormat: string;
  format: 'table' | 'time_series'; instant: boolean; range: boolean }; // of the Prometheus data source; not in the package
type Annotation = AnnotationQuery & { expr: string; titleFormat: string; textFormat: string }; // the same
export type Checked = Plain<Omit<Dashboard, 'panels' | 'annotations' | 'templating'> & {
  annotations: { list: Annotation[] }; templating: { list: VariableModel[] };
  panels: (RowPanel | Of<'timeseries', Series, FieldConfig> | Of<'stat', Stat, never> | Of<'table', Table, never>)[];
}>;
END
for file in charts/finetune-operator/dashboards/*.json; do
  name=$(basename "$file" .json)
  { echo "import type { Checked } from './plain';"; echo -n "export const it: Checked = "; cat "$file"; } >"$work/$name.ts"
done
(cd "$work" && npx --no-install tsc --noEmit --strict --skipLibCheck --module preserve --moduleResolution bundler --target es2022 --types "" ./*.ts)
echo "dashboards fit ${PACKAGES[0]}"
