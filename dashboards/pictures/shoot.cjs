// Screenshots of the dashboards: node shoot.cjs BUNDLE INPUT.json OUT. INPUT is what pictures.py wrote, one object a
// picture; OUT a folder.
'use strict';
const fs = require('node:fs');
const path = require('node:path');
const {openBrowser} = require('../../tests/web/browser.cjs');

async function main([bundle, input, out]) {
  const browser = await openBrowser();
  for (const picture of JSON.parse(fs.readFileSync(input))) {
    const page = await browser.newPage({viewport: {width: picture.width, height: 900}, reducedMotion: 'reduce'});
    page.on('pageerror', error => console.error(`${picture.name}: ${error}`));
    // A page of its own origin: the library wants local storage.
    const body = '<!doctype html><body style="margin:0"><div id="root"></div>';
    await page.route('http://pictures.invalid/', route => route.fulfill({contentType: 'text/html', body}));
    await page.goto('http://pictures.invalid/');
    await page.evaluate(value => { window.input = value; }, picture);
    await page.addStyleTag({path: bundle.replace(/\.js$/, '.css')});
    await page.addScriptTag({path: bundle});
    // Charts draw in the frames after their first layout.
    await page.waitForFunction(() => document.querySelectorAll('section').length > 0);
    await page.evaluate(() => new Promise(done => { let n = 30; const f = () => n-- ? requestAnimationFrame(f) : done(); f(); }));
    await page.locator('#root').screenshot({path: path.join(out, `${picture.name}.png`)});
    await page.close();
  }
  await browser.close();
}

main(process.argv.slice(2)).catch(error => { console.error(error); process.exit(1); });
