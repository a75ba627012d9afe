// A heatmap on a canvas, fast at thousands of rows and columns, that a keyboard can walk through.
import {el} from './dom.js';

// Viridis: even to the eye, and told apart by the colour-blind.
const STOPS = ['#440154', '#482878', '#3e4989', '#31688e', '#26828e', '#1f9e89', '#35b779', '#6ece58', '#b5de2b', '#fde725']
  .map(c => [1, 3, 5].map(i => parseInt(c.slice(i, i + 2), 16)));

const LUT = new Uint32Array(256).map((_, i) => {
  const at = i / 255 * (STOPS.length - 1), low = Math.min(Math.floor(at), STOPS.length - 2);
  const [r, g, b] = STOPS[low].map((v, c) => Math.round(v + (STOPS[low + 1][c] - v) * (at - low)));
  return (255 << 24 | b << 16 | g << 8 | r) >>> 0;
});
const colour = part => LUT[Math.min(255, Math.round(part * 255))];

// Draws the colours into `node`, with words from the least to the most.
export function legend(node, words) {
  const canvas = el('canvas', {width: 190, height: 1});
  const context = canvas.getContext('2d'), image = context.createImageData(190, 1);
  new Uint32Array(image.data.buffer).forEach((_, i, all) => { all[i] = colour(i / 189); });
  context.putImageData(image, 0, 0);
  node.replaceChildren(canvas, el('span', {}, ...words.map(word => el('span', {}, word))));
}

export class Heatmap {
  // describe(row, column, value): nodes or texts for the readout; value is NaN where there is nothing.
  // pick(row, column): Enter or a click. `label` names it to a screen reader.
  constructor(root, {label, describe, pick = () => {}}) {
    this.describe = describe;
    this.pick = pick;
    this.cursor = {row: 0, column: 0};
    this.shape = {rows: 0, columns: 0, values: new Float32Array(), top: 1, tall: 0};
    this.canvas = el('canvas');
    this.readout = el('p', {class: 'readout', 'aria-live': 'polite'});
    this.frame = el('div', {
      class: 'frame', tabindex: 0, role: 'application', 'aria-roledescription': 'heatmap', 'aria-label': label,
      onkeydown: e => this.onKey(e), onfocus: () => this.show(), onblur: () => this.draw(),
    }, this.canvas);
    this.canvas.addEventListener('mousemove', e => this.onPoint(e));
    this.canvas.addEventListener('click', () => this.pick(this.cursor.row, this.cursor.column));
    root.classList.add('map');
    this.axes = el('p', {class: 'hint axes', 'aria-hidden': 'true'});
    root.append(this.frame, this.axes, this.readout);
    new ResizeObserver(() => this.draw()).observe(root);
    matchMedia('(prefers-color-scheme: dark)').addEventListener('change', () => this.draw());
  }

  // `axes`: what rows and columns are, in words. `values`: row by row, NaN for nothing; from `top` on they have the last colour. `tall`: the pixels that many rows share.
  set({rows, columns, values, top, tall, axes}) {
    this.axes.textContent = axes;
    this.shape = {rows, columns, values, top, tall};
    this.cursor.row = Math.min(this.cursor.row, Math.max(rows - 1, 0));
    this.cursor.column = Math.min(this.cursor.column, Math.max(columns - 1, 0));
    this.draw();
    if (document.activeElement === this.frame) this.show();
  }

  draw() {
    const {rows, columns, values, top, tall} = this.shape;
    const width = Math.floor(this.frame.clientWidth);
    if (!rows || !columns || !width) {
      this.canvas.width = this.canvas.height = 0;
      return;
    }
    const density = Math.min(window.devicePixelRatio || 1, 2);
    const height = Math.min(tall, rows * Math.max(4, Math.min(40, Math.floor(tall / rows))));
    const w = Math.round(width * density), h = Math.round(height * density);
    this.canvas.width = w;
    this.canvas.height = h;
    this.canvas.style.width = `${width}px`;
    this.canvas.style.height = `${height}px`;
    const context = this.canvas.getContext('2d');
    const image = context.createImageData(w, h), pixels = new Uint32Array(image.data.buffer);
    const empty = this.emptyColour();
    // A gap between cells that are big enough for one.
    const gapX = w / columns >= 7 * density ? density : 0, gapY = h / rows >= 7 * density ? density : 0;
    const clear = Math.max(1, Math.round(density));
    for (let y = 0; y < h; ) {
      const first = Math.floor(y * rows / h);
      // One band of pixels: of a tall cell, or of several rows that share a line of them.
      const next = Math.max(y + 1, Math.min(h, Math.ceil((first + 1) * h / rows)));
      const last = Math.max(first, Math.ceil((y + 1) * rows / h) - 1);
      for (let x = 0; x < w; ) {
        const from = Math.floor(x * columns / w);
        const end = Math.max(x + 1, Math.min(w, Math.ceil((from + 1) * w / columns)));
        const to = Math.max(from, Math.ceil((x + 1) * columns / w) - 1);
        // The hottest of what shares a pixel: nothing hot is ever lost.
        let value = NaN;
        for (let r = first; r <= (next - y > 1 ? first : last); ++r) {
          for (let c = from; c <= (end - x > 1 ? from : to); ++c) {
            const v = values[r * columns + c];
            if (!(v <= value)) value = Number.isNaN(v) ? value : v;
          }
        }
        const shade = Number.isNaN(value) ? empty : colour(value / top);
        for (let yy = y; yy < next - (gapY ? clear : 0); ++yy) pixels.fill(shade, yy * w + x, yy * w + end - (gapX ? clear : 0));
        x = end;
      }
      y = next;
    }
    context.putImageData(image, 0, 0);
    if (document.activeElement === this.frame) this.drawCursor(context, w, h);
  }

  drawCursor(context, w, h) {
    const {rows, columns} = this.shape, {row, column} = this.cursor;
    const cw = Math.max(w / columns, 6), ch = Math.max(h / rows, 6);
    const x = Math.min(column * w / columns, w - cw), y = Math.min(row * h / rows, h - ch);
    for (const [style, inset] of [['#000', 1], ['#fff', 3]]) {
      context.strokeStyle = style;
      context.lineWidth = 2;
      context.strokeRect(x + inset - 1, y + inset - 1, cw - 2 * inset + 2, ch - 2 * inset + 2);
    }
  }

  emptyColour() {
    const probe = getComputedStyle(document.documentElement).getPropertyValue('--empty').trim();
    const [r, g, b] = [1, 3, 5].map(i => parseInt(probe.slice(i, i + 2), 16));
    return (255 << 24 | b << 16 | g << 8 | r) >>> 0;
  }

  onPoint(event) {
    const box = this.canvas.getBoundingClientRect(), {rows, columns} = this.shape;
    this.cursor = {
      row: Math.max(0, Math.min(rows - 1, Math.floor((event.clientY - box.top) / box.height * rows))),
      column: Math.max(0, Math.min(columns - 1, Math.floor((event.clientX - box.left) / box.width * columns))),
    };
    this.show();
  }

  onKey(event) {
    const {rows, columns} = this.shape, {row, column} = this.cursor;
    if (!rows || !columns) return;
    const go = {
      ArrowUp: [row - 1, column], ArrowDown: [row + 1, column], ArrowLeft: [row, column - 1], ArrowRight: [row, column + 1],
      PageUp: [row - 10, column], PageDown: [row + 10, column], Home: [row, 0], End: [row, columns - 1],
    }[event.key];
    if (go) {
      this.cursor = {row: Math.max(0, Math.min(rows - 1, go[0])), column: Math.max(0, Math.min(columns - 1, go[1]))};
      this.show();
    } else if (event.key === 'Enter') {
      this.pick(row, column);
    } else {
      return;
    }
    event.preventDefault();
  }

  show() {
    const {columns, values} = this.shape, {row, column} = this.cursor;
    this.readout.replaceChildren(...[this.describe(row, column, values[row * columns + column])].flat());
    this.draw();
  }
}
