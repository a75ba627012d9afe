// The browser of the tests of web pages: Debian's Chromium, without a window, driven by Playwright.
'use strict';
const fs = require('node:fs');
const {chromium} = require('playwright-core');

// Only what hangs comes near.
const PATIENCE_MS = 240_000;

// What a test draws looks the same on every machine: no GPU, no animation. As root Chromium has no sandbox of its own.
async function openBrowser() {
  return chromium.launch({
    executablePath: '/usr/bin/chromium',
    args: ['--no-sandbox', '--disable-dev-shm-usage', '--disable-gpu', '--font-render-hinting=none'],
    timeout: PATIENCE_MS,
  });
}

// A page of its own profile, with options of Browser.newContext.
async function openPage(browser, options = {}) {
  const context = await browser.newContext(options);
  context.setDefaultTimeout(PATIENCE_MS);
  return context.newPage();
}

// What axe-core finds wrong with the page, one string a finding: the rule, and the elements that break it. Empty: nothing
// against WCAG 2.2 A and AA, or axe's best practices.
async function accessibilityFindings(page) {
  // Not addScriptTag: the page's own policy may forbid inline scripts, and must not be relaxed for the test.
  await page.evaluate(fs.readFileSync(require.resolve('axe-core/axe.min.js'), 'utf8'));
  const {violations} = await page.evaluate(() => globalThis.axe.run());
  return violations.map(v => `${v.id}: ${v.help}: ${v.nodes.map(n => n.target.join(' ')).join(', ')}`);
}

module.exports = {openBrowser, openPage, accessibilityFindings};
