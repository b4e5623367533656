// A worker blocked in Atomics.wait under named functions; the main thread idle in its event loop.
const { Worker, isMainThread, parentPort, workerData } = require('worker_threads');
const fs = require('fs');

function blockedHere(words) { Atomics.wait(words, 0, 0); return words[0] + 1; }
function middle(words) { return blockedHere(words) + 1; }
function outer(words) { return middle(words) + 1; }

if (isMainThread) {
    const worker = new Worker(__filename, { workerData: new Int32Array(new SharedArrayBuffer(4)) });
    worker.on('message', () => setTimeout(() => {
        const truth = { ready: true, shape: 'node', pid: process.pid, threads: [] };
        fs.writeSync(1, JSON.stringify(truth) + '\n');
    }, 100));
    process.stdin.resume();
    process.stdin.on('end', () => process.exit(0));
} else {
    parentPort.postMessage('about to wait');
    outer(workerData);
}
