// The console as a person has it: a browser, a keyboard, and a controller with four workers behind it.
'use strict';
const assert = require('node:assert/strict');
const path = require('node:path');
const {test, before, after} = require('node:test');
const {openBrowser, openPage, accessibilityFindings} = require('./browser.cjs');
const {start} = require('./served.cjs');

let browser, live, page;
const wrong = [];  // what the page says on its console

before(async () => {
  live = await start(process.env.LIVE_CONSOLE);
  browser = await openBrowser();
  page = await openPage(browser, {viewport: {width: 1280, height: 900}});
  page.on('pageerror', error => wrong.push(String(error)));
  page.on('console', message => { if (message.type() === 'error') wrong.push(message.text()); });
  await page.goto(`http://${live.fields.console}/`);
  await page.waitForSelector('body[data-ready]');
});

after(async () => {
  await browser?.close();
  await live?.stop();
});

// Tab until what has focus is `selector`.
async function tabTo(selector) {
  for (let i = 0; i < 80; ++i) {
    await page.keyboard.press('Tab');
    if (await page.evaluate(s => document.activeElement?.matches(s), selector)) return;
  }
  assert.fail(`${selector} cannot be reached by Tab`);
}

const epoch = () => page.evaluate(() => Number([...document.querySelectorAll('#figures dd')].at(-1).firstChild.data));
const epochAbove = least => page.waitForFunction(
  n => Number([...document.querySelectorAll('#figures dd')].at(-1).firstChild.data) > n, least);

test('it shows the group, its load and the plan that waits', async () => {
  assert.match(await page.textContent('#state'), /serving/);
  assert.match(await page.textContent('#figures'), /4 of 4/);
  assert.equal(await page.textContent('#plan-state .chip'), live.fields.plan);
  assert.match(await page.textContent('#plan .why'), /of what the busiest workers have/);
  assert.equal((await page.$$('#hottest tbody tr')).length, 10);
  assert.equal(await page.isVisible('#engines-card'), false, 'there are none');
});

test('a screen reader can use it, light and dark, with tables in place of pictures', async () => {
  for (const id of ['load-table', 'expert-table', 'history-table']) await page.click(`#${id} summary`);
  await page.waitForSelector('#expert-table tbody tr:nth-child(32)');
  assert.equal((await page.$$('#load-table tbody tr')).length, 4);
  for (const colorScheme of ['light', 'dark']) {
    await page.emulateMedia({colorScheme});
    assert.deepEqual(await accessibilityFindings(page), [], colorScheme);
  }
  await page.emulateMedia({colorScheme: 'light'});
  for (const id of ['load-table', 'expert-table', 'history-table']) await page.click(`#${id} summary`);
});

test('arrow keys walk through the heatmap and Enter opens a layer', async () => {
  await tabTo('#load-map .frame');
  assert.match(await page.textContent('#load-map .readout'), /Layer 0, gpu-0 · [\d.]+ × the mean/);
  await page.keyboard.press('ArrowDown');
  await page.keyboard.press('ArrowDown');
  await page.keyboard.press('ArrowRight');
  assert.match(await page.textContent('#load-map .readout'), /Layer 2, gpu-1 /);
  await page.keyboard.press('Enter');
  await page.waitForFunction(() => document.getElementById('layer').value === '2');
  await page.waitForFunction(() => location.hash.includes('layer=2'));
});

test('a plan is approved by keyboard alone, and its moves come into force', async () => {
  await tabTo('#approve');
  await page.keyboard.press('Enter');
  await page.waitForSelector('dialog[open]');
  assert.deepEqual(await accessibilityFindings(page), []);
  await page.keyboard.press('Escape');
  assert.match(await page.textContent('#plan-state'), /proposed/, 'Escape changes nothing');
  await page.focus('#approve');
  await page.keyboard.press('Enter');
  await page.keyboard.press('Enter');
  await page.waitForFunction(() => /done/.test(document.querySelector('#plan-state').textContent));
  await epochAbove(1);
  assert.equal(await page.$('#approve'), null);
});

test('a rollback brings the placement before into force again and keeps its reason', async () => {
  const before = await epoch();
  await page.focus('#rollback');
  await page.keyboard.press('Enter');
  await page.keyboard.type('try of the console');
  await page.keyboard.press('Enter');
  await page.waitForFunction(() => /rollback by an operator: try of the console/.test(document.querySelector('#plan').textContent));
  await page.waitForFunction(() => /done/.test(document.querySelector('#plan-state').textContent));
  await epochAbove(before);
});

test('pause and resume', async () => {
  await page.click('#pause');
  await page.waitForFunction(() => document.querySelector('#state').textContent.includes('paused'));
  assert.equal(await page.textContent('#pause'), 'Resume');
  await page.click('#pause');
  await page.waitForFunction(() => document.querySelector('#pause').textContent === 'Pause');
});

test('the page breaks no rule of its own policy and throws nothing', () => assert.deepEqual(wrong, []));

test('over TLS a viewer reads and cannot approve, and nobody is let in without a certificate', async () => {
  const folder = path.join(process.env.TEST_TMPDIR, 'certificates');
  const served = await start(process.env.LIVE_CONSOLE, 'tls', folder);
  const origin = `https://${served.fields.console}`;
  const open = role => openPage(browser, {
    ignoreHTTPSErrors: true,
    clientCertificates: role ? [{origin, certPath: path.join(folder, `${role}.crt`), keyPath: path.join(folder, `${role}.key`)}] : [],
  });
  const approve = opened => opened.evaluate(async () => (await fetch('/api/call/ballast.v1.GroupService/Pause', {
    method: 'POST', headers: {'Content-Type': 'application/json', 'X-Ballast-Console': '1'}, body: '{"group": "demo"}',
  })).status);
  try {
    const viewer = await open('viewer');
    await viewer.goto(origin);
    await viewer.waitForSelector('body[data-ready]');
    assert.match(await viewer.textContent('#who'), /peer · viewer/);
    assert.match(await viewer.textContent('#note'), /your certificate's role is viewer/);
    assert.equal(await viewer.isVisible('#actions'), false);
    assert.equal(await approve(viewer), 403);
    const operator = await open('operator');
    await operator.goto(origin);
    await operator.waitForSelector('body[data-ready]');
    assert.equal(await operator.isVisible('#rollback'), true);
    assert.equal(await approve(operator), 200);
    const nobody = await open('nobody');
    await nobody.goto(origin);
    await nobody.waitForFunction(() => /needed is one of: viewer, operator/.test(document.querySelector('#problem').textContent));
    await assert.rejects((await open('')).goto(origin));
  } finally {
    await served.stop();
  }
});

test('a group of 1,024 GPUs, 61 layers and 256 experts is drawn whole', async () => {
  const served = await start(process.env.SYNTHETIC_CONSOLE, '61', '256', '1024');
  const big = await openPage(browser, {viewport: {width: 1920, height: 1080}});
  try {
    await big.goto(`http://${served.fields.console}/#group=big&layer=60`);
    await big.waitForSelector('body[data-ready]');
    assert.match(await big.textContent('#figures'), /1024 of 1024/);
    for (const map of ['load-map', 'expert-map']) {
      const colours = await big.evaluate(id => {
        const canvas = document.querySelector(`#${id} canvas`);
        const pixels = new Uint32Array(canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data.buffer);
        return {width: canvas.width, height: canvas.height, different: new Set(pixels).size};
      }, map);
      assert.ok(colours.width > 800 && colours.height >= 200, JSON.stringify(colours));
      assert.ok(colours.different > 8, JSON.stringify(colours));
    }
    await big.focus('#expert-map .frame');
    assert.match(await big.textContent('#expert-map .readout'), /gpu-0000, expert 0 · (no replica here|[\d.]+ % of a GPU's fair share) · \d+ replicas?, \d/);
    await big.click('#when button[data-when=after]');
    assert.equal(await big.getAttribute('#when button[data-when=after]', 'aria-pressed'), 'true');
    const engines = await big.$$eval('#engines tbody tr', rows => rows.map(row => [...row.cells].map(cell => cell.textContent)));
    assert.deepEqual(engines, [
      ['sgl', 'deepseek-v3', '58 × 256', '32 on 4 nodes', '0.912', '0.968', '2', engines[0][7], 'cost-aware: load has drifted', engines[0][9], '12.3M'],
      ['trt', '–', '58 × 256', '32 on 4 nodes', '–', '–', '0', 'not yet', '–', 'not yet', '0'],
    ]);
    assert.match(engines[0][7], /^\d+ min ago$/);
    assert.deepEqual(await accessibilityFindings(big), []);
    await big.click('#load-table summary');
    await big.waitForSelector('#load-table tbody tr:nth-child(1024)');
  } finally {
    await served.stop();
  }
});

test('a controller of engines alone shows these', async () => {
  const served = await start(process.env.SYNTHETIC_CONSOLE, '2', '8', '4');
  const alone = await openPage(browser, {viewport: {width: 1280, height: 900}});
  try {
    await alone.route('**/api/groups', route => route.fulfill({json: {groups: []}}));
    await alone.goto(`http://${served.fields.console}/`);
    await alone.waitForSelector('body[data-ready]');
    assert.equal((await alone.$$('#engines tbody tr')).length, 2);
    assert.equal(await alone.isVisible('#load-map'), false);
    assert.equal(await alone.isVisible('#actions'), false);
    for (const colorScheme of ['light', 'dark']) {
      await alone.emulateMedia({colorScheme});
      assert.deepEqual(await accessibilityFindings(alone), [], colorScheme);
    }
    if (process.env.PICTURES) await alone.screenshot({path: path.join(process.env.PICTURES, 'console-engines.png'), fullPage: true});
  } finally {
    await served.stop();
  }
});

// The pictures of docs/images, where they are asked for: PICTURES is the folder that they go to.
const takesPictures = process.env.PICTURES ? test : () => {};
takesPictures('pictures for the pages', async () => {
  const served = await start(process.env.SYNTHETIC_CONSOLE, '61', '256', '1024');
  for (const width of [1280, 1920]) {
    for (const colorScheme of ['light', 'dark']) {
      for (const [name, address] of [['console', live.fields.console], ['console-1024-gpus', served.fields.console]]) {
        const shot = await openPage(browser, {viewport: {width, height: width === 1280 ? 900 : 1080}, colorScheme});
        await shot.goto(`http://${address}/`);
        await shot.waitForSelector('body[data-ready]');
        await shot.screenshot({path: path.join(process.env.PICTURES, `${name}-${width}-${colorScheme}.png`), fullPage: true});
        await shot.close();
      }
    }
  }
  await served.stop();
});
