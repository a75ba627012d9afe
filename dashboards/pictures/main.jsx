// Draws one dashboard of dashboards/generated/grafana with the panels that Grafana publishes (@grafana/ui), from query
// results that pictures.py has fetched. Not Grafana itself: its grid, header and rows are imitated here.
// require, for its CommonJS build: the other one's imports of CommonJS packages come out as Node.js would have them.
const {
  createTheme, dateTime, FieldColorModeId, FieldType, getDisplayProcessor, standardTransformers, toDataFrame,
} = require('@grafana/data');
const {BigValue, GlobalStyles, PortalContainer, Table, ThemeContext, TimeSeries} = require('@grafana/ui');
const React = require('react');
const {createRoot} = require('react-dom/client');
const {firstValueFrom, of} = require('rxjs');

const {dashboard, results, range, theme: mode, width, variables} = window.input;
const theme = createTheme({colors: {mode}});
const CELL = 38, GAP = 8;  // Grafana's grid: 24 columns, rows of 30 and gaps of 8

const configOf = panel => ({...panel.fieldConfig.defaults, custom: {...panel.fieldConfig.defaults.custom}});

const labelled = (legend, labels) => legend.replace(/\{\{\s*(\w+)\s*\}\}/g, (_, name) => labels[name] ?? '').trim();

function finish(frames, panel) {
  for (const frame of frames) {
    for (const field of frame.fields) {
      field.config = {...configOf(panel), ...field.config};
      for (const override of panel.fieldConfig.overrides ?? []) {
        const {id, options} = override.matcher;
        const name = field.config.displayName ?? field.name;
        if (id === 'byName' ? name === options : new RegExp(`^${options}$`).test(name)) {
          for (const property of override.properties) {
            const key = property.id.replace(/^custom\./, '');
            field.config = property.id.startsWith('custom.')
              ? {...field.config, custom: {...field.config.custom, [key]: property.value}}
              : {...field.config, [key]: property.value};
          }
        }
      }
      field.state = {...field.state, displayName: field.config.displayName ?? field.name};
      field.display = getDisplayProcessor({field, theme, timeZone: 'utc'});
    }
  }
  return frames;
}

// Frames of a range: one a series.
function lines(panel) {
  let index = 0;
  const frames = panel.targets.flatMap((target, i) => results[panel.id][i].map(series => {
    const frame = toDataFrame({
      refId: target.refId,
      fields: [
        {name: 'Time', type: FieldType.time, values: series.values.map(v => v[0] * 1000)},
        {name: labelled(target.legendFormat ?? '', series.metric), type: FieldType.number,
          values: series.values.map(v => Number.isFinite(Number(v[1])) ? Number(v[1]) : null), labels: series.metric},
      ],
    });
    frame.fields[1].config.displayName = frame.fields[1].name;
    frame.fields[1].config.color = {mode: FieldColorModeId.PaletteClassic};
    frame.fields[1].state = {seriesIndex: index++};
    return frame;
  }));
  const made = finish(frames, panel);
  made.forEach((frame, i) => {
    frame.fields[1].state.seriesIndex = i;
    frame.fields[1].display = getDisplayProcessor({field: frame.fields[1], theme, timeZone: 'utc'});
  });
  return made;
}

function Lines({panel, width, height}) {
  const frames = lines(panel);
  if (!frames.length) return <Empty />;
  return <TimeSeries frames={frames} timeRange={range} timeZone="utc" width={width} height={height} theme={theme}
    legend={{...panel.options.legend, calcs: []}} />;
}

const Empty = () => <div style={{padding: 16, color: theme.colors.text.secondary}}>No data</div>;

function Stats({panel, width, height}) {
  const values = panel.targets.flatMap((target, i) => results[panel.id][i].map(series => {
    const field = {name: 'v', type: FieldType.number, values: [], config: configOf(panel)};
    field.config.color ??= {mode: FieldColorModeId.Thresholds};
    const value = getDisplayProcessor({field, theme})(Number(series.value[1]));
    return {...value, title: labelled(target.legendFormat ?? '', series.metric)};
  }));
  if (!values.length) return <Empty />;
  const many = values.length > 1;
  return <div style={{display: 'flex', gap: 4}}>
    {values.map((value, i) => <BigValue key={i} value={many ? value : {...value, title: undefined}} theme={theme}
      width={Math.floor(width / values.length) - 4} height={height} colorMode={panel.options.colorMode}
      graphMode={panel.options.graphMode} textMode={panel.options.textMode} count={values.length} />)}
  </div>;
}

function useMatrix(panel) {
  const [frame, setFrame] = React.useState();
  React.useEffect(() => {
    const rows = panel.targets.flatMap((_, i) => results[panel.id][i]);
    const labels = [...new Set(rows.flatMap(r => Object.keys(r.metric)))];
    const sorted = rows.slice().sort((a, b) => {
      for (const label of labels) {
        const order = String(a.metric[label]).localeCompare(String(b.metric[label]), undefined, {numeric: true});
        if (order) return order;
      }
      return 0;
    });
    const table = toDataFrame({fields: [
      ...labels.map(label => ({name: label, type: FieldType.string, values: sorted.map(r => r.metric[label])})),
      {name: 'Value', type: FieldType.number, values: sorted.map(r => Number(r.value[1]))},
    ]});
    const steps = panel.transformations.map(t => Object.values(standardTransformers).find(s => s.id === t.id)
      .operator(t.options, {interpolate: v => v}));
    firstValueFrom(of([table]).pipe(...steps)).then(made => setFrame(finish(made, panel)[0]));
  }, []);
  return frame;
}

function Matrix({panel, width, height}) {
  const frame = useMatrix(panel);
  return frame ? <Table data={frame} width={width} height={height} cellHeight={panel.options.cellHeight} /> : null;
}

const KINDS = {timeseries: Lines, stat: Stats, table: Matrix};

function Panel({panel, column}) {
  const {x, y, w, h} = panel.gridPos;
  const box = {position: 'absolute', left: x * column, top: y * CELL, width: w * column - GAP, height: h * CELL - GAP};
  if (panel.type === 'row') {
    return <div style={{...box, ...theme.typography.h4, color: theme.colors.text.primary, paddingTop: 4}}>⌄ {panel.title}</div>;
  }
  const Kind = KINDS[panel.type];
  return <section style={{...box, background: theme.colors.background.primary, overflow: 'hidden',
    border: `1px solid ${theme.colors.border.weak}`, borderRadius: theme.shape.radius.default}}>
    <h6 style={{...theme.typography.h6, margin: 0, padding: '6px 8px', color: theme.colors.text.primary,
      whiteSpace: 'nowrap', overflow: 'hidden', textOverflow: 'ellipsis'}}>{panel.title}</h6>
    <div style={{padding: '0 8px'}}><Kind panel={panel} width={box.width - 18} height={box.height - 42} /></div>
  </section>;
}

function Page() {
  const column = (width - 2 * GAP) / 24;
  const bottom = Math.max(...dashboard.panels.map(p => p.gridPos.y + p.gridPos.h)) * CELL;
  return <ThemeContext.Provider value={theme}>
    <GlobalStyles />
    <div style={{background: theme.colors.background.canvas, color: theme.colors.text.primary, width}}>
      <header style={{padding: '10px 12px', display: 'flex', gap: 24, alignItems: 'baseline'}}>
        <span style={theme.typography.h4}>{dashboard.title}</span>
        {Object.entries(variables).map(([name, value]) => <span key={name} style={{color: theme.colors.text.secondary}}>
          {name} <b style={{color: theme.colors.text.primary}}>{value}</b></span>)}
      </header>
      <main style={{position: 'relative', height: bottom + GAP, margin: `0 ${GAP}px`}}>
        {dashboard.panels.map(panel => <Panel key={panel.id} panel={panel} column={column} />)}
      </main>
    </div>
    <PortalContainer />
  </ThemeContext.Provider>;
}

range.from = dateTime(range.from);
range.to = dateTime(range.to);
range.raw = {from: range.from, to: range.to};
createRoot(document.getElementById('root')).render(<Page />);
