// The console: asks the controller every other second, and draws what changed.
import {get, call, unpackRatios} from './api.js';
import {byId, bytes, count, el, put, table} from './dom.js';
import {Heatmap, legend} from './heatmap.js';
import {historyChart, layerChart} from './charts.js';

const POLL_MS = 1500;
const WAITS = new Set(['PLAN_STATE_PROPOSED']);
const ROLLS = new Set(['PLAN_STATE_APPROVED', 'PLAN_STATE_PREPARING', 'PLAN_STATE_PREPARED', 'PLAN_STATE_COMMITTING']);
const TONES = {
  SERVING: 'good', FORMING: 'warn', DEGRADED: 'bad', PROPOSED: 'info', APPROVED: 'info', PREPARING: 'info', PREPARED: 'info',
  COMMITTING: 'info', DONE: 'good', ABORTED: 'bad', REJECTED: '', EXPIRED: '', SUPERSEDED: '',
};

const state = {
  session: null, group: '', layer: 0, when: 'now',
  overview: null, layerView: null, engines: null, plans: [], planId: '', plan: null, planKey: '',
  history: {at_ms: [], balancedness: [], epoch: [], window_tokens: []},
};

// --- words

const bare = name => name.replace(/^(PLAN|GROUP|WORKER)_(STATE|MODE)_/, '');
const lower = name => bare(name).toLowerCase();
const chip = (text, tone = '') => el('li', {class: `chip ${tone}`}, text);
const shares = ratio => `${ratio.toFixed(2)} × the mean`;
const moment = text => (text ? new Date(text).toLocaleTimeString('en-GB') : '–');

// The GPUs of the placement: the maps' columns and rows.
const placed = () => state.overview.workers.slice(0, state.overview.layers ? loadNow().length / state.overview.layers : 0);
const loadNow = () => state.overview.unpacked ??= unpackRatios(state.overview.load);
const loadShown = () => (state.when === 'after' && state.plan?.after ? (state.plan.unpacked ??= unpackRatios(state.plan.after)) : loadNow());

// --- the maps

const loadMap = new Heatmap(byId('load-map'), {
  label: 'Load by layer and GPU. Arrow keys move, Enter shows the layer below.',
  describe: (layer, gpu, ratio) => (state.overview?.layers ? [
    el('b', {}, `Layer ${layer}, ${placed()[gpu]?.name ?? '–'}`), ` · ${shares(ratio)}`,
    state.overview.balancedness[layer] ? ` · layer's balancedness ${state.overview.balancedness[layer].toFixed(3)}` : '',
  ] : []),
  pick: layer => chooseLayer(layer),
});

const expertMap = new Heatmap(byId('expert-map'), {
  label: 'Experts on GPUs of one layer. Arrow keys move.',
  describe: (gpu, expert, ratio) => {
    if (!state.layerView) return [];
    const replicas = state.layerView.expert.filter(e => e === expert).length;
    return [el('b', {}, `${placed()[gpu]?.name ?? '–'}, expert ${expert}`),
      Number.isNaN(ratio) ? ' · no replica here' : ` · ${(100 * ratio).toFixed(1)} % of a GPU's fair share`,
      ` · ${replicas} replica${replicas === 1 ? '' : 's'}, ${count(state.layerView.tokens[expert] ?? 0)} tokens`];
  },
});

function expertCells() {
  const view = state.layerView, rows = placed().length, columns = state.overview.experts;
  const values = new Float32Array(rows * columns).fill(NaN);
  view.expert.forEach((expert, i) => {
    const at = view.worker[i] * columns + expert;
    values[at] = (Number.isNaN(values[at]) ? 0 : values[at]) + view.load[i];
  });
  return {rows, columns, values};
}

function drawMaps() {
  const {overview} = state;
  const gpus = placed(), from = (what, first, last) => `${what} ${first}${last !== first ? ` to ${last}` : ''}`;
  const names = from('', gpus[0]?.name ?? '', gpus.at(-1)?.name ?? '').trim();
  loadMap.set({
    rows: overview.layers, columns: gpus.length, values: loadShown(), top: 2, tall: 340,
    axes: overview.layers ? `↓ ${from('layer', 0, overview.layers - 1)} · → ${names}` : '',
  });
  if (state.layerView) {
    // One replica seldom fills a GPU: the last colour is what the hottest one has.
    const top = Math.max(0.01, state.layerView.load.reduce((high, v) => Math.max(high, v), 0));
    expertMap.set({...expertCells(), top, tall: 460, axes: `↓ ${names} · → ${from('expert', 0, overview.experts - 1)}`});
    legend(byId('expert-legend'), ['0', `${(100 * top).toFixed(0)} % of a fair share`]);
  }
  byId('when').hidden = !state.plan?.after;
}

// --- tables in place of the maps, made when they are open

function drawTables() {
  const {overview, layerView} = state;
  const open = (id, build) => {
    const details = byId(id);
    if (details.open) put(details.querySelector('.scroll'), [overview.at_ms, state.when, state.layer], build);
  };
  open('load-table', () => {
    const load = loadShown(), gpus = placed(), n = gpus.length;
    return table('Load of each GPU beside the mean', ['GPU', 'node', 'mean', 'highest', 'in layer', 'slots used'], gpus.map((g, i) => {
      let sum = 0, high = 0, where = 0;
      for (let l = 0; l < overview.layers; ++l) {
        const v = load[l * n + i];
        sum += v;
        if (v > high) [high, where] = [v, l];
      }
      return [g.name, g.node ?? '–', (sum / Math.max(overview.layers, 1)).toFixed(2), high.toFixed(2), where, g.slots_used ?? 0];
    }));
  });
  open('expert-table', () => {
    const by = new Map();
    layerView.expert.forEach((e, i) => by.set(e, [...(by.get(e) ?? []), i]));
    const rows = [...by].map(([e, list]) => [e, layerView.tokens[e] ?? 0, list.length,
      list.slice(0, 8).map(i => placed()[layerView.worker[i]]?.name).join(', ') + (list.length > 8 ? `, and ${list.length - 8} more` : '')]);
    rows.sort((a, b) => b[1] - a[1]);
    return table(`Experts of layer ${state.layer}`, ['expert', 'tokens', 'replicas', 'on'], rows);
  });
  open('history-table', () => {
    const {at_ms: at, balancedness: level, epoch} = state.history;
    const rows = [];
    for (let i = at.length - 1; i >= 0; --i) {
      if (i === at.length - 1 || i === 0 || epoch[i] !== epoch[i - 1] || i % 30 === 0) {
        rows.push([new Date(at[i]).toLocaleTimeString('en-GB'), level[i].toFixed(3), epoch[i]]);
      }
    }
    return table('Balancedness', ['time', 'balancedness', 'epoch'], rows);
  });
}

// --- what stands above

function drawTop() {
  const {group} = state.overview, s = bare(group.state);
  put(byId('state'), [group.state, group.mode, group.paused, group.policy, group.missing_total], () => [
    chip(lower(group.state), TONES[s]), chip(`mode ${lower(group.mode)}`), chip(`policy ${group.policy || '–'}`),
    ...(group.paused ? [chip('paused', 'warn')] : []),
    ...(group.missing_total ? [chip(`${group.missing_total} experts without a replica`, 'bad')] : []),
  ]);
  byId('pause').textContent = group.paused ? 'Resume' : 'Pause';
  const level = group.balancedness, members = group.view?.members?.length ?? 0;
  const worst = state.overview.balancedness.reduce((w, b, i) => (b > 0 && (w < 0 || b < state.overview.balancedness[w]) ? i : w), -1);
  const figure = (name, value, small) => el('div', {class: 'figure'}, el('dt', {}, name), el('dd', {}, value, el('small', {}, small)));
  put(byId('figures'), [level, worst, members, group.epoch, group.window_tokens, state.overview.balancedness[worst]], () => [
    figure('Balancedness', level ? level.toFixed(3) : '–', level ? 'mean of the layers; 1 is level' : 'no load yet'),
    figure('Busiest GPU', level ? `${(1 / level).toFixed(2)} ×` : '–', 'of the mean load, over the layers'),
    figure('Worst layer', worst < 0 ? '–' : state.overview.balancedness[worst].toFixed(3), worst < 0 ? 'no load yet' : `layer ${worst} of ${state.overview.layers}`),
    figure('GPUs', `${members} of ${group.size}`, `serve ${group.model?.name ?? 'no model yet'}`),
    figure('Epoch', group.epoch, `${count(group.window_tokens)} expert tokens in the window`),
  ]);
}

function drawHistory() {
  const node = byId('history'), width = Math.floor(node.clientWidth);
  if (width) put(node, [width, state.history.at_ms.length, state.history.at_ms.at(-1)], () => historyChart(state.history, width));
}

function drawHottest() {
  put(byId('hottest'), state.overview.hottest, () => (state.overview.hottest.length === 0 ? el('p', {class: 'quiet'}, 'No load yet.')
    : table('Hottest experts', ['layer', 'expert', 'of the mean', 'replicas', 'on'], state.overview.hottest.map(h => [
      el('button', {class: 'link', type: 'button', 'aria-label': `Show layer ${h.layer}`, onclick: () => chooseLayer(h.layer)}, String(h.layer)),
      h.expert, `${h.ratio.toFixed(1)} ×`, h.replicas, (h.workers[0] ?? '–') + (h.workers.length > 1 ? ', …' : '')]))));
}

// "4 min ago": how long before the answer it was; nothing is 0.
function ago(ms) {
  const seconds = Math.max(0, Math.round((state.engines.at_ms - ms) / 1000));
  if (!ms) return 'not yet';
  if (seconds < 60) return 'just now';
  return seconds < 3600 ? `${Math.floor(seconds / 60)} min ago` : `${Math.floor(seconds / 3600)} h ago`;
}

function drawEngines() {
  const {engines} = state.engines, level = value => (value ? value.toFixed(3) : '–');
  byId('engines-card').hidden = engines.length === 0;
  put(byId('engines'), [engines, engines.map(e => [ago(e.planned_ms), ago(e.last_report_ms)])], () => table('Engines',
    ['engine', 'model', 'layers × experts', 'GPUs', 'balancedness', 'predicted', 'epoch', 'planned', 'why', 'last report', 'tokens in the window'],
    engines.map(e => [e.name, e.model || '–', `${e.layers} × ${e.experts}`, `${e.gpus} on ${e.nodes} node${e.nodes === 1 ? '' : 's'}`,
      level(e.balancedness), level(e.predicted_balancedness), e.epoch, ago(e.planned_ms), e.epoch ? `${e.policy}: ${e.reason}` : '–',
      ago(e.last_report_ms), count(e.window_tokens)])));
}

// --- plans

function drawPlans() {
  put(byId('plans'), [state.plans, state.planId], () => (state.plans.length === 0 ? el('p', {class: 'quiet'}, 'None so far.')
    : table('Plans, newest first', ['plan', 'state', 'made', 'before', 'after'], state.plans.map(p => [
      el('button', {class: 'link', type: 'button', 'aria-current': p.id === state.planId && 'true', onclick: () => choosePlan(p.id)}, p.id),
      lower(p.state), moment(p.created), p.balancedness_before.toFixed(3), p.balancedness_after.toFixed(3)]))));
}

// "gains         12 % of ..." -> ["gains", "12 % of ..."]; a line without such a head is a reason.
const split = line => /^([a-z ]{4,14}?) {2,}(.*)$/.exec(line)?.slice(1);

function drawPlan() {
  const view = state.plan, node = byId('plan');
  if (!view) {
    put(byId('plan-state'), null, () => []);
    put(node, null, () => el('p', {class: 'quiet'}, 'No plan: the placement in force is as good as any that pays for its moves.'));
    return;
  }
  const {plan} = view, width = Math.floor(node.clientWidth) || 380;
  put(byId('plan-state'), [plan.id, plan.state], () => [chip(plan.id), chip(lower(plan.state), TONES[bare(plan.state)])]);
  put(node, [view.plan, view.moves, state.session?.operates, width], () => {
    const heads = [], reasons = [];
    for (const line of view.explanation) {
      const parts = split(line);
      if (parts) heads.push(el('dt', {}, parts[0]), el('dd', {}, parts[1]));
      else reasons.push(el('li', {}, line));
    }
    const out = [
      el('p', {class: 'beforeafter'}, plan.balancedness_before.toFixed(3), el('span', {class: 'arrow', 'aria-label': 'to'}, '→'), plan.balancedness_after.toFixed(3),
        el('small', {}, plan.balancedness_bound ? `of at most ${plan.balancedness_bound.toFixed(3)}` : '')),
      el('p', {class: 'quiet'}, `${plan.policy}: ${plan.reason || 'no reason given'}`),
    ];
    if (state.session?.operates && WAITS.has(plan.state)) {
      out.push(el('div', {class: 'actions'},
        el('button', {type: 'button', class: 'primary', id: 'approve', onclick: () => approve(plan)}, 'Approve…'),
        el('button', {type: 'button', id: 'reject', onclick: () => reject(plan)}, 'Reject…')));
    }
    if (ROLLS.has(plan.state)) {
      const done = plan.waves_done, name = `Rollout: ${done} of ${plan.waves_total} waves, ${plan.moves_done} of ${plan.moves_total} moves, ${bytes(plan.bytes_done)} of ${bytes(plan.bytes_total)}`;
      out.push(el('div', {}, el('h3', {id: 'rollout-title'}, name),
        el('progress', {max: Math.max(plan.moves_total, 1), value: plan.moves_done, 'aria-labelledby': 'rollout-title'})));
    }
    if (heads.length) out.push(el('dl', {class: 'why', 'aria-label': 'Why, and at what cost'}, ...heads));
    if (view.layers.some(l => l.balancedness_after > 0)) {
      out.push(el('div', {}, el('h3', {}, 'Balancedness by layer: ring before, dot with the plan'), layerChart(view.layers, width)));
    }
    if (reasons.length) out.push(el('div', {}, el('h3', {}, 'Why these moves'), el('ul', {class: 'reasons'}, ...reasons)));
    if (view.moves.length) {
      const title = ROLLS.has(plan.state) && plan.state !== 'PLAN_STATE_APPROVED' ? 'Moves in flight' : 'Moves';
      out.push(el('details', {open: title !== 'Moves'}, el('summary', {}, `${title}: ${view.moves.length}${view.moves.length < view.moves_total ? ` of ${view.moves_total}` : ''}`),
        el('div', {class: 'scroll', tabindex: 0, role: 'region', 'aria-label': title},
          table(title, ['layer', 'expert', 'from', 'to', 'size'], view.moves.map(m => [m.layer, m.expert, m.source || 'host memory', m.destination, bytes(m.bytes)])))));
    }
    return out;
  });
}

// --- doing

let toastTimer = 0;
function say(text) {
  byId('toast').textContent = text;
  clearTimeout(toastTimer);
  toastTimer = setTimeout(() => { byId('toast').textContent = ''; }, 8000);
}

// Resolves to null when the person thinks better of it, else to the reason given.
function ask({title, text, ok, reason = false}) {
  const dialog = byId('dialog');
  byId('dialog-title').textContent = title;
  byId('dialog-text').textContent = text;
  byId('dialog-ok').textContent = ok;
  byId('dialog-reason').hidden = !reason;
  byId('dialog-input').value = '';
  dialog.returnValue = '';
  dialog.showModal();
  (reason ? byId('dialog-input') : byId('dialog-ok')).focus();
  return new Promise(resolve => {
    dialog.addEventListener('close', () => resolve(dialog.returnValue === 'ok' ? byId('dialog-input').value : null), {once: true});
  });
}

async function act(done, method, request) {
  try {
    await call(method, request);
    say(done);
  } catch (error) {
    say(`Not done: ${error.message}`);
  }
  await refresh();
}

async function approve(plan) {
  const text = `${plan.moves_total} moves of ${bytes(plan.bytes_total)} in ${plan.waves_total} waves, while the GPUs serve: balancedness ${plan.balancedness_before.toFixed(3)} to ${plan.balancedness_after.toFixed(3)}.`;
  if (await ask({title: `Approve ${plan.id}?`, text, ok: 'Approve'}) === null) return;
  await act(`${plan.id} is approved.`, 'PlanService/ApprovePlan', {id: plan.id});
}

async function reject(plan) {
  const reason = await ask({title: `Reject ${plan.id}?`, text: 'It will not be rolled out.', ok: 'Reject', reason: true});
  if (reason !== null) await act(`${plan.id} is rejected.`, 'PlanService/RejectPlan', {id: plan.id, reason});
}

async function rollback() {
  const reason = await ask({title: `Roll ${state.group} back?`, text: 'The placement before the last rollout comes into force again, as a new epoch; then no plan is made for a while.', ok: 'Roll back', reason: true});
  if (reason !== null) await act('Rolling back.', 'PlanService/Rollback', {group: state.group, reason});
}

async function pause() {
  const {paused} = state.overview.group;
  await act(paused ? 'Planning and rollouts go on.' : 'Paused: nothing is planned or moved.', `GroupService/${paused ? 'Resume' : 'Pause'}`, {group: state.group});
}

// --- asking

async function chooseLayer(layer) {
  const top = Math.max((state.overview?.layers ?? 1) - 1, 0);
  state.layer = Math.max(0, Math.min(top, Math.floor(Number(layer)) || 0));
  byId('layer').value = state.layer;
  keepPlace();
  await refresh();
}

async function choosePlan(id) {
  state.planId = id;
  state.planKey = '';
  await refresh();
}

function keepPlace() {
  history.replaceState(null, '', `#${new URLSearchParams({group: state.group, layer: state.layer})}`);
}

async function readHistory() {
  const news = await get('history', {group: state.group, after_ms: state.history.at_ms.at(-1) ?? 0});
  for (const [name, list] of Object.entries(state.history)) {
    list.push(...news[name]);
    if (list.length > 3600) list.splice(0, list.length - 3600);
  }
}

// The newest plan that waits or is rolled out, else the newest that was chosen or made.
function planToShow() {
  const open = state.plans.find(p => ROLLS.has(p.state)) ?? state.plans.find(p => WAITS.has(p.state));
  return state.plans.find(p => p.id === state.planId) ?? open ?? state.plans[0];
}

async function readPlans() {
  state.plans = (await call('PlanService/ListPlans', {group: state.group, page_size: 12})).plans;
  const shown = planToShow();
  if (!shown) {
    state.plan = null;
    return;
  }
  const key = [shown.id, shown.state, shown.waves_done, shown.moves_done].join('/');
  if (key === state.planKey) return;
  state.plan = await get('plan', {id: shown.id});
  state.planKey = key;
  if (!state.plan.after || !(WAITS.has(shown.state) || ROLLS.has(shown.state))) {
    delete state.plan.after;
    showWhen('now');
  }
}

async function readGroups() {
  const {groups} = await get('groups');
  const names = groups.map(g => g.name);
  if (!names.includes(state.group)) state.group = names[0] ?? '';
  put(byId('group'), names, () => names.map(n => el('option', {value: n}, n)));
  byId('group').value = state.group;
}

function showWhen(when) {
  state.when = when;
  for (const button of byId('when').querySelectorAll('button')) button.setAttribute('aria-pressed', String(button.dataset.when === when));
}

let asking = Promise.resolve();
function refresh() {
  asking = asking.then(async () => {
    try {
      [state.engines] = await Promise.all([get('engines'), readGroups()]);
      drawEngines();
      document.body.classList.toggle('no-group', !state.group);
      if (state.group) {
        state.overview = await get('overview', {group: state.group});
        state.layerView = state.overview.layers ? await get('layer', {group: state.group, layer: Math.min(state.layer, state.overview.layers - 1)}) : null;
        await Promise.all([readHistory(), readPlans()]);
        draw();
      }
      document.body.dataset.ready = 'true';
      byId('problem').hidden = true;
    } catch (error) {
      byId('problem').textContent = `The controller does not answer: ${error.message}`;
      byId('problem').hidden = false;
    }
  });
  return asking;
}

function draw() {
  drawTop();
  drawHistory();
  drawPlan();
  drawMaps();
  drawTables();
  drawHottest();
  drawPlans();
  document.title = `${state.group} · Ballast`;
}

async function start() {
  const place = new URLSearchParams(location.hash.slice(1));
  state.group = place.get('group') ?? '';
  state.layer = Number(place.get('layer')) || 0;
  byId('layer').value = state.layer;
  legend(byId('load-legend'), ['0', 'the mean', '2 × and more']);
  byId('group').addEventListener('change', event => {
    state.group = event.target.value;
    Object.assign(state, {planId: '', plan: null, planKey: '', layer: 0});
    for (const list of Object.values(state.history)) list.length = 0;
    keepPlace();
    refresh();
  });
  byId('layer').addEventListener('change', event => chooseLayer(event.target.value));
  // Not a submit button: Enter in the reason means yes.
  byId('dialog-cancel').addEventListener('click', () => byId('dialog').close());
  byId('pause').addEventListener('click', pause);
  byId('rollback').addEventListener('click', rollback);
  for (const button of byId('when').querySelectorAll('button')) {
    button.addEventListener('click', () => { showWhen(button.dataset.when); draw(); });
  }
  for (const details of document.querySelectorAll('main > section details, .column details')) details.addEventListener('toggle', () => state.overview && drawTables());
  new ResizeObserver(() => state.overview && drawHistory()).observe(byId('history'));

  try {
    state.session = await get('session');
    byId('who').textContent = [state.session.name, state.session.role].filter(Boolean).join(' · ');
    byId('note').textContent = state.session.note;
    byId('note').hidden = !state.session.note;
    byId('actions').hidden = !state.session.operates;
  } catch (error) {
    byId('problem').textContent = error.message;
    byId('problem').hidden = false;
  }
  await refresh();
  setInterval(() => { if (!document.hidden) refresh(); }, POLL_MS);
}

start();
