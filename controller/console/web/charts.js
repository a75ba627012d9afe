// Balancedness over time, and a plan's effect layer by layer.
import {svg} from './dom.js';

const time = ms => new Date(ms).toLocaleTimeString('en-GB');

// The least value that the axis begins at, and the step of its lines: what there is, with room.
function range(values) {
  const least = Math.min(1, ...values), step = least > 0.55 ? 0.1 : 0.25;
  return {low: Math.max(0, Math.floor((least - 0.02) / step) * step), step};
}

function axis(width, height, left, bottom, {low, step}) {
  const lines = [];
  for (let v = 1; v > low - step / 2; v -= step) {
    const y = (1 - (v - low) / (1 - low)) * (height - bottom - 8) + 8;
    lines.push(svg('line', {class: 'axis', x1: left, x2: width - 4, y1: y, y2: y}),
      svg('text', {x: left - 8, y: y + 4, 'text-anchor': 'end'}, v.toFixed(2)));
  }
  return lines;
}

// `history`: {at_ms, balancedness, epoch}. Dashed where an epoch came into force.
export function historyChart(history, width) {
  const height = 170, left = 44, bottom = 22, {at_ms: at, balancedness: level, epoch} = history;
  const shown = level.map((v, i) => [at[i], v, epoch[i]]).filter(([, v]) => v > 0);
  const scale = range(shown.map(s => s[1])), {low} = scale;
  const start = at[0] ?? 0, end = Math.max(at[at.length - 1] ?? 1, start + 60e3);
  const x = t => left + (t - start) / (end - start) * (width - left - 8);
  const y = v => (1 - (v - low) / (1 - low)) * (height - bottom - 8) + 8;
  const points = shown.map(([t, v]) => `${x(t).toFixed(1)},${y(v).toFixed(1)}`);
  const marks = [];
  let labelled = -Infinity;
  for (let i = 1; i < at.length; ++i) {
    if (epoch[i] === epoch[i - 1]) continue;
    const place = x(at[i]);
    marks.push(svg('line', {class: 'mark', x1: place, x2: place, y1: 8, y2: height - bottom}));
    if (place - labelled > 60) {
      marks.push(svg('text', {x: place + 4, y: 20}, `epoch ${epoch[i]}`));
      labelled = place;
    }
  }
  const last = shown[shown.length - 1];
  return svg('svg', {
    width, height, viewBox: `0 0 ${width} ${height}`, role: 'img',
    'aria-label': last ? `Balancedness from ${time(start)} to ${time(last[0])}: now ${last[1].toFixed(3)}, lowest ${Math.min(...shown.map(s => s[1])).toFixed(3)}` : 'Balancedness: no load yet',
  }, ...axis(width, height, left, bottom, scale), ...marks,
  ...(points.length > 1 ? [
    svg('polygon', {class: 'area', points: `${x(shown[0][0])},${height - bottom} ${points.join(' ')} ${x(last[0])},${height - bottom}`}),
    svg('polyline', {class: 'line', points: points.join(' ')}),
  ] : []),
  svg('text', {x: left, y: height - 5}, time(start)), svg('text', {x: width - 8, y: height - 5, 'text-anchor': 'end'}, time(end)));
}

// `layers`: LayerEffect messages. A ring before, a dot after.
export function layerChart(layers, width) {
  const height = 130, left = 44, bottom = 20;
  const scale = range(layers.flatMap(l => [l.balancedness_before, l.balancedness_after]).filter(v => v > 0)), {low} = scale;
  const x = i => left + 10 + i / Math.max(layers.length - 1, 1) * (width - left - 24);
  const y = v => (1 - (Math.max(v, low) - low) / (1 - low)) * (height - bottom - 8) + 8;
  const radius = layers.length > 40 ? 2.5 : 4;
  const worst = list => Math.min(...list).toFixed(2);
  return svg('svg', {
    width, height, viewBox: `0 0 ${width} ${height}`, role: 'img',
    'aria-label': `Balancedness by layer: worst ${worst(layers.map(l => l.balancedness_before))} before, ${worst(layers.map(l => l.balancedness_after))} with the plan`,
  }, ...axis(width, height, left, bottom, scale), ...layers.flatMap((l, i) => [
    svg('line', {class: 'join', x1: x(i), x2: x(i), y1: y(l.balancedness_before), y2: y(l.balancedness_after)}),
    svg('circle', {class: 'before', cx: x(i), cy: y(l.balancedness_before), r: radius}),
    svg('circle', {class: 'after', cx: x(i), cy: y(l.balancedness_after), r: radius}),
  ]), svg('text', {x: left + 6, y: height - 4}, 'layer 0'),
  svg('text', {x: width - 4, y: height - 4, 'text-anchor': 'end'}, `layer ${layers.length - 1}`));
}
