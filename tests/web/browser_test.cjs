'use strict';
const assert = require('node:assert/strict');
const {test, before, after} = require('node:test');
const {openBrowser, openPage, accessibilityFindings} = require('./browser.cjs');

let browser;
before(async () => { browser = await openBrowser(); });
after(() => browser.close());

const page = async body => {
  const opened = await openPage(browser);
  await opened.setContent(`<!doctype html><html lang="en"><title>Deck</title><main><h1>Deck</h1>${body}</main></html>`);
  return opened;
};

test('a page is opened and its script runs', async () => {
  const opened = await page('<p id="out"></p><script>document.getElementById("out").textContent = 6 * 7;</script>');
  assert.equal(await opened.title(), 'Deck');
  assert.equal(await opened.textContent('#out'), '42');
});

test('a page that a screen reader can use has no findings, and one that it cannot has', async () => {
  assert.deepEqual(await accessibilityFindings(await page('<label>Load <input></label>')), []);
  const findings = await accessibilityFindings(await page('<input id="bare">'));
  assert.equal(findings.length, 1);
  assert.match(findings[0], /^label: .*#bare$/);
});
