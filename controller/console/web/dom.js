// Small helpers to build the page. Text is never parsed as HTML.

// el('p', {class: 'x', onclick: f}, 'text', child...)
export function el(tag, attributes = {}, ...children) {
  return fill(document.createElement(tag), attributes, children);
}

export function svg(tag, attributes = {}, ...children) {
  return fill(document.createElementNS('http://www.w3.org/2000/svg', tag), attributes, children);
}

function fill(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith('on')) node.addEventListener(name.slice(2), value);
    else if (value !== undefined && value !== false) node.setAttribute(name, value === true ? '' : value);
  }
  node.append(...children.filter(c => c !== undefined && c !== null));
  return node;
}

export const byId = id => document.getElementById(id);

// Replaces the children, unless `key` is what it was at the last call: what did not change keeps focus and selection. What
// has an id keeps focus also when it is made anew.
const keys = new WeakMap();
export function put(node, key, build) {
  const text = JSON.stringify(key);
  if (keys.get(node) === text) return;
  keys.set(node, text);
  const focused = node.contains(document.activeElement) && document.activeElement.id;
  node.replaceChildren(...[build()].flat());
  if (focused) byId(focused)?.focus();
}

// A table; columns whose cells are numbers stand to the right. `rows` are arrays of texts, numbers or nodes.
export function table(caption, columns, rows) {
  const number = columns.map((_, c) => rows.length > 0 && rows.every(r => typeof r[c] === 'number' || /^[\d.,-]/.test(r[c])));
  const cell = (tag, c, value, more = {}) => el(tag, {...more, class: number[c] ? 'number' : undefined}, value instanceof Node ? value : String(value));
  return el('table', {}, el('caption', {}, caption),
    el('thead', {}, el('tr', {}, ...columns.map((name, c) => cell('th', c, name, {scope: 'col'})))),
    el('tbody', {}, ...rows.map(r => el('tr', {}, ...r.map((value, c) => c === 0 ? cell('th', c, value, {scope: 'row'}) : cell('td', c, value))))));
}

export const bytes = n => {
  let value = Number(n), unit = 'B';
  for (const next of ['kB', 'MB', 'GB', 'TB']) {
    if (value < 999.95) break;
    value /= 1000;
    unit = next;
  }
  return unit === 'B' ? `${value} B` : `${value.toFixed(1)} ${unit}`;
};

export const count = n => Number(n).toLocaleString('en', {notation: Number(n) >= 1e5 ? 'compact' : 'standard', maximumFractionDigits: 1});
