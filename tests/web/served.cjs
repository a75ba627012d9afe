// Programs that serve a console for a test.
'use strict';
const {spawn} = require('node:child_process');
const readline = require('node:readline');

// Starts a program, waits for its line "ready KEY=VALUE ...", and gives {fields, stop}. It ends when its input does.
async function start(program, ...args) {
  const child = spawn(program, args, {stdio: ['pipe', 'pipe', 'inherit']});
  const ended = new Promise(resolve => child.on('exit', resolve));
  const line = await Promise.race([
    new Promise(resolve => readline.createInterface(child.stdout).once('line', resolve)),
    ended.then(code => { throw new Error(`${program} ended with ${code}`); }),
  ]);
  const fields = Object.fromEntries(line.split(' ').slice(1).map(word => word.split(/=(.*)/s)));
  return {fields, stop: () => { child.stdin.end(); return ended; }};
}

module.exports = {start};
